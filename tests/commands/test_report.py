from __future__ import annotations

import base64
import json
import math
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_distil.commands.benchmark.latency import NetworkBenchmark, Quartiles
from lit_distil.commands.pages import to_markdown
from lit_distil.commands.report import command
from lit_distil.commands.report.entries import (
    Comparison,
    Entry,
    EntryResult,
    Floors,
    MaskedLMScore,
    Results,
    TaskScore,
    findings,
    unigram_loss,
)
from lit_distil.data import FullSentences, TextDataModule, TextFiles, TokenMasking
from tests.commands.examples import LABELS, finished_run, make_tokenizer, write_rows, write_texts

PROJECT = Path(__file__).parents[2]
PICTURES = ("curves.png", "quality_latency.png", "test_confusion.png")
ANY_DATA = SimpleNamespace()  # is not looked at before the checks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One report of four tiny networks, made as the command line makes it, from YAML."""
    root, tokenizer = tmp_path_factory.mktemp("report"), make_tokenizer()
    tokenizer.save_pretrained(root / "tokenizer")
    curve = [(9, 5.5), (10, None), (19, 5.25)]
    finished_run(root / "teacher", tokenizer, seed=0, layers=2, losses=curve)
    finished_run(root / "student", tokenizer, seed=1, layers=1, losses=curve)
    finished_run(root / "control", tokenizer, seed=2, layers=1)
    finished_run(root / "task-teacher", tokenizer, seed=3, layers=2, classifies=True)
    finished_run(root / "task-student", tokenizer, seed=4, layers=1, classifies=True)
    finished_run(root / "task-bare", tokenizer, seed=5, layers=1, classifies=True)
    texts, rows, cache = write_texts(root), write_rows(root), str(root / "cache")

    def data(**settings):
        common = {"tokenizer": str(root / "tokenizer"), "cache_dir": cache}
        return {"class_path": "lit_distil.data.TextDataModule", "init_args": {**common, **settings}}

    config = {
        "title": "Tiny <networks>",
        "out": str(root / "out"),
        "teacher": "teacher",
        "entries": {
            "teacher": _entry("Teacher", root / "teacher", root / "task-teacher"),
            "student": _entry("Student", root / "student", root / "task-student"),
            "control": _entry("Control", root / "control", None),
            "bare": _entry("Bare", None, root / "task-bare"),
        },
        "comparisons": [
            {"label": "student vs control", "a": "student", "b": "control"},
            {"label": "student vs teacher", "a": "student", "b": "teacher"},
            {"label": "control vs bare", "a": "control", "b": "bare"},
        ],
        "masked_lm_data": data(
            source={"class_path": "lit_distil.data.TextFiles", "init_args": texts},
            format={"class_path": "lit_distil.data.FullSentences"},
            masking={"class_path": "lit_distil.data.TokenMasking", "init_args": {"rate": 0.3}},
            max_length=32,
            eval_batch_size=4,
        ),
        "task_data": data(
            source={"class_path": "lit_distil.data.TableFiles", "init_args": rows},
            task={"class_path": "lit_distil.tasks.TextClassification"},
            max_length=32,
            eval_batch_size=5,
        ),
        "length": 8,
        "batch_size": 2,
        "repeats": 3,
    }
    path = root / "report.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        command.run(["--config", str(path)])
    return SimpleNamespace(
        warnings=[str(one.message) for one in caught],
        root=root,
        out=root / "out",
        numbers=json.loads((root / "out" / "report.json").read_text()),
        texts=texts,
        rows=rows,
        config=path,
    )


def _entry(label, pretrained, finetuned):
    return {
        "label": label,
        "pretrained": str(pretrained) if pretrained else None,
        "finetuned": str(finetuned) if finetuned else None,
    }


@pytest.fixture(scope="module")
def masked_sequences(made):
    """[(ids of one sequence, positions to predict in it, original ids there)] of the test split."""
    files = TextFiles(made.texts["train"], validation=made.texts["validation"], test=made.texts["test"])
    data = TextDataModule(
        str(made.root / "tokenizer"),
        files,
        format=FullSentences(),
        masking=TokenMasking(rate=0.3),
        max_length=32,
        cache_dir=str(made.root / "cache"),
    )
    data.prepare_data()
    data.setup("test")
    found = []
    for sample in range(len(data.datasets["test"])):
        batch = data.datasets["test"].collate(np.array([sample]), np.array([0]))
        found.append((batch.input_ids, batch.masked_positions, batch.masked_labels))
    assert sum(len(labels) for _, _, labels in found) > 10
    return found


@pytest.mark.parametrize("key", ["teacher", "student", "control"])
def test_the_masked_lm_loss_is_that_of_transformers_own_model_in_a_plain_loop(made, masked_sequences, key):
    model = AutoModelForMaskedLM.from_pretrained(made.root / key / "export").eval()
    losses, correct = [], []
    with torch.no_grad():
        for ids, positions, labels in masked_sequences:
            logits = model(input_ids=ids).logits[0, positions]
            losses += cross_entropy(logits, labels, reduction="none").tolist()
            correct += (logits.argmax(-1) == labels).tolist()
    score = made.numbers["entries"][key]["masked_lm"]
    assert score["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert score["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert score["accuracy"] == pytest.approx(sum(correct) / len(correct))
    assert made.numbers["floors"]["num_masked"] == len(losses)


@pytest.mark.parametrize("name", ["teacher", "student", "bare"])
def test_the_task_scores_are_those_of_transformers_own_model_in_a_plain_loop(made, name):
    folder = made.root / f"task-{name}" / "export"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in Path(made.rows["test"]).read_text().splitlines()]
    truth = [LABELS.index(row["label"]) for row in rows]
    with torch.no_grad():
        inputs = [tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=32) for row in rows]
        logits = torch.cat([model.eval()(**one).logits for one in inputs])
    guesses = logits.argmax(-1).tolist()
    score = made.numbers["entries"][name]["task"]
    accuracy = np.mean([a == b for a, b in zip(guesses, truth, strict=True)])
    assert score["accuracy"] == pytest.approx(accuracy)
    assert score["macro_f1"] == pytest.approx(macro_f1(truth, guesses), abs=1e-6)
    assert score["loss"] == pytest.approx(cross_entropy(logits, torch.tensor(truth)).item(), rel=1e-5)
    assert score["accuracy_error"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / len(rows)))


def macro_f1(truth: list[int], guesses: list[int]) -> float:
    scores = []
    for label in range(len(LABELS)):
        hits = sum(a == b == label for a, b in zip(truth, guesses, strict=True))
        scores.append(2 * hits / (truth.count(label) + guesses.count(label)))
    return sum(scores) / len(scores)


def test_each_network_has_a_confusion_matrix_of_the_test_rows(made):
    rows = Counter(json.loads(line)["label"] for line in Path(made.rows["test"]).read_text().splitlines())
    for key in ("teacher", "student", "bare"):
        entry = made.numbers["entries"][key]
        assert entry["confusion"]["classes"] == LABELS
        counts = np.array(entry["confusion"]["counts"])
        assert dict(zip(LABELS, counts.sum(1).tolist(), strict=True)) == rows
        assert np.trace(counts) / counts.sum() == pytest.approx(entry["task"]["accuracy"])
    assert made.numbers["entries"]["control"]["confusion"] is None
    page = (made.out / "report.md").read_text()
    assert "## What is mistaken for what\n\n![test confusion](test_confusion.png)" in page


def test_the_floors_are_token_frequencies_of_the_training_text_and_the_commonest_class(made, masked_sequences):
    tokenizer = AutoTokenizer.from_pretrained(made.root / "tokenizer")
    lines = [line for line in Path(made.texts["train"]).read_text().split("\n") if line]
    # units are told apart by a space, as they stand in the corpus
    counts = Counter(int(i) for line in lines for i in tokenizer(line, add_special_tokens=False)["input_ids"])
    total = sum(counts.values()) + len(tokenizer)
    labels = [int(label) for _, _, labels in masked_sequences for label in labels]
    expected = -sum(math.log((counts[label] + 1) / total) for label in labels) / len(labels)
    floors = made.numbers["floors"]
    assert floors["unigram_loss"] == pytest.approx(expected, abs=0.02)
    assert floors["num_rows"] == 12
    assert floors["majority_accuracy"] == pytest.approx(8 / 12)


def test_unigram_loss_by_hand():
    # ids 0 to 3 with counts 3, 1, 0 and, past the end of the table, 0: frequencies 4/8, 2/8, 1/8, 1/8
    labels = np.array([0, 1, 3, 3])
    expected = math.log(2) / 4 + math.log(4) / 4 + 2 * math.log(8) / 4
    assert unigram_loss(np.array([3, 1, 0]), labels, vocabulary_size=4) == pytest.approx(expected)


def test_what_is_derived_follows_from_what_was_measured(made):
    entries = made.numbers["entries"]
    teacher, student, control, bare = (entries[key] for key in ("teacher", "student", "control", "bare"))
    assert student["share_of_teacher_accuracy"] == student["task"]["accuracy"] / teacher["task"]["accuracy"]
    assert student["loss_difference_to_teacher"] == student["masked_lm"]["loss"] - teacher["masked_lm"]["loss"]
    assert control["task"] is None and control["share_of_teacher_accuracy"] is None
    assert bare["masked_lm"] is None and bare["loss_difference_to_teacher"] is None
    assert teacher["network"]["encoder_parameters"] > student["network"]["encoder_parameters"]
    assert teacher["network"]["latency_ratio"] == 1
    assert student["curve"] == [[10, 5.5], [20, 5.25]]


def test_findings_tell_the_measured_sign(made):
    entries, (first, second, third) = made.numbers["entries"], made.numbers["findings"]
    difference = entries["student"]["masked_lm"]["loss"] - entries["control"]["masked_lm"]["loss"]
    assert abs(difference) > 0.01
    sign = "lower" if difference < 0 else "higher"
    assert first == f"student vs control: the loss is {abs(difference):.2f} nats {sign}"
    assert "accuracy is" in second and "the loss is" in second
    assert third == "control vs bare: not measured on the same data"


def test_nobody_is_warned_of_what_they_cannot_change(made):
    assert not [one for one in made.warnings if "LeafSpec" in one or "many workers" in one]


def test_the_table_has_every_entry_in_order_and_its_columns_stand_under_each_other(made, capsys):
    lines = [line for line in (made.out / "report.md").read_text().split("\n") if line.startswith("|")]
    table = lines[:7]
    assert [line.split("|")[1].strip() for line in table[2:6]] == ["Teacher", "Student", "Control", "Bare"]
    assert len({len(line) for line in table}) == 1
    loss = made.numbers["entries"]["control"]["masked_lm"]["loss"]
    assert f" {loss:.3f} " in table[4]
    assert f" {made.numbers['floors']['unigram_loss']:.3f} " in table[6]


def test_the_page_is_one_wellformed_file_with_its_pictures_in_it(made):
    page = (made.out / "report.html").read_text()
    parser = _Checker()
    parser.feed(page)
    assert not parser.open
    assert "Tiny &lt;networks&gt;" in page
    assert "script" not in parser.seen
    # the table; mistakes; what else was measured; published, and the two that were fine-tuned beside it
    counts = sum(
        np.array(made.numbers["entries"][key]["confusion"]["counts"]) for key in ("teacher", "student", "bare")
    )
    num_mistakes = np.count_nonzero(counts - np.diag(np.diag(counts)))
    assert parser.seen["tr"] == (1 + 5) + (1 + 3 * num_mistakes) + (1 + 4) + (1 + 3)
    pictures = [dict(attributes)["src"] for attributes in parser.images]
    decoded = [base64.b64decode(picture.removeprefix("data:image/png;base64,")) for picture in pictures]
    assert decoded == [(made.out / name).read_bytes() for name in PICTURES]


class _Checker(HTMLParser):
    """Counts tags and minds that each is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.images = [], Counter(), []

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        if tag == "img":
            self.images.append(attrs)
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_it_ran_on_is_kept(made):
    hardware = made.numbers["hardware"]
    assert hardware["torch"] == torch.__version__
    assert hardware["cores"] >= 1 and hardware["cpu"]
    assert hardware["seed"] == 1


def test_a_network_fine_tuned_for_other_classes_is_refused_rather_than_scored(made, tmp_path):
    config = yaml.safe_load(made.config.read_text())
    config["task_data"]["init_args"]["task"]["init_args"] = {"labels": ["water", "land"]}
    path = tmp_path / "report.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"classes \['water', 'land'\] are not those .*\['land', 'water'\]"):
        command.run(["--config", str(path)])


def test_the_demos_report_parses_and_tells_every_run_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run `make demo` first") as caught:
        command.run(["--config", str(PROJECT / "configs" / "demo" / "report.yaml")])
    message = str(caught.value)
    runs = ["teacher", "student-soft", "student-mlm", "student-mlm-time", "student-hard", "student-random"]
    runs += ["task-teacher", "task-soft", "task-mlm", "task-hard", "task-unpretrained"]
    assert message.count("entries.") == len(runs)
    assert all(f": runs/demo/{name}\n" in message + "\n" for name in runs)


def test_without_a_target_each_missing_run_comes_with_its_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    entries = {"a": Entry("A", pretrained="runs/demo/a")}
    with pytest.raises(ValueError, match=r"runs/demo/a  \(lit-distil fit --config configs/demo/a\.yaml\)"):
        command.report(out="out", entries=entries, teacher="a", masked_lm_data=ANY_DATA)


def test_wrong_keys_are_named(tmp_path):
    entries = {"a": Entry("A", pretrained="runs/a")}
    wrong = [Comparison("x", "a", "b")]

    def check(entries, teacher="a", **settings):
        command.report(**{"out": "out", "masked_lm_data": ANY_DATA, **settings}, entries=entries, teacher=teacher)

    with pytest.raises(ValueError, match=r"teacher: no entry 'b'; there are \['a'\]"):
        check(entries, "b")
    with pytest.raises(ValueError, match="'x' names no entry 'b'"):
        check(entries, comparisons=wrong)
    with pytest.raises(ValueError, match=r"entries\.a: give pretrained"):
        check({"a": Entry("A")})
    with pytest.raises(ValueError, match=r"entries\.a\.finetuned: .*task_data"):
        check({"a": Entry("A", finetuned="runs/a")})
    for name in ("out", "masked_lm_data"):
        with pytest.raises(ValueError, match=f"{name}: measuring entries needs it"):
            check(entries, **{name: None})
    with pytest.raises(ValueError, match="runs: give folders of runs"):
        command.report()


def _results(loss_a: float, loss_b: float, accuracy_a: float, accuracy_b: float) -> Results:
    network = NetworkBenchmark("n", 2, 1, 1.0, Quartiles(1, 1, 1), Quartiles(1, 1, 1), 1.0, 1.0, 1.0, 1.0)
    entries = {
        key: EntryResult(key, MaskedLMScore(loss, math.exp(loss), 0.1), TaskScore(acc, 0.03, 0.5, 1.0), network, [])
        for key, loss, acc in (("a", loss_a, accuracy_a), ("b", loss_b, accuracy_b))
    }
    return Results(
        "b",
        entries,
        Floors(100, 6.0, 50, 0.2),
        [Comparison("a vs b", "a", "b")],
        {"length": 8, "batch_size": 2, "repeats": 3, "threads": 1},
        {"cpu": "x", "git_commit": None},
    )


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        (
            (3.11, 3.34, 0.64, 0.63),
            "the loss is 0.23 nats lower; accuracy is 1.0 points higher, within chance (± 8.3)",
        ),
        (
            (3.34, 3.11, 0.5, 0.64),
            "the loss is 0.23 nats higher; accuracy is 14.0 points lower, beyond chance (± 8.3)",
        ),
        (
            (3.0, 3.001, 0.5, 0.5),
            "the loss is the same; accuracy is the same, within chance (± 8.3)",
        ),
    ],
)
def test_a_finding_is_the_first_less_the_second_whichever_way_it_falls(numbers, line):
    assert findings(_results(*numbers)) == [f"a vs b: {line}"]


def test_a_missing_fact_about_the_machine_is_left_out(tmp_path):
    text = to_markdown("T", _results(3.0, 3.1, 0.5, 0.5).sections(tmp_path))
    assert "- cpu: x" in text and "None" not in text
