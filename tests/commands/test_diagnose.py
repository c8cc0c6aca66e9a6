from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from lit_distil.commands import diagnose
from lit_distil.commands.diagnose import calibration, commonest_confusions, read_predictions, worst

CLASSES = ["code", "prose", "verse"]


def made_rows(count: int = 200) -> list[dict]:
    """Rows of a classifier that is right more often than not, with ties, a class seldom met, and `|` in a text."""
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


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_numbers_are_those_of_scikit_learn_and_the_files_hold_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made_rows()
    file = write(tmp_path / "predictions.jsonl", rows)
    diagnose.run(["--predictions", file, "--out", str(tmp_path / "out"), "--examples", "5", "--title", "A <title>"])
    numbers = json.loads((tmp_path / "out/diagnosis.json").read_text())
    labels, predicted = [row["gold"] for row in rows], [row["label"] for row in rows]
    probabilities = [list(row["probabilities"].values()) for row in rows]
    assert numbers["confusion"] == confusion_matrix(labels, predicted, labels=CLASSES).tolist()
    assert numbers["loss"] == pytest.approx(log_loss(labels, probabilities, labels=CLASSES))
    losses = [-math.log(row["probabilities"][row["gold"]]) for row in rows]
    expected = sorted(range(len(rows)), key=lambda i: -losses[i])[:5]
    assert [row["sample"] for row in numbers["most_wrong"]] == expected
    assert numbers["most_wrong"][0]["loss"] == pytest.approx(max(losses)) and max(losses) > 2

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


def test_calibration_error_is_the_definition_and_every_row_is_in_one_bin() -> None:
    draw = np.random.default_rng(1)
    confidences = np.concatenate([draw.uniform(0.3, 1.0, 300), [0.0, 0.1, 0.5, 1.0]])
    right = draw.uniform(size=304) < confidences**2
    found = calibration(confidences, right, bins=10)
    assert found.counts.sum() == 304
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
    sure = calibration(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]), bins=5)
    assert sure.expected_error == 0


def test_confusions_are_ranked_without_what_is_right(tmp_path: Path) -> None:
    found = read_predictions(write(tmp_path / "p.jsonl", made_rows()))
    ranked = commonest_confusions(found, 3)
    assert ranked == sorted(ranked, key=lambda row: -row[2]) and len(ranked) == 3
    assert all(actual != taken_for for actual, taken_for, _ in ranked)
    assert len(worst(found, 1000)) == len(found)


def test_a_text_may_stand_in_a_column_named_sample(tmp_path: Path) -> None:
    rows = [{**row, "sample": row["text"]} for row in made_rows(4)]
    for row in rows:
        del row["text"]
    found = read_predictions(write(tmp_path / "p.jsonl", rows))
    assert found.texts == [row["sample"] for row in rows] and found.samples == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": None}, r"p\.jsonl:3: no 'gold'; predict on a labelled split"),
        ({"gold": "drama"}, r"p\.jsonl:3: gold 'drama' is none of the classes \['code'"),
        ({"label": None}, r"p\.jsonl:3: no 'label'"),
        ({"probabilities": None}, r"p\.jsonl:3: no probabilities by class"),
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
    with pytest.raises(ValueError, match="examples must not be negative, got -1"):
        diagnose.diagnose(file, str(tmp_path), examples=-1)
    with pytest.raises(ValueError, match="holds no rows"):
        read_predictions(write(tmp_path / "empty.jsonl", []))
