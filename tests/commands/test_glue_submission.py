"""The leaderboard's files: their names, their words, and where the rows come from."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lit_distil.commands import glue, glue_run
from lit_distil.commands.glue_run import GlueRun
from lit_distil.commands.glue_submission import submission_lines, write_submission
from lit_distil.commands.glue_tasks import TASKS
from lit_distil.commands.report.statistics import Summary, summarise
from tests.commands.test_glue import CONFIGS, write_rows
from tests.commands.test_seeds import a_run
from tests.workspace import Workspace, fit

ENTAILS = {"entailment", "neutral", "contradiction"}
WORDS = {
    "CoLA": {"0", "1"},
    "SST-2": {"0", "1"},
    "MRPC": {"0", "1"},
    "STS-B": {"0.000", "5.000", "2.345"},
    "QQP": {"0", "1"},
    "MNLI-m": ENTAILS,
    "MNLI-mm": ENTAILS,
    "QNLI": {"entailment", "not_entailment"},
    "RTE": {"entailment", "not_entailment"},
    "WNLI": {"0", "1"},
    "AX": ENTAILS,
}
"""What stands in each file of a submission (gluebenchmark.com, FAQ, and its sample submission)."""


def predicted(wanted: GlueRun, task: str, seed: int, name: str, rows: list[dict[str, Any]]) -> None:
    """What a process would have predicted; one text holds a character that ends lines elsewhere."""
    file = wanted.folder(task, seed) / name / "predictions.jsonl"
    file.parent.mkdir(parents=True)
    numbered = [{"sample": number, "sentence": "two\u2028lines\x85", **row} for number, row in enumerate(rows)]
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in numbered), encoding="utf-8")


def all_predicted(wanted: GlueRun, seed: int) -> None:
    for task, known in TASKS.items():
        labels = wanted.recipe(task)["data"]["init_args"]["task"]["init_args"].get("labels")
        values = [{"value": value} for value in (-0.2, 5.3, 2.3451)]
        rows = [{"label": label} for label in labels] if labels else values
        names = [known.submission, *([known.second[2], "AX"] if known.second else [])]
        for name in names:
            predicted(wanted, task, seed, f"test-{name}", rows)


def scored(*scores: float) -> dict[str, Summary]:
    return summarise({str(seed): {"score": score} for seed, score in enumerate(scores, start=1)})


def test_all_nine_tasks_give_the_eleven_files_of_the_leaderboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = GlueRun("x", list(TASKS), [1, 2], tmp_path)
    all_predicted(wanted, 2)  # the better seed's alone are there, and nothing could make others
    assert not write_submission(wanted, dict.fromkeys(TASKS, scored(0.5, 0.75)))
    for name, words in WORDS.items():
        lines = (tmp_path / f"submission/{name}.tsv").read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines]
        assert cells[0] == ["index", "prediction"] and [cell[0] for cell in cells[1:]] == ["0", "1", "2"][: len(words)]
        assert {cell[1] for cell in cells[1:]} == words, name
    with zipfile.ZipFile(tmp_path / "submission.zip") as packed:
        assert sorted(packed.namelist()) == sorted(f"{name}.tsv" for name in WORDS)
    assert capsys.readouterr().out == f"written: {tmp_path / 'submission.zip'}\n"


def test_a_submission_of_some_tasks_says_what_it_lacks_and_keeps_no_file_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = GlueRun("x", ["rte"], [1], tmp_path)
    predicted(wanted, "rte", 1, "test-RTE", [{"label": "entailment"}])
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission/CoLA.tsv").touch()
    assert not write_submission(wanted, {"rte": scored(0.5)})
    with zipfile.ZipFile(tmp_path / "submission.zip") as packed:
        assert packed.namelist() == ["RTE.tsv"]
    shown = capsys.readouterr().out
    assert "CoLA.tsv, " in shown and "AX.tsv" in shown and "RTE.tsv" not in shown and "wants all" in shown


def test_submissions_speak_the_leaderboards_words() -> None:
    words = ["entailment", "not_entailment"]
    rows = [{"sample": 0, "label": "not_entailment"}, {"sample": 1, "label": "entailment"}]
    assert submission_lines("rte", rows, words) == ["index\tprediction", "0\tnot_entailment", "1\tentailment"]
    assert submission_lines("wnli", rows, words) == ["index\tprediction", "0\t1", "1\t0"]
    values = [{"sample": 0, "value": 5.21}, {"sample": 1, "value": 2.0}]
    assert submission_lines("stsb", values, []) == ["index\tprediction", "0\t5.000", "1\t2.000"]
    with pytest.raises(ValueError, match="row 1 is missing"):
        submission_lines("rte", [rows[0], {"sample": 2, "label": "entailment"}], words)


def test_a_mismatched_half_that_is_not_predicted_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_distil.commands.jobs.call", a_run({1: 0.5}))
    monkeypatch.setattr(glue_run, "call", lambda arguments, log: 1)
    assert not glue.glue(GlueRun("x", ["mnli"], [1], tmp_path))
    found = json.loads((tmp_path / "glue.json").read_text())
    assert found["failed"] == ["MNLI, seed 1: accuracy_mismatched (no predictions)"]
    assert found["tasks"]["mnli"]["accuracy"]["median"] == 0.75
    assert "predicting validation-mismatched failed (exit status 1)" in capsys.readouterr().out

    write_rows(tmp_path / "data", "mnli")
    (tmp_path / "data/mnli/validation_mismatched.jsonl").unlink()
    assert glue.glue(GlueRun("x", ["mnli"], [1], tmp_path / "without", data=tmp_path / "data"))
    assert "no validation_mismatched in the local files" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tables", "saved"])
def test_every_half_of_mnli_and_the_diagnostic_rows_are_read_by_arguments_alone(
    kind: str, workspace: Workspace, tmp_path: Path
) -> None:
    """With the labels by name, as the Hub has them, and the test rows unlabelled."""
    import datasets

    data = tmp_path / "data"
    write_rows(data, "mnli")
    (data / "ax").mkdir()
    (data / "mnli/test_matched.jsonl").rename(data / "ax/test.jsonl")
    if kind == "saved":
        names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        for task in ("mnli", "ax"):
            files = {file.stem: file for file in (data / task).glob("*.jsonl")}
            rows = {name: [json.loads(row) for row in file.open()] for name, file in files.items()}
            saved = {name: datasets.Dataset.from_list(of).cast_column("label", names) for name, of in rows.items()}
            datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved" / task)
        data = tmp_path / "saved"
    wanted = GlueRun(workspace.teacher, ["mnli"], [1], tmp_path / "out", data=data, recipes=CONFIGS)
    base = [*wanted.arguments("mnli"), "--data.max_length", "48"]
    folder = ["--trainer.default_root_dir", str(tmp_path / "run")]
    run = fit({}, tmp_path / "run", *base, "--model.network.name_or_path", workspace.teacher, *folder)
    network = ["--model.network.name_or_path", str(run / "export")]
    sources = {
        "mismatched": wanted.split("mnli", "validation", second=True),
        "test": wanted.split("mnli", "test", second=True),
        "diagnostic": wanted.diagnostic(),
    }
    for name, source in sources.items():
        folder = ["--trainer.default_root_dir", str(tmp_path / name)]
        fit({}, tmp_path / name, *base, *network, *source, *folder, command="predict")
        rows = [json.loads(row) for row in (tmp_path / name / "predictions.jsonl").open(encoding="utf-8")]
        assert len(rows) == 6 and all(row["label"] in ENTAILS for row in rows)
        assert all(("gold" in row) == (name == "mismatched") for row in rows)


def test_the_diagnostic_rows_of_the_hub_stand_beside_the_tasks(tmp_path: Path) -> None:
    wanted = GlueRun("x", ["mnli"], [1], tmp_path)
    assert wanted.diagnostic() == ["--data.source.config", "ax", "--data.source.splits", '{"predict": "test"}']
    assert wanted.split("mnli", "test", second=True)[1] == '{"predict": "test_mismatched"}'
    assert not GlueRun("x", ["mnli"], [1], tmp_path, data=tmp_path).diagnostic()
