"""`lit-distil score`: sentences and minimal pairs by pseudo-log-likelihood, one or several models side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from lit_distil.commands.minimal_pairs import (
    MinimalPairs,
    difference_lines,
    judge,
    pairs_numbers,
    pairs_table,
    read_pairs,
)
from lit_distil.commands.networks import MaskedLM, as_list, call_with_texts, open_masked_lm, read_texts, short_names
from lit_distil.commands.pseudo_likelihood import PseudoLikelihoods, pseudo_likelihoods
from lit_distil.commands.render import Table, aligned, bullets

_LONGEST_CELL = 60


def score(
    model: list[str] | str,
    texts: list[str] | None = None,
    file: str | None = None,
    pairs: str | None = None,
    within_word: bool = False,
    tokens_per_batch: int = 4096,
    device: str = "cpu",
    out: str | None = None,
) -> None:
    """Score sentences, or minimal pairs, by the pseudo-log-likelihood of masked language models.

    Args:
        model: Exported folder, Hub name or checkpoint; several as [runs/demo/teacher/export,runs/demo/student/export].
        texts: Sentences, each scored by itself.
        file: Text file with one sentence a line.
        pairs: JSONL file or folder of them in BLiMP's format (sentence_good, sentence_bad, UID), instead of sentences.
        within_word: Mask also what follows a token in its word (Kauf and Ivanova 2023), not the token alone.
        tokens_per_batch: Most tokens of a batch; results do not depend on it.
        device: Where to run, such as cpu or cuda.
        out: Folder to write scores.md and scores.json to; None prints only.
    """
    names = as_list(model)
    if not names:
        raise ValueError("model: give at least one folder")
    if pairs is not None and (texts or file is not None):
        raise ValueError("pairs: score pairs or sentences (texts, file), not both in one call")
    settings: dict[str, Any] = {"within_word": within_word, "tokens_per_batch": tokens_per_batch}
    if pairs is not None:
        report, numbers = _score_pairs(names, read_pairs(pairs), device, settings)
    else:
        report, numbers = _score_sentences(names, *read_texts(texts or [], file), device, settings)
    method = "PLL-word-l2r (Kauf and Ivanova 2023)" if within_word else "PLL (Salazar et al. 2020)"
    report += f"\n\nScores: {method}, in nats; special tokens are not scored."
    print(report)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.md").write_text(f"# Pseudo-log-likelihoods\n\n{report}\n", encoding="utf-8")
        content = {"method": method, **numbers}
        (folder / "scores.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {folder / 'scores.md'}")


def score_pairs(model: MaskedLM, pairs: MinimalPairs, **settings: Any) -> NDArray[np.bool_]:
    """Bool `[N]`: whether the good sentence of each pair has the higher score.

    Args:
        model: What scores them.
        pairs: A sentence that stands in several pairs is scored once.
        settings: Of `pseudo_likelihoods`.
    """
    places: dict[str, str] = {}
    for sentences in (pairs.good, pairs.bad):
        for sentence, place in zip(sentences, pairs.places, strict=True):
            places.setdefault(sentence, place)
    scores = pseudo_likelihoods(model, list(places), places=list(places.values()), **settings)
    of_sentence = dict(zip(places, scores.totals.tolist(), strict=True))
    return np.array([of_sentence[good] > of_sentence[bad] for good, bad in zip(pairs.good, pairs.bad, strict=True)])


def run(arguments: list[str]) -> None:
    """Parse the arguments and score."""
    transformers_logging.disable_progress_bar()
    call_with_texts(score, arguments, prog="lit-distil score")


def _score_pairs(
    names: list[str], pairs: MinimalPairs, device: str, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    right = [score_pairs(open_masked_lm(name, device=device), pairs, **settings) for name in names]
    results = [judge(pairs.paradigms, of_model) for of_model in right]
    short = short_names(names)
    parts = [aligned(pairs_table(short, results))]
    if len(names) > 1:
        parts.append(bullets(difference_lines(short, right)))
    parts.append(
        "± is one standard error from the number of pairs. A pair is right if its good sentence scores higher."
    )
    return "\n\n".join(parts), {"models": pairs_numbers(names, results)}


def _score_sentences(
    names: list[str], texts: list[str], places: list[str], device: str, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    scores = [
        pseudo_likelihoods(open_masked_lm(name, device=device), texts, places=places, **settings) for name in names
    ]
    numbers = {
        name: {
            "corpus_pseudo_perplexity": of_model.corpus_perplexity,
            "sentences": [
                {"text": text, "pll": total, "tokens": count}
                for text, total, count in zip(
                    texts, of_model.totals.tolist(), of_model.num_tokens.tolist(), strict=True
                )
            ],
        }
        for name, of_model in zip(names, scores, strict=True)
    }
    return aligned(_sentences_table(short_names(names), texts, scores)), {"models": numbers}


def _sentences_table(names: Sequence[str], texts: Sequence[str], scores: Sequence[PseudoLikelihoods]) -> Table:
    """A row a sentence, three columns a model, and a row for all of them."""
    table = [["sentence", *(cell for name in names for cell in (f"{name}: PLL", "tokens", "pseudo-perplexity"))]]
    for number, text in enumerate(texts):
        cells = []
        for of_model in scores:
            cells += [f"{of_model.totals[number]:.2f}", str(of_model.num_tokens[number])]
            cells.append(f"{of_model.perplexities[number]:.2f}")
        brief = text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
        table.append([brief.replace("|", "\\|"), *cells])
    if len(texts) > 1:
        cells = []
        for of_model in scores:
            cells += [f"{of_model.totals.sum():.2f}", f"{of_model.num_tokens.sum():,}"]
            cells.append(f"{of_model.corpus_perplexity:.2f}")
        table.append(["all, weighted by tokens", *cells])
    return table
