from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from lit_distil.commands import diagnose
from lit_distil.commands.predictions import Decision, decisions_of

ROWS: dict[str, list[dict[str, Any]]] = {
    "words": [
        {"words": ["New", "York"], "labels": ["B-x", "O"], "probabilities": [0.9, 0.8], "gold": ["B-x", "I-x"]},
        {"words": ["a | b", "c"], "labels": ["O", "B-x"], "probabilities": [0.6, 0.7], "gold": ["O", "O"]},
    ],
    "labels": [
        {"text": "one", "labels": ["p"], "probabilities": {"p": 0.8, "q": 0.3}, "gold": ["p", "q"]},
        {"text": "two", "labels": [], "probabilities": {"p": 0.1, "q": 0.4}, "gold": []},
    ],
    "values": [
        {"s1": "one", "s2": "two", "value": 2.5, "gold": 4.0},
        {"s1": "a", "s2": "b", "value": 1.0, "gold": 0.5},
    ],
    "questions": [
        {"id": "1", "question": "who", "answer": "the cat", "n_best": [{"text": "the cat", "probability": 0.7}]}
        | {"gold": ["Cat"]},
        {"id": "2", "question": "where", "answer": "", "n_best": [{"text": "", "probability": 0.6}], "gold": ["Paris"]},
        {"id": "3", "question": "when", "answer": "in May", "n_best": [{"text": "in May", "probability": 0.2}]}
        | {"gold": ["May"]},
    ],
    "choices": [
        {"context": "c", "label": 0, "choice": "x", "choices": ["x", "y"], "probabilities": [0.9, 0.1], "gold": 1},
        {"context": "d", "label": 1, "choice": "y", "choices": ["x", "y"], "probabilities": [0.2, 0.8], "gold": 1},
    ],
}
RIGHT = {
    "words": [True, False, True, False],
    "labels": [True, False, True, True],
    "values": [],
    "questions": [True, False, False],
    "choices": [False, True],
}
WORST = {
    "words": Decision("New »York«", "I-x", "O", False, 0.8, -math.log(0.2)),
    "labels": Decision("one", "q", "not q", False, 0.7, -math.log(0.3)),
    "values": Decision("one ‖ two", "4", "2.5", None, None, 1.5),
    "questions": Decision("where", "Paris", "(none)", False, 0.6, 1.6),
    "choices": Decision("c", "y", "x", False, 0.9, -math.log(0.1)),
}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps({"sample": n, **row}) + "\n" for n, row in enumerate(rows)))
    return str(file)


@pytest.mark.parametrize("kind", ROWS)
def test_every_task_comes_apart_into_decisions_the_worst_first(kind: str) -> None:
    found = decisions_of([{"sample": n, "__source__": "p:1", **row} for n, row in enumerate(ROWS[kind])])
    assert found is not None and found.what == kind
    assert found.right.tolist() == RIGHT[kind] and len(found.confidences) == len(RIGHT[kind])
    first = found.worst(9)[0]
    expected = WORST[kind]
    assert {**vars(first), "wrongness": 0, "confidence": 0} == {**vars(expected), "wrongness": 0, "confidence": 0}
    assert first.wrongness == pytest.approx(expected.wrongness) and first.confidence == pytest.approx(
        expected.confidence
    )
    assert all(one.right is not True for one in found.worst(9))


@pytest.mark.parametrize("kind", ROWS)
def test_the_command_writes_what_a_task_has(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.jsonl", ROWS[kind])
    diagnose.run(["--predictions", file, "--out", str(tmp_path / "out")])
    numbers = json.loads((tmp_path / "out/diagnosis.json").read_text())
    assert numbers["of"] == kind and len(numbers["most_wrong"]) >= 1
    assert (tmp_path / "out/reliability.png").is_file() == (kind != "values")
    assert (tmp_path / "out/confusion.png").is_file() == (kind == "words")
    page = (tmp_path / "out/diagnosis.html").read_text()
    assert "Most wrong" in page and WORST[kind].text.split()[0] in page
    said = capsys.readouterr().out
    assert ("mean absolute difference: 1.000 on 2 rows" in said) == (kind == "values")
    if kind == "values":
        return
    assert numbers["accuracy"] == pytest.approx(np.mean(RIGHT[kind])) and f"{len(RIGHT[kind])} {kind} (one" in said
    if kind == "words":
        gold, tags = (sum((row[name] for row in ROWS[kind]), []) for name in ("gold", "labels"))
        theirs = sklearn.metrics.confusion_matrix(gold, tags, labels=numbers["classes"])
        assert numbers["confusion"] == theirs.tolist() and theirs.sum() == 4


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("words", {"gold": None}, r"p\.jsonl:2: no 'gold'; predict on a labelled split"),
        ("choices", {"label": None}, r"p\.jsonl:2: not a prediction of choices"),
        ("questions", {"answer": "x", "n_best": 3}, r"p\.jsonl:2: not a prediction of questions"),
    ],
)
def test_a_bad_row_is_named(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    first, second, *_ = ROWS[kind]
    with pytest.raises(ValueError, match=message):
        diagnose.diagnose(write(tmp_path / "p.jsonl", [first, {**second, **change}]), str(tmp_path / "out"))


def test_a_classifiers_rows_are_read_otherwise() -> None:
    row = {"sample": 0, "text": "a", "label": "x", "probabilities": {"x": 1.0}, "gold": "x"}
    assert decisions_of([row]) is None
