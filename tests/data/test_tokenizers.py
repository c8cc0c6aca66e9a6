import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from lit_distil.data.tokenizers import load_tokenizer, tokenizer_hash, vocabulary_of

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LOWER = [*SPECIALS, "hello", "world", "##s", "e", "a", "b"]
CASED = [*SPECIALS, "Hello", "hello", "world", "##s", "E", "a", "b"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def bert(entries, **settings):
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, **settings)


def check(tokenizer, entries):
    assert tokenizer.is_fast
    assert vocabulary_of(tokenizer).size == len(entries)
    ids = vocabulary_of(tokenizer).special_ids
    assert {name: ids[f"{name}_token_id"] for name in ("pad", "unk", "cls", "sep", "mask")} == {
        name.strip("[]").lower(): index for index, name in enumerate(SPECIALS)
    }
    pair = tokenizer("a", "b")
    a, b = entries.index("a"), entries.index("b")
    assert pair["input_ids"] == [2, a, 3, b, 3]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]  # without these BERT cannot tell a pair's texts apart


@pytest.mark.parametrize(
    ("entries", "tokens"), [(LOWER, ["hello", "world", "##s"]), (CASED, ["Hello", "world", "##s"])]
)
def test_a_vocabulary_alone_is_enough_and_says_whether_it_has_case(tmp_path, entries, tokens):
    (tmp_path / "vocab.txt").write_text("\n".join(entries) + "\n")
    tokenizer = load_tokenizer(str(tmp_path))
    check(tokenizer, entries)
    assert tokenizer.tokenize("Hello worlds") == tokens


@pytest.mark.parametrize(("entries", "lower"), [(LOWER, True), (CASED, False)])
def test_a_tokenizer_file_without_a_config_is_enough(tmp_path, entries, lower):
    bert(entries, do_lower_case=lower).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("\n".join(entries))
    tokenizer = load_tokenizer(str(tmp_path))
    check(tokenizer, entries)
    assert tokenizer.tokenize("Hello worlds")[0] == ("hello" if lower else "Hello")


def test_a_loaded_tokenizer_is_saved_completely(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(CASED))
    load_tokenizer(str(tmp_path)).save_pretrained(tmp_path / "export")
    again = load_tokenizer(str(tmp_path / "export"))
    check(again, CASED)
    assert again.tokenize("Hello") == ["Hello"]
    assert tokenizer_hash(again) == tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "export"))


def test_a_byte_level_file_without_a_config_has_robertas_special_tokens(tmp_path, byte_level_bpe):
    byte_level_bpe.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = vocabulary_of(load_tokenizer(str(tmp_path))).special_ids
    expected = {"pad": 1, "mask": 4, "cls": 0, "sep": 2, "bos": 0, "eos": 2, "unk": 3}
    assert ids == {f"{name}_token_id": index for name, index in expected.items()}


@pytest.mark.parametrize("missing", ["mask_token", "pad_token", "cls_token", "sep_token"])
def test_a_tokenizer_that_lacks_a_token_is_refused(tmp_path, missing):
    names = {
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    del names[missing]
    raw = Tokenizer(models.WordLevel({name: n for n, name in enumerate(LOWER)}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"data\.tokenizer: .* has no {missing}"):
        load_tokenizer(str(tmp_path))


def test_bos_and_eos_can_replace_cls_and_sep(tmp_path):
    raw = Tokenizer(models.WordLevel({name: n for n, name in enumerate(LOWER)}, unk_token="[UNK]"))
    names = {"mask_token": "[MASK]", "pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(tmp_path)
    assert vocabulary_of(load_tokenizer(str(tmp_path))).special_ids["bos_token_id"] == 2


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ValueError, match=r"no folder .*tokenizr.*near it: .*tokenizer;.*lit-distil tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizr"))
    (tmp_path / "tokenizer" / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"holds no tokenizer .* only \['notes\.md'\]"):
        load_tokenizer(str(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"is not a BERT vocabulary: it has no \['\[PAD\]'"):
        load_tokenizer(str(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizer"))


def test_the_hash_follows_the_vocabulary_and_not_the_calls():
    tokenizer = bert(LOWER)
    before = tokenizer_hash(tokenizer)
    tokenizer("hello", truncation=True, max_length=3, padding="max_length")
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(bert(LOWER, do_lower_case=False)) != before
    assert tokenizer_hash(bert([*LOWER, "more"])) != before
