"""A trimmed tokenizer cuts text whose tokens stay as before, and an extended one text without the new words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from lit_distil.data.trimming import add_words, count_tokens, shared_entries, trim

ROBERTA = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
SYLLABLES = ["ka", "lo", "mi", "tra", "ne", "sol", "per", "um", "dis", "bé", "zu", "fi"]


def words(seed: int, number: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(number)]


def lines(vocabulary: list[str], seed: int, number: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(vocabulary, k=12)).capitalize() + draw.choice([".", "?", "!"]) for _ in range(number)]


ALL = words(1, 200)
CORPUS = lines(ALL, 2, 400)
DOMAIN = lines(ALL[:40], 3, 60)
OTHER = [*lines(ALL, 4, 100), "Zzx yqé, 98-76: Ünder (kalo) §12 日本 \U0001f600", "", "ka" * 80]


def wordpiece() -> PreTrainedTokenizerBase:
    blank = BertTokenizer(do_lower_case=True)
    return blank.train_new_from_iterator([CORPUS], vocab_size=400, show_progress=False)


def byte_bpe() -> PreTrainedTokenizerBase:
    blank = RobertaTokenizer(vocab=ROBERTA, merges=[])
    return blank.train_new_from_iterator([CORPUS], vocab_size=600, show_progress=False)


def unigram() -> PreTrainedTokenizerBase:
    blank = XLMRobertaTokenizer(vocab=[(name, 0.0) for name in ROBERTA])
    return blank.train_new_from_iterator([CORPUS], vocab_size=220, show_progress=False)


def general(model: Any, trainer: Any, **parts: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of no class of its own, whose mask is no entry of the model and stands at the end."""
    backend = Tokenizer(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<cls>", "<sep>", "<mask>"])
    ids = {name: backend.token_to_id(name) for name in ("<cls>", "<sep>")}
    backend.post_processor = processors.TemplateProcessing("<cls> $A <sep>", "<cls> $A <sep> $B <sep>", [*ids.items()])
    names = {f"{name}_token": f"<{name}>" for name in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def spaced_bpe() -> PreTrainedTokenizerBase:
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<pad>"], show_progress=False)
    return general(
        models.BPE(unk_token="<unk>"), trainer, pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    )


def marked_bpe() -> PreTrainedTokenizerBase:
    """BPE with WordPiece's mark of a continuation."""
    settings: dict[str, Any] = {"continuing_subword_prefix": "##"}
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<pad>"], show_progress=False, **settings)
    model = models.BPE(unk_token="<unk>", **settings)
    return general(model, trainer, pre_tokenizer=pre_tokenizers.Whitespace(), normalizer=normalizers.Lowercase())


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "wordpiece": wordpiece,
    "byte-bpe": byte_bpe,
    "unigram": unigram,
    "spaced-bpe": spaced_bpe,
    "marked-bpe": marked_bpe,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return KINDS[request.param]()


def entries(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, "a pair")["input_ids"])


@pytest.mark.parametrize("share", [0.5, 0.8, None])
def test_text_whose_entries_all_stay_has_the_same_tokens_under_new_ids(
    tokenizer: PreTrainedTokenizerBase, share: float | None, tmp_path: Path
) -> None:
    counts = count_tokens(tokenizer, [DOMAIN])
    required = len(trim(tokenizer, np.zeros_like(counts.tokens)).sources)
    size = None if share is None else required + int(share * (len(tokenizer) - required))
    made = trim(tokenizer, counts.tokens, size=size)
    assert size is None or len(made.tokenizer) == size
    assert len(made.tokenizer) < len(tokenizer)
    old, new = entries(tokenizer), entries(made.tokenizer)
    assert [(old.index(name),) for name in new] == made.sources
    made.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    place = {index: number for number, (index,) in enumerate(made.sources)}
    num_whole = num_cut = 0
    for text in [*DOMAIN, *CORPUS, *OTHER]:
        before, after = encode(tokenizer, text), encode(loaded, text)
        assert after == encode(made.tokenizer, text)
        if all(index in place for index in before):
            num_whole += 1
            assert after == [place[index] for index in before]
        else:
            num_cut += 1
        unknown = [ids.count(one.unk_token_id) for ids, one in ((before, tokenizer), (after, loaded))]
        assert unknown[0] == unknown[1], text
        old_words, new_words = (one.decode(ids) for one, ids in ((tokenizer, before), (loaded, after)))
        assert re.sub(" |##", "", old_words) == re.sub(" |##", "", new_words)
    assert num_whole > 40 and num_cut > 40
    if share is None:
        assert num_whole >= len(DOMAIN)
        assert {name for name, count in zip(old, counts.tokens, strict=True) if count} <= set(new)
    roles = [f"{role}_token" for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")]
    assert [getattr(loaded, role) for role in roles] == [getattr(tokenizer, role) for role in roles]


def test_entries_that_a_text_needs_most_stay_and_the_first_fill_up(tokenizer: PreTrainedTokenizerBase) -> None:
    nothing = np.zeros(len(tokenizer), dtype=np.int64)
    required = {index for (index,) in trim(tokenizer, nothing).sources}
    others = [index for index in range(len(tokenizer)) if index not in required]
    wanted = others[-1]
    counts = nothing.copy()
    counts[wanted] = 7
    # what a BPE entry is merged from comes with it
    needed = {index for (index,) in trim(tokenizer, counts).sources}
    assert wanted in needed and required < needed
    assert len(needed) == len(required) + 1 or tokenizer.backend_tokenizer.model.__class__.__name__ == "BPE"
    filled = {index for (index,) in trim(tokenizer, counts, size=len(needed) + 2).sources}
    assert needed < filled and len(filled - needed) == 2
    assert max(filled - needed) < others[-1]
    kept = {index for (index,) in trim(tokenizer, nothing, keep=[wanted]).sources}
    assert kept == needed


def test_single_characters_and_their_continuations_stay(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = set(entries(trim(tokenizer, np.zeros(len(tokenizer), dtype=np.int64)).tokenizer))
    single = {name for name in entries(tokenizer) if len(name.removeprefix("##")) == 1}
    assert len(single) > 10 and single <= kept
    assert kept - single - set(tokenizer.all_special_tokens) <= {min(unigram_scores(tokenizer), default="")}


def unigram_scores(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The piece with the lowest score, which sets the price of unknown characters."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return [min(model["vocab"], key=lambda pair: pair[1])[0]] if model["type"] == "Unigram" else []


def test_the_scores_of_unigram_and_its_price_of_the_unknown_are_kept() -> None:
    old = unigram()
    counts = count_tokens(old, [DOMAIN]).tokens
    lowest = old.convert_tokens_to_ids(unigram_scores(old)[0])
    counts[lowest] = 0
    new = trim(old, counts, size=len(old) - 20).tokenizer
    before, after = (dict(json.loads(one.backend_tokenizer.to_str())["model"]["vocab"]) for one in (old, new))
    assert all(before[name] == score for name, score in after.items())
    assert min(before.values()) == min(after.values()) < 0


def test_an_entry_with_a_character_of_its_own_stays() -> None:
    """Without the whole word, its character would become unknown: it has no entry."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "b", "##b", "aaa", "ab∂", "##b"]
    old = BertTokenizer(vocab={name: index for index, name in enumerate(dict.fromkeys(names))})
    new = trim(old, np.zeros(len(old), dtype=np.int64)).tokenizer
    assert "ab∂" in new.get_vocab() and "aaa" not in new.get_vocab()
    assert new.tokenize("ab∂ aaa") == ["ab∂", "a", "##a", "##a"]


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_size_that_is_too_small_or_not_smaller_is_refused(tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    message = "the entries that must stay" if size == 10 else f"the tokenizer has {len(tokenizer)} entries"
    with pytest.raises(ValueError, match=f"^size={size}: {message}"):
        trim(tokenizer, np.ones(len(tokenizer), dtype=np.int64), size=size)


def test_a_model_of_another_kind_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    with pytest.raises(ValueError, match="its tokenizer's model is WordLevel, and known are WordPiece, BPE, Unigram"):
        trim(PreTrainedTokenizerFast(tokenizer_object=backend), np.zeros(2, dtype=np.int64))


def test_tokens_and_words_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    counts = count_tokens(tokenizer, [DOMAIN[:20], OTHER[:20]])
    texts = [*DOMAIN[:20], *OTHER[:20]]
    ids = [index for text in texts for index in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert counts.tokens.tolist() == np.bincount(ids, minlength=len(tokenizer)).tolist()
    assert counts.num_words == sum(len(text.split()) for text in texts)
    assert counts.tokens_per_word == len(ids) / counts.num_words > 1
    assert counts.num_unknown == ids.count(tokenizer.unk_token_id)


def test_words_become_one_token_and_other_text_keeps_its_tokens(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    new = ["kubelet", "zumizumi", "Fisolper"]
    made = add_words(tokenizer, [*new, "kubelet"], places=["here"] * 4)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(made.sources) == len(tokenizer) + 3
    old = entries(tokenizer)
    for name, source in zip(entries(loaded), made.sources, strict=True):
        if len(source) == 1:
            assert old[source[0]] == name
        else:
            assert name.lower() in [word.lower() for word in new]
            assert [*source] == tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
    assert sum(len(source) > 1 for source in made.sources) == 3
    place = {source[0]: number for number, source in enumerate(made.sources) if len(source) == 1}
    for text in [*DOMAIN, *OTHER]:
        assert encode(loaded, text) == [place[index] for index in encode(tokenizer, text)]
    for text in ("Ne kubelet sol.", "Ne zumizumi, lo", "Ne (Fisolper) lo"):
        ids, before = loaded(text)["input_ids"], tokenizer(text)["input_ids"]
        assert len(ids) < len(before)
        assert sum(len(made.sources[index]) > 1 for index in ids) == 1


def test_in_bpe_and_unigram_an_added_word_stands_alone_and_in_wordpiece_it_may_begin_a_longer_one() -> None:
    for make in (byte_bpe, unigram):
        old = make()
        made = add_words(old, ["kubelet"], places=["here"])
        assert "kubelets" in made.tokenizer.decode(made.tokenizer("Ne kubelets")["input_ids"])
        assert made.tokenizer("Ne kubelets")["input_ids"] == old("Ne kubelets")["input_ids"]
    made = add_words(wordpiece(), ["kubelet"], places=["here"])
    assert made.tokenizer.tokenize("Kubeletmi")[0] == "kubelet"


def test_a_word_that_is_an_entry_already_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    known = next(word for word in ALL if len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1)
    assert len(add_words(tokenizer, [known], places=["here"]).sources) == len(tokenizer)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("co-op", r"^w\.txt:3: 'co-op' is 3 words to this tokenizer \(co, -, op\).*give its parts"),
        ("x" * 101, r"^w\.txt:3: 'x+' has 101 characters, and the tokenizer reads words up to 100"),
        ("  ", r"^w\.txt:3: the tokenizer finds nothing in '  '"),
    ],
)
def test_a_word_that_no_wordpiece_entry_can_hold_is_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_words(wordpiece(), [word], places=["w.txt:3"])


def test_a_trimmed_tokenizer_is_a_part_of_the_whole_one(tokenizer: PreTrainedTokenizerBase) -> None:
    part = trim(tokenizer, count_tokens(tokenizer, [DOMAIN]).tokens)
    shared = shared_entries(part.tokenizer, tokenizer)
    assert shared is not None
    assert [(index,) for index in shared] == part.sources
    assert shared_entries(tokenizer, tokenizer) is None and shared_entries(tokenizer, part.tokenizer) is None
    assert shared_entries(add_words(part.tokenizer, ["kubelet"], places=["here"]).tokenizer, tokenizer) is None


def test_a_tokenizer_with_other_rules_or_roles_is_no_part() -> None:
    whole = wordpiece()
    names = entries(trim(whole, count_tokens(whole, [DOMAIN]).tokens).tokenizer)
    vocabulary = {name: index for index, name in enumerate(names)}
    assert shared_entries(BertTokenizer(vocab=vocabulary, do_lower_case=True), whole) is not None
    assert shared_entries(BertTokenizer(vocab=vocabulary, do_lower_case=False), whole) is None
    assert shared_entries(BertTokenizer(vocab=vocabulary, mask_token=names[-1]), whole) is None
