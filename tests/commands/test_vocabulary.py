"""`lit-distil vocabulary`: the folder that it writes, its report, and what it refuses."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

import lit_distil
from lit_distil import cli
from lit_distil.commands.embeddings import open_encoder
from lit_distil.data import TextFiles
from lit_distil.objectives.embedding import SentenceFormat, read_sentence_format
from tests.workspace import Workspace, kept_environment, write_model


@pytest.fixture(scope="module")
def text(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the training text, so that it lacks some of the entries."""
    path = tmp_path_factory.mktemp("text") / "part.txt"
    lines = (workspace.root / "train.txt").read_text().splitlines()
    path.write_text("\n".join(line.replace("vocabulary", "").replace("gradient", "") for line in lines[:12]) + "\n")
    return path


def main(*arguments: str | Path) -> None:
    with kept_environment():
        cli.main(["vocabulary", *map(str, arguments)])


def states(folder: Path | str, auto: type, ids: list[int]) -> list[torch.Tensor]:
    model = auto.from_pretrained(folder).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        return list(model(torch.tensor([ids[:60]]), output_hidden_states=True).hidden_states)


def numbers(printed: str) -> dict[str, list[str]]:
    """The rows of the table by their names."""
    rows = [line.split("  ") for line in printed.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_folder_is_the_same_network_with_fewer_rows(
    kind: str, workspace: Workspace, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = workspace.bert_teacher if kind == "bert" else workspace.teacher
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    out = tmp_path / "out"
    main(network, "--keep-from", text, packed, "--out", out)
    table = numbers(capsys.readouterr().out)
    old, new = AutoTokenizer.from_pretrained(network), AutoTokenizer.from_pretrained(out)
    assert len(new) < len(old)
    assert table["entries"] == [str(len(old)), str(len(new))]
    models = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (network, out)]
    before, after = (model.num_parameters() for model in models)
    assert table["parameters"] == [f"{before:,}", f"{after:,}"]
    assert before - after == (len(old) - len(new)) * (models[0].config.hidden_size + 1)
    assert table["tokens a word"][0] == table["tokens a word"][1]
    assert table["unknown tokens"] == ["0", "0"]
    place = new.get_vocab()
    for line in text.read_text().splitlines()[:5]:
        theirs, ours = old(line)["input_ids"], new(line)["input_ids"]
        assert ours == [place[name] for name in old.convert_ids_to_tokens(theirs)]
        found, expected = states(out, AutoModelForMaskedLM, ours), states(network, AutoModelForMaskedLM, theirs)
        assert all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True))


def test_a_network_without_a_head_keeps_none(workspace: Workspace, text: Path, tmp_path: Path) -> None:
    encoder = AutoModel.from_pretrained(workspace.bert_teacher, add_pooling_layer=True)
    encoder.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(workspace.bert_teacher).save_pretrained(tmp_path / "encoder")
    change = lit_distil.vocabulary(str(tmp_path / "encoder"), keep_from=TextFiles(str(text)), out=str(tmp_path / "out"))
    loaded, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is type(encoder) and not info["missing_keys"] and not info["unexpected_keys"]
    assert change.after.entries == loaded.get_input_embeddings().weight.shape[0] < change.before.entries
    assert [(index,) for (index,) in change.sources] == change.sources
    table = encoder.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, table[[index for (index,) in change.sources]])


def test_a_sentence_encoder_stays_one(
    workspace: Workspace, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "encoder"
    AutoModel.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    SentenceFormat("mean", 24).write(folder, 32)
    lit_distil.vocabulary(str(folder), keep_from=str(text), out=str(tmp_path / "out"))
    assert read_sentence_format(str(tmp_path / "out")) == SentenceFormat("mean", 24)
    lines = text.read_text().splitlines()[:3]
    assert torch.equal(open_encoder(str(tmp_path / "out"))(lines), open_encoder(str(folder))(lines))
    # a way of pooling that is not known here is left out, as `export` does
    settings = folder / "1_Pooling/config.json"
    settings.write_text(settings.read_text().replace('mean_tokens": true', 'max_tokens": true'))
    lit_distil.vocabulary(str(folder), keep_from=str(text), out=str(tmp_path / "other"))
    assert "without the files of sentence-transformers" in capsys.readouterr().out
    assert read_sentence_format(str(tmp_path / "other")) is None


def test_words_of_a_file_start_as_the_mean_of_their_pieces(
    workspace: Workspace, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, out = tmp_path / "words.txt", tmp_path / "out"
    words.write_text("Kubelet\n\nshapeloss\nmodel\n")
    old = AutoTokenizer.from_pretrained(workspace.bert_teacher)
    main(workspace.bert_teacher, "--add", words, "--out", out)
    printed = capsys.readouterr().out
    assert "2 words added" in printed and "tokens a word" not in printed
    new = AutoTokenizer.from_pretrained(out)
    assert new.tokenize("the kubelet ShapeLoss") == ["the", "kubelet", "shapeloss"]
    before, after = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (workspace.bert_teacher, out))
    for rows in (lambda model: model.get_input_embeddings().weight, lambda model: model.cls.predictions.bias):
        theirs, ours = rows(before), rows(after)
        assert len(ours) == len(theirs) + 2 and torch.equal(ours[:-2], theirs)
        for word in ("kubelet", "shapeloss"):
            pieces = old(word, add_special_tokens=False)["input_ids"]
            assert len(pieces) > 1
            torch.testing.assert_close(ours[new.get_vocab()[word]], theirs[pieces].mean(0))
    line = text.read_text().splitlines()[0]
    ids = old(line)["input_ids"]
    assert new(line)["input_ids"] == ids
    found, expected = (states(folder, AutoModelForMaskedLM, ids) for folder in (out, workspace.bert_teacher))
    assert all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_words_are_added_to_a_trimmed_vocabulary_in_one_call(
    kind: str, workspace: Workspace, text: Path, tmp_path: Path
) -> None:
    network = workspace.bert_teacher if kind == "bert" else workspace.teacher
    old = AutoTokenizer.from_pretrained(network)
    size = len(old) - 20
    change = lit_distil.vocabulary(
        network, keep_from=str(text), size=size, add=["kubelet", "shapeloss"], out=str(tmp_path / "out")
    )
    assert change.num_added == 2 and change.after.entries == len(change.sources) == size
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    before, after = (AutoModelForMaskedLM.from_pretrained(folder) for folder in (network, tmp_path / "out"))
    table, rows = before.get_input_embeddings().weight, after.get_input_embeddings().weight
    for number, source in enumerate(change.sources):
        torch.testing.assert_close(rows[number], table[[*source]].mean(0))
    pieces = tuple(old(" kubelet", add_special_tokens=False)["input_ids"])
    assert change.sources[new.convert_tokens_to_ids("kubelet")] == pieces
    assert len(new(" kubelet", add_special_tokens=False)["input_ids"]) == 1


def test_a_network_whose_positions_depend_on_its_padding_keeps_what_is_before_it(
    workspace: Workspace, text: Path, tmp_path: Path
) -> None:
    """In the tokenizer, three entries that no text needs stand before the padding."""
    base = AutoTokenizer.from_pretrained(workspace.wordpiece)
    names = ["never", "nowhere", "none", *sorted(base.get_vocab(), key=base.get_vocab().__getitem__)]
    tokenizer: PreTrainedTokenizerBase = type(base)(vocab={name: index for index, name in enumerate(names)})
    assert tokenizer.pad_token_id == 3
    write_model(str(tmp_path / "network"), "roberta", tokenizer, type_vocab_size=1)
    change = lit_distil.vocabulary(str(tmp_path / "network"), keep_from=[str(text)], out=str(tmp_path / "out"))
    new = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert new.pad_token_id == 3 and change.after.entries < change.before.entries
    line = text.read_text().splitlines()[0]
    ids = [[*one(line)["input_ids"]] for one in (tokenizer, new)]
    theirs, ours = (
        states(folder, AutoModelForMaskedLM, each)
        for folder, each in zip((tmp_path / "network", tmp_path / "out"), ids, strict=True)
    )
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "keep_from: give text whose tokens stay"),
        (["--size", "300"], "keep_from: give text whose tokens stay"),
        (["--keep-from", "absent.txt"], "keep_from: no file 'absent.txt'"),
        (["--add", "absent.txt"], "add: no file 'absent.txt'; give a text file with one word a line"),
        (["--keep-from", "TEXT", "--size", "7"], "size=7: the entries that must stay"),
        (["--keep-from", "TEXT", "--size", "70000"], "size=70000: the tokenizer has"),
        (["--add", "WORDS", "--size", "300"], "size: the text decides which entries stay"),
        (["--keep-from", "TEXT", "--size", "many"], "size"),
        (["--keep-form", "TEXT"], "keep"),
        (["--add", "EMPTY"], "holds no word; give one a line"),
        (["--add", "WORDS"], "w.txt:2: 'co-op' is 3 words to this tokenizer"),
        (["--keep-from", "EMPTY"], "empty or blank"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(
    arguments: list[str],
    message: str,
    workspace: Workspace,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {"TEXT": text, "WORDS": tmp_path / "w.txt", "EMPTY": tmp_path / "empty.txt"}
    (tmp_path / "w.txt").write_text("good\nco-op\n")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        main(workspace.bert_teacher, *(str(files.get(one, one)) for one in arguments), "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error and not (tmp_path / "out").exists()
    assert message in error
