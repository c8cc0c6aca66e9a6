"""`inspect` shows what is in a batch: neither more nor less, in words, and without a network."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_distil import cli
from lit_distil.commands.inspect.batches import Reader, TokenTexts, histogram, totals_of
from lit_distil.data import SegmentPair, StepPlan, TextDataModule, TextFiles, TokenMasking
from lit_distil.types import Batch
from tests.commands.pages import Page
from tests.integration.test_tasks import configuration
from tests.workspace import Workspace, kept_environment, with_trainer, write_config

MARK = re.compile(r"⟦(\S+) (?:→ (\S+)|↺)⟧")


def inspect(config: dict[str, Any], folder: Path, *more: str, **trainer: Any) -> Path:
    """Run the command as a person would; gives the page."""
    file = write_config(with_trainer(config, folder / "run", **trainer), folder / "config.yaml")
    with kept_environment(), warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        cli.main(["inspect", "--config", file, *more])
    return folder / "run" / "inspect.html"


def pairs(workspace: Workspace) -> dict[str, Any]:
    """Pretraining on pairs of segments with a WordPiece vocabulary."""
    config = workspace.pretraining()
    config["data"] = workspace.text_data(tokenizer=workspace.wordpiece, format="lit_distil.data.SegmentPair", seed=3)
    return config


def batches_of_pairs(workspace: Workspace, *, step: int, number: int) -> tuple[TextDataModule, list[Batch]]:
    """What a run on these pairs trains on in one step, from the data set and the plan of steps."""
    files = {split: str(workspace.root / f"{split}.txt") for split in ("train", "validation")}
    data = TextDataModule(
        workspace.wordpiece,
        TextFiles(**files),
        format=SegmentPair(),
        masking=TokenMasking(rate=0.3),
        max_length=48,
        batch_size=8,
        seed=3,
        cache_dir=str(workspace.root / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    samples, epochs = StepPlan(len(data.datasets["train"]), 8, seed=3).samples(step)
    shares = zip(np.split(samples, number), np.split(epochs, number), strict=True)
    return data, [data.datasets["train"].collate(*share, step) for share in shares]


def number(output: str, line: str) -> int:
    """The first number in a line of the totals."""
    found = re.search(rf"^{line} +([\d,]+)", output, re.MULTILINE)
    assert found, output
    return int(found[1].replace(",", ""))


def test_a_step_is_shown_as_it_is_trained_on(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples, masked positions with what was and what is there, segments, labels of pairs, and every total."""
    page = Page(inspect(pairs(workspace), tmp_path, "--step", "5", "--show", "null", accumulate_grad_batches=2))
    output = capsys.readouterr().out
    data, batches = batches_of_pairs(workspace, step=5, number=2)

    shown = output.split("\nbatch ")[1:]
    assert len(shown) == len(batches) == 2
    mask = data.tokenizer.mask_token_id
    for text, batch in zip(shown, batches, strict=True):
        assert re.findall(r"^sample (\d+) · (\d+) tokens", text, re.MULTILINE) == [
            (str(sample), str(length)) for sample, length in zip(batch.sample_ids.tolist(), batch.lengths, strict=True)
        ]
        assert batch.masked_positions is not None and batch.masked_labels is not None
        expected = []
        for position, original in zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True):
            was, put = data.tokenizer.convert_ids_to_tokens([original, int(batch.input_ids[0, position])])
            expected.append((was.removeprefix("##"), "" if put == was else put.removeprefix("##")))
        assert len(expected) > 20 and MARK.findall(text) == expected
        assert batch.next_sentence_labels is not None
        answers = re.findall(r"(is next: B follows A|random next: B is from another document)", text)
        assert [answer.startswith("random") for answer in answers] == batch.next_sentence_labels.bool().tolist()
        assert len(re.findall(r"^  A │ \[CLS\] .* \[SEP\]$", text, re.MULTILINE)) == batch.num_sequences
        assert len(re.findall(r"^  B │ .* \[SEP\]$", text, re.MULTILINE)) == batch.num_sequences

    marks = [mark for text in shown for mark in MARK.findall(text)]
    assert Counter(page.struck) == Counter([was for was, _ in marks] + ["was"] * 3)  # the legend has three
    counts = [batch.counts for batch in batches]
    assert number(output, "sequences") == 8
    assert number(output, "tokens") == sum(count["tokens"] for count in counts)
    assert number(output, "to predict") == sum(count["masked"] for count in counts) == len(marks)
    hidden = sum(
        int((batch.input_ids[0, batch.masked_positions] == mask).sum())  # type: ignore[index]
        for batch in batches
    )
    left = sum(
        int((batch.input_ids[0, batch.masked_positions] == batch.masked_labels).sum())  # type: ignore[index]
        for batch in batches
    )
    assert f"({hidden})" in output.split("of these")[1].splitlines()[0] and 0 < hidden < len(marks)
    assert re.search(rf"left as it is [\d.]+ % \({left}\)", output)
    padded = sum(batch.num_sequences * max(batch.lengths) for batch in batches)
    tokens = sum(batch.num_tokens for batch in batches)
    assert f"{100 * (padded - tokens) / padded:.1f} % if batches were padded" in output
    corpus = data.datasets["train"].corpus  # type: ignore[attr-defined]
    assert f"{corpus.num_documents} documents" in output and f"{corpus.num_tokens:,} tokens" in output
    bars = re.findall(r"^ +\d+ to \d+ % (?:█+ )?(\d+)$", output, re.MULTILINE)
    assert sum(map(int, bars)) == 8


def test_frequent_and_unknown_tokens_are_those_before_masking(workspace: Workspace) -> None:
    """What hides a token must not be counted for it, and special tokens are no words."""
    data, batches = batches_of_pairs(workspace, step=2, number=4)
    reader = Reader(TokenTexts(data.tokenizer, set(data.vocabulary.special_ids.values())), data.vocabulary, {}, {})
    totals = totals_of(batches, reader, top=10_000)
    words: Counter[str] = Counter()
    for batch in batches:
        ids = batch.input_ids[0].clone()
        ids[batch.masked_positions] = batch.masked_labels  # type: ignore[index]
        words.update(data.tokenizer.convert_ids_to_tokens([i for i in ids.tolist() if i > 4]))
    assert sorted(count for _, count in totals.frequent) == sorted(words.values())
    assert totals.num_ordinary == sum(words.values()) > 100 and totals.num_unknown == 0
    assert (
        totals.num_masked
        == [
            int(((batch.masked_positions >= start) & (batch.masked_positions < end)).sum())  # type: ignore[operator]
            for batch in batches
            for start, end in zip(batch.cu_seq_lens[:-1].tolist(), batch.cu_seq_lens[1:].tolist(), strict=True)
        ]
    )
    assert sum(count for _, count in histogram(totals)) == len(totals.lengths) == 8


def test_no_network_is_made_and_its_files_need_not_be_there(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the data must not cost what the training costs, nor a download."""
    made: list[str] = []
    build = torch.nn.Module.__init__

    def record(self: torch.nn.Module, *args: Any, **settings: Any) -> None:
        made.append(type(self).__name__)
        build(self, *args, **settings)

    monkeypatch.setattr(torch.nn.Module, "__init__", record)
    torch.nn.Identity()
    assert made == ["Identity"]
    config = workspace.finetuning()
    config["model"]["init_args"]["network"]["init_args"]["name_or_path"] = str(tmp_path / "not-there")
    inspect(config, tmp_path, "--batches", "2", "--show", "3", "--data.batch_size", "4")
    assert made == ["Identity"]
    output = capsys.readouterr().out
    assert number(output, "sequences") == 8 and output.count("and 1 more sequences") == 2


def test_fine_tuning_rows_have_their_labels_in_words_and_their_lines(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sample i of the validation rows is line i + 1 of its file, whichever are asked for."""
    arguments = ("--split", "validation", "--samples", "[4,0,12]", "--out", str(tmp_path / "there" / "page.html"))
    inspect(workspace.finetuning(), tmp_path, *arguments)
    output = capsys.readouterr().out
    names = ("code", "prose", "verse")
    for sample in (4, 0, 12):
        assert re.search(rf"^sample {sample} · \d+ tokens · label: {names[sample % 3]} · from ", output, re.MULTILINE)
        assert re.search(rf"^sample {sample} .*validation.jsonl.*\b{sample + 1}\b", output, re.MULTILINE)
    assert "to predict" not in output and number(output, "sequences") == 3
    assert f"written: {tmp_path / 'there' / 'page.html'}" in output
    assert "label: prose" in "".join(Page(tmp_path / "there" / "page.html").words)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("classes", r"label: (code|prose|verse) · from .*jsonl"),
        ("values", r"label: \d+(\.\d+)? · from"),
        ("labels", r"label: (\(none of the labels\)|(model|loss|the)(, (model|loss|the))*) · from"),
        ("tags", r"from .*jsonl"),
        ("answers", r"answer: (none in this window|[a-z]+ [a-z]+) · from"),
        ("choices", r"label: choice [1-4] of [2-4](, the right one)? · from"),
    ],
)
def test_every_task_is_shown_with_and_without_labels(
    name: str, told: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(workspace, tmp_path / "rows", name)
    page = inspect(config, tmp_path, "--split", "validation", "--batches", "4", "--show", "null")
    output = capsys.readouterr().out
    headings = [line for line in output.splitlines() if line.startswith("sample ")]
    assert len(headings) == number(output, "sequences") >= 8
    assert all(re.search(told, line) for line in headings), headings
    assert ("⟨B-x⟩" in output and "⟨O⟩" in output) == (name == "tags")
    assert Page(page).tags["section"] == len(headings)
    assert (Page(page).tags["mark"] > 0) == (name == "answers") and (Page(page).tags["sub"] > 0) == (name == "tags")

    inspect(config, tmp_path, "--split", "predict")
    output = capsys.readouterr().out
    assert not re.search(r"label: (?!choice)|the right one|⟨|answer: [a-z]+ [a-z]+ ·", output)
    assert "predict split" in output


def test_colours_are_for_terminals(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file or a pipe gets no escape sequences unless they are asked for."""
    inspect(workspace.distillation(), tmp_path)
    plain = capsys.readouterr().out
    inspect(workspace.distillation(), tmp_path, "--color", "always")
    coloured = capsys.readouterr().out
    assert "\x1b" not in plain and re.sub(r"\x1b\[[\d;]+m", "", coloured) == plain
    codes = {re.search(rf"\x1b\[([\d;]+)m⟦[^⟧]*{end}⟧", coloured)[1] for end in ("<mask>", "↺", "other")}  # type: ignore[index]
    assert len(codes) == 3


def test_samples_are_found_again_by_their_numbers(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a split that is evaluated on some of its sequences: the numbers are the whole split's."""

    def shown(*more: str) -> list[str]:
        settings = ("--split", "validation", "--show", "null", "--data.max_eval_sequences", "4")
        inspect(workspace.pretraining(), tmp_path, *settings, *more)
        return re.findall(r"^sample .*\n(?:  .*\n)+", capsys.readouterr().out, re.MULTILINE)

    batch = shown()
    assert len(batch) == 4 and int(batch[3].split()[1]) > 4
    assert shown("--samples", f"[{batch[3].split()[1]},{batch[1].split()[1]}]") == [batch[3], batch[1]]
    # evaluation has the same masks in every epoch, and training others
    assert shown("--samples", f"[{batch[3].split()[1]}]", "--epoch", "1") == [batch[3]]
    (first,), (other,) = (shown("--split", "train", "--samples", "[4]", "--epoch", epoch) for epoch in "01")
    assert other != first and other.split()[:4] == first.split()[:4]


def test_data_can_be_looked_at_before_there_is_a_model(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect({"data": workspace.text_data()}, tmp_path, "--show", "0")
    output = capsys.readouterr().out
    assert number(output, "sequences") == 8 and "and 8 more sequences" in output and "│" not in output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--step", "2", "--split", "validation"], "step 2: only training has steps"),
        (["--samples", "[0,100000]"], "samples: no sample 100000; the train split has 0 to"),
        (["--samples", "[0]", "--batches", "2"], "samples: give either samples, or batches and step"),
        (["--batches", "0"], "batches must be at least 1, got 0"),
        (["--out", "page.pdf"], "out must be a file that ends in .html, got 'page.pdf'"),
        (["--split", "test"], "data.source: it gives no test split"),
        (["--split", "training"], "split"),
        (["--data.tokenizer", "not-there"], "data.tokenizer: no tokenizer 'not-there'"),
        (["--data.max_lenght", "4"], "did you mean 'max_length'?"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], told: str, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = workspace.pretraining()
    del config["data"]["init_args"]["source"]["init_args"]["test"]
    with pytest.raises(SystemExit) as stop:
        inspect(config, tmp_path, *arguments)
    error = capsys.readouterr().err.split("lit-distil: error: ")[1]
    assert stop.value.code == 2 and told in error and len(error.splitlines()) == 1
