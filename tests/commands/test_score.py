from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lit_distil.commands import score
from lit_distil.commands.networks import open_masked_lm
from lit_distil.commands.score import Accuracy, judge, paired_difference, pseudo_likelihoods, read_pairs
from tests.workspace import Workspace

SENTENCES = [
    "The teacher returns a loss.",
    "gradient",
    "Each batch of the student: weights, lossteacher tokens!",
    "a a a",
]


@pytest.fixture(params=["roberta", "bert"])
def folder(request: pytest.FixtureRequest, workspace: Workspace) -> str:
    return workspace.teacher if request.param == "roberta" else workspace.bert_teacher


def padded_scores(folder: str, sentences: list[str], *, within_word: bool) -> list[float]:
    """Scores from plain transformers on padded batches, one token at a time, with the tokenizer's words."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    totals = []
    for sentence in sentences:
        encoding = tokenizer(sentence, return_special_tokens_mask=True)
        ids, words = encoding["input_ids"], encoding.word_ids()
        scored = [i for i, special in enumerate(encoding["special_tokens_mask"]) if not special]
        copies = []
        for position in scored:
            hidden = {position}
            if within_word:
                hidden |= {i for i in scored if i > position and words[i] == words[position]}
            copies.append([tokenizer.mask_token_id if i in hidden else token for i, token in enumerate(ids)])
        padded = tokenizer.pad(
            {"input_ids": copies}, padding="max_length", max_length=len(ids) + 3, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        log_probabilities = logits.double().log_softmax(-1)
        totals.append(sum(float(log_probabilities[row, i, ids[i]]) for row, i in enumerate(scored)))
    return totals


@pytest.mark.parametrize("within_word", [False, True])
def test_scores_equal_those_of_padded_transformers_for_any_batch_size(folder: str, within_word: bool) -> None:
    model = open_masked_lm(folder)
    expected = padded_scores(folder, SENTENCES, within_word=within_word)
    for tokens_per_batch in (1, 37, 4096):
        found = pseudo_likelihoods(
            model, SENTENCES, places=SENTENCES, within_word=within_word, tokens_per_batch=tokens_per_batch
        )
        assert found.totals.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert found.num_tokens.tolist() == [
            len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in SENTENCES
        ]
    assert found.corpus_perplexity == pytest.approx(math.exp(-sum(expected) / found.num_tokens.sum()))
    assert max(expected) < -1  # nothing here is near certain, so that equality says something


def test_within_word_differs_only_where_a_word_has_several_tokens(folder: str) -> None:
    model = open_masked_lm(folder)
    texts = ["a", "lossteacher"]
    assert len(model.tokenizer("lossteacher")["input_ids"]) > 3
    plain, words = (pseudo_likelihoods(model, texts, places=texts, within_word=flag).totals for flag in (False, True))
    assert plain[0] == words[0]
    assert abs(plain[1] - words[1]) > 1e-3


def write_pairs(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        ("The teacher returns a loss.", "Teacher the loss a returns."),
        ("A model of the rate.", "Of model the rate a."),
    ]
    good_bad = [{"sentence_good": good, "sentence_bad": bad, "UID": "word_order"} for good, bad in rows]
    (folder / "word_order.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good_bad))
    swapped = [{"sentence_good": row["sentence_bad"], "sentence_bad": row["sentence_good"]} for row in good_bad]
    (folder / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    return folder


def test_two_models_score_a_folder_of_minimal_pairs(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_pairs(tmp_path / "pairs"), tmp_path / "out"
    models = [workspace.teacher, workspace.bert_teacher]
    score.run(["--model", f"[{models[0]},{models[1]}]", "--pairs", str(folder), "--out", str(out)])
    printed = capsys.readouterr().out
    numbers = json.loads((out / "scores.json").read_text())["models"]
    pairs = read_pairs(str(folder))
    assert [pair.paradigm for pair in pairs] == ["swapped", "swapped", "word_order", "word_order"]
    for name in models:
        good = padded_scores(name, [pair.good for pair in pairs], within_word=False)
        bad = padded_scores(name, [pair.bad for pair in pairs], within_word=False)
        right = [a > b for a, b in zip(good, bad, strict=True)]
        assert numbers[name]["paradigms"]["swapped"]["accuracy"] == sum(right[:2]) / 2
        assert numbers[name]["paradigms"]["word_order"]["accuracy"] == sum(right[2:]) / 2
        # one paradigm is the other with the sentences exchanged
        assert numbers[name]["pairs"]["accuracy"] == numbers[name]["mean"]["accuracy"] == 0.5
    text = (out / "scores.md").read_text()
    for piece in ("word_order", "all pairs", "bert-teacher minus teacher: ±0.0 points"):
        assert piece in printed and piece in text


def test_standard_errors_are_those_of_the_formulas() -> None:
    right = np.array([True, True, True, False, False, False, True, True, True, True])
    result = judge(["b"] * 6 + ["a"] * 4, right)
    assert list(result.paradigms) == ["a", "b"]
    assert result.paradigms == {"a": Accuracy(1.0, 0.0, 4), "b": Accuracy(0.5, math.sqrt(0.25 / 6), 6)}
    assert result.pairs == Accuracy(0.7, pytest.approx(math.sqrt(0.7 * 0.3 / 10)), 10)
    assert result.mean == Accuracy(0.75, pytest.approx(math.sqrt(0.25 / 6) / 2), 10)
    value, error = paired_difference(right, np.roll(right, 1))
    assert value == 0
    differences = right.astype(int) - np.roll(right, 1)
    assert error == pytest.approx(math.sqrt((differences**2).mean() / 10)) and error > 0


def test_sentences_are_printed_and_written(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(SENTENCES[:2]))
    score.run(["--model", workspace.teacher, "--file", str(file), "--out", str(tmp_path), SENTENCES[3]])
    out = capsys.readouterr().out
    sentences = json.loads((tmp_path / "scores.json").read_text())["models"][workspace.teacher]["sentences"]
    assert [row["text"] for row in sentences] == [SENTENCES[3], *SENTENCES[:2]]
    expected = padded_scores(workspace.teacher, [SENTENCES[3], *SENTENCES[:2]], within_word=False)
    assert [row["pll"] for row in sentences] == pytest.approx(expected, abs=1e-4)
    assert "all, weighted by tokens" in out and f"{sum(expected):.2f}" in out


def test_messages_name_what_is_wrong(workspace: Workspace, tmp_path: Path) -> None:
    def pairs_of(text: str) -> str:
        file = tmp_path / "pairs.jsonl"
        file.write_text(text)
        return str(file)

    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: 'sentence_bad' is missing or empty; there are \['UID'"):
        read_pairs(pairs_of('{"sentence_good": "x", "UID": "u"}\n'))
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: both sentences are 'x'"):
        read_pairs(pairs_of('{"sentence_good": "x", "sentence_bad": "x"}\n'))
    with pytest.raises(ValueError, match="holds no rows"):
        read_pairs(pairs_of(""))
    with pytest.raises(ValueError, match="pairs: no file at"):
        read_pairs(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="not both in one call"):
        score.score(workspace.teacher, ["x"], pairs="y")
    model = open_masked_lm(workspace.teacher)
    with pytest.raises(ValueError, match=r"line 7: \d+ tokens, and .* takes 64"):
        pseudo_likelihoods(model, ["the " * 99], places=["line 7"])
    with pytest.raises(ValueError, match="tokens_per_batch must be at least 1, got 0"):
        pseudo_likelihoods(model, ["the"], places=["x"], tokens_per_batch=0)
    with pytest.raises(ValueError, match=r"line 3: .*finds no tokens in it"):
        pseudo_likelihoods(model, [""], places=["line 3"])
