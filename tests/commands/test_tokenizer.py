import random
import re
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from lit_distil.commands.tokenizer import run, tokenizer
from lit_distil.data import TextFiles, load_tokenizer, vocabulary_of
from tests.workspace import environment

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps.\n\nIt isn't so: don't guess!\n" * 20


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    return TextFiles(str(tmp_path / "a.txt"))


def test_byte_level_bpe_has_robertas_special_ids(source, tmp_path):
    tokenizer(source, out=str(tmp_path / "out"), vocab_size=330, max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, RobertaTokenizer) and loaded.model_max_length == 64
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert (loaded.unk_token_id, loaded.mask_token_id) == (3, 4)
    assert loaded.decode(loaded("The dog isn't é!")["input_ids"], skip_special_tokens=True) == "The dog isn't é!"


@pytest.mark.parametrize("lowercase", [False, True])
def test_wordpiece_keeps_or_lowers_the_case(source, tmp_path, lowercase):
    tokenizer(source, out=str(tmp_path / "out"), kind="wordpiece", vocab_size=300, lowercase=lowercase)
    loaded = load_tokenizer(str(tmp_path / "out"))
    assert isinstance(loaded, BertTokenizer)
    assert loaded.tokenize("The")[0] == ("the" if lowercase else "The")
    assert len(set(vocabulary_of(loaded).special_ids.values())) == 5
    assert loaded("a", "b")["token_type_ids"][-1] == 1


def test_the_command_line_gives_the_same_tokenizer(source, tmp_path, capsys):
    arguments = ["--source", "lit_distil.data.TextFiles", "--source.train", str(tmp_path / "a.txt")]
    run([*arguments, "--out", str(tmp_path / "out"), "--vocab_size", "320"])
    assert "entries in" in capsys.readouterr().out
    tokenizer(source, out=str(tmp_path / "again"), vocab_size=320)
    first, second = (AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("out", "again"))
    assert first == second and len(first) <= 320


@pytest.fixture(scope="module")
def many_ties(tmp_path_factory):
    """Text in which most pairs are equally frequent."""
    draw, file = random.Random(0), tmp_path_factory.mktemp("text") / "text.txt"
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäöüéñ猫犬", k=draw.randint(2, 9))) for _ in range(3000)]
    file.write_text("\n\n".join(" ".join(words[n : n + 30] * 2) for n in range(0, len(words), 30)))
    return file


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_five_runs_write_the_same_bytes(many_ties, tmp_path, kind):
    """WordPiece's trainer numbers letters as a hash table lists them, and merges equally frequent pairs by number."""
    for number in range(5):
        tokenizer(TextFiles(str(many_ties)), out=str(tmp_path / str(number)), kind=kind, vocab_size=2000)
    written = [files_in(tmp_path / str(number)) for number in range(5)]
    assert all(files == written[0] for files in written) and "tokenizer.json" in written[0]
    assert vocabulary_of(load_tokenizer(str(tmp_path / "0"))).size == 2000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_five_processes_write_the_same_bytes(many_ties, tmp_path, kind):
    command = [sys.executable, "-m", "lit_distil", "tokenizer", "--source", "lit_distil.data.TextFiles"]
    command += ["--source.train", str(many_ties), "--kind", kind, "--vocab_size", "2000", "--out"]
    children = [subprocess.Popen([*command, str(tmp_path / str(n))], env=environment()) for n in range(5)]
    assert [child.wait(600) for child in children] == [0] * 5
    assert all(files_in(tmp_path / str(number)) == files_in(tmp_path / "0") for number in range(5))


def test_wordpiece_has_the_special_tokens_then_letters_then_merges_and_no_others_are_special(source, tmp_path):
    tokenizer(source, out=str(tmp_path / "out"), kind="wordpiece", vocab_size=300, lowercase=True)
    loaded = load_tokenizer(str(tmp_path / "out"))
    entries = loaded.convert_ids_to_tokens(range(len(loaded)))
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert set(loaded.all_special_tokens) == set(entries[:5])
    letters = sorted(set(TEXT.lower()) - {" ", "\n"})
    assert entries[5 : 5 + len(letters)] == letters
    inside = sorted({f"##{letter}" for word in re.findall("[a-z]+", TEXT.lower()) for letter in word[1:]})
    assert inside and entries[5 + len(letters) : 5 + len(letters) + len(inside)] == inside
    assert all(len(entry.removeprefix("##")) > 1 for entry in entries[5 + len(letters) + len(inside) :])
    assert loaded.tokenize("##e the") == ["[UNK]", "[UNK]", "e", "the"]  # no entry is looked for before words are cut


def test_wrong_settings_are_refused_before_the_text_is_read(tmp_path):
    source = TextFiles(str(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="vocab_size must be at least 300"):
        tokenizer(source, out=str(tmp_path / "out"), vocab_size=100)
    with pytest.raises(ValueError, match="lowercase: byte-level BPE keeps case"):
        tokenizer(source, out=str(tmp_path / "out"), lowercase=True)
    with pytest.raises(ValueError, match="the train split has no documents"):
        tokenizer(TextFiles(), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
