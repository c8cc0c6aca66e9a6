from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from lit_distil.commands import diagnose
from lit_distil.commands.diagnose import Prediction, calibrate, read_predictions

CLASSES = ["code", "prose", "verse"]


def made_rows(count: int = 200) -> list[dict]:
    """Rows of a classifier that is mostly right, with a rare class and `|` in the texts."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = int(draw.choice(3, p=[0.6, 0.35, 0.05]))
        logits = draw.normal(size=3) * 1.5
        logits[label] += 1.0
        values = np.exp(logits) / np.exp(logits).sum()
        rows.append(
            {
                "sample": i,
                "text": f"row {i} | <b>",
                "gold": CLASSES[label],
                "label": CLASSES[int(values.argmax())],
                "probabilities": dict(zip(CLASSES, values.tolist(), strict=True)),
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_numbers_are_those_of_scikit_learn_and_are_in_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made_rows()
    file = write(tmp_path / "predictions.jsonl", rows)
    diagnose.run(["--predictions", file, "--out", str(tmp_path / "out"), "--examples", "5", "--title", "A <title>"])
    numbers = json.loads((tmp_path / "out/diagnosis.json").read_text())
    labels, predicted = [row["gold"] for row in rows], [row["label"] for row in rows]
    probabilities = [list(row["probabilities"].values()) for row in rows]
    assert numbers["confusion"] == confusion_matrix(labels, predicted, labels=CLASSES).tolist()
    assert numbers["mean_wrongness"] == pytest.approx(log_loss(labels, probabilities, labels=CLASSES))
    losses = [-math.log(row["probabilities"][row["gold"]]) for row in rows]
    expected = sorted(range(len(rows)), key=lambda i: -losses[i])[:5]
    assert [row["sample"] for row in numbers["most_wrong"]] == expected
    assert numbers["most_wrong"][0]["wrongness"] == pytest.approx(max(losses)) and max(losses) > 2

    text = (tmp_path / "out/diagnosis.md").read_text()
    table = [line.split("|") for line in text.splitlines() if line.startswith(tuple(f"| {name} " for name in CLASSES))]
    by_class = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in table if len(cells) == 7}
    scores = precision_recall_fscore_support(labels, predicted, labels=CLASSES, zero_division=0)
    for index, name in enumerate(CLASSES):
        assert by_class[name][1:] == [f"{100 * scores[kind][index]:.1f}" for kind in range(3)]
    assert f"row {expected[0]} \\| <b>" in text
    html = (tmp_path / "out/diagnosis.html").read_text()
    assert html.count("data:image/png;base64,") == 2
    assert f"row {expected[0]} | &lt;b&gt;" in html and "A &lt;title&gt;" in html
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert f"{100 * numbers['expected_calibration_error']:.1f} points in 10 bins" in capsys.readouterr().out


def test_the_calibration_error_follows_its_definition_and_every_row_is_in_one_bin() -> None:
    draw = np.random.default_rng(1)
    confidences = np.concatenate([draw.uniform(0.3, 1.0, 300), [0.0, 0.1, 0.5, 1.0]])
    right = draw.uniform(size=304) < confidences**2
    found = calibrate(confidences, right, bins=10)
    assert sum(one["rows"] for one in found.filled_bins) == 304
    expected, largest = 0.0, 0.0
    for index in range(10):
        inside = (confidences > index / 10) & (confidences <= (index + 1) / 10)
        if index == 0:
            inside |= confidences == 0
        if inside.any():
            gap = abs(right[inside].mean() - confidences[inside].mean())
            expected += gap * inside.sum() / 304
            largest = max(largest, gap)
    assert found.expected_error == pytest.approx(expected) and expected > 0.05
    assert found.largest_error == pytest.approx(largest)
    sure = calibrate(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]), bins=5)
    assert sure.expected_error == 0


def test_confusions_are_ranked_and_right_predictions_are_neither_confusions_nor_examples(tmp_path: Path) -> None:
    rows = made_rows()
    found = read_predictions(write(tmp_path / "p.jsonl", rows))
    num_wrong = sum(row["label"] != row["gold"] for row in rows)
    ranked = found.confusion.commonest(99)
    assert ranked == sorted(ranked, key=lambda row: -row[2]) and len(ranked) > 3
    assert sum(count for _, _, count in ranked) == num_wrong > 0
    assert found.confusion.commonest(2) == ranked[:2]
    assert len(found.worst(1000)) == num_wrong and not any(one.right for one in found.worst(1000))


def test_a_text_may_be_in_a_column_named_sample(tmp_path: Path) -> None:
    rows = [{**row, "sample": row["text"]} for row in made_rows(4)]
    for row in rows:
        del row["text"]
    found = read_predictions(write(tmp_path / "p.jsonl", rows)).all
    assert [one.text for one in found] == [row["sample"] for row in rows]
    assert [one.sample for one in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": None}, r"p\.jsonl:3: no 'gold'; predict on a labelled split"),
        ({"gold": "drama"}, r"p\.jsonl:3: gold 'drama' is not one of the classes \['code'"),
        ({"label": None}, r"p\.jsonl:3: no 'label'"),
        ({"probabilities": None}, r"p\.jsonl:3: no 'probabilities' by the names of the classes"),
        ({"probabilities": {"code": 1.0}}, r"p\.jsonl:3: probabilities of \['code'\], and the first row has"),
        ({"probabilities": {"code": 1.0, "prose": 0.5, "verse": 0}}, r"p\.jsonl:3: .*add up to 1, got a sum of 1\.5"),
    ],
)
def test_a_bad_row_is_named(change: dict, message: str, tmp_path: Path) -> None:
    rows = made_rows(4)
    rows[2].update(change)
    with pytest.raises(ValueError, match=message):
        read_predictions(write(tmp_path / "p.jsonl", rows))


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"predictions: no file at .*lit-distil predict"):
        diagnose.diagnose(str(tmp_path / "absent.jsonl"), str(tmp_path))
    file = write(tmp_path / "p.jsonl", made_rows(3))
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        diagnose.diagnose(file, str(tmp_path), bins=0)
    with pytest.raises(ValueError, match="examples must be at least 0, got -1"):
        diagnose.diagnose(file, str(tmp_path), examples=-1)
    with pytest.raises(ValueError, match="holds no rows"):
        read_predictions(write(tmp_path / "empty.jsonl", []))


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
    "words": Prediction("New »York«", "I-x", "O", False, 0.8, -math.log(0.2)),
    "labels": Prediction("one", "q", "not q", False, 0.7, -math.log(0.3)),
    "values": Prediction("one ‖ two", "4", "2.5", None, None, 1.5),
    "questions": Prediction("where", "Paris", "(none)", False, 0.6, 1.6, sample=1),
    "choices": Prediction("c", "y", "x", False, 0.9, -math.log(0.1)),
}


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"sample": number, **row} for number, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ROWS)
def test_predictions_of_every_task_are_read_as_one_kind_of_row(kind: str, tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path / "p.jsonl", numbered(ROWS[kind])))
    assert found.unit == kind
    assert found.right.tolist() == RIGHT[kind] and len(found.confidences) == len(RIGHT[kind])
    first = found.worst(9)[0]
    expected = WORST[kind]
    assert replace(first, wrongness=0, confidence=0) == replace(expected, wrongness=0, confidence=0)
    assert first.wrongness == pytest.approx(expected.wrongness) and first.confidence == pytest.approx(
        expected.confidence
    )
    assert all(one.right is not True for one in found.worst(9))


@pytest.mark.parametrize("kind", ROWS)
def test_the_command_writes_what_each_task_has(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "p.jsonl", numbered(ROWS[kind]))
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
        theirs = confusion_matrix(gold, tags, labels=numbers["classes"])
        assert numbers["confusion"] == theirs.tolist() and theirs.sum() == 4


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("words", {"gold": None}, r"p\.jsonl:2: no 'gold'; predict on a labelled split"),
        ("choices", {"label": None}, r"p\.jsonl:2: not a prediction of choices"),
        ("questions", {"answer": "x", "n_best": 3}, r"p\.jsonl:2: not a prediction of questions"),
    ],
)
def test_a_bad_row_of_any_task_is_named(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    first, second, *_ = ROWS[kind]
    with pytest.raises(ValueError, match=message):
        diagnose.diagnose(write(tmp_path / "p.jsonl", numbered([first, {**second, **change}])), str(tmp_path / "out"))
