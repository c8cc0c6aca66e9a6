"""`lit-distil score`: sentences and minimal pairs by pseudo-log-likelihood, one or several models side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging as transformers_logging

from lit_distil.commands.networks import (
    MaskedLM,
    call_with_words,
    flat_batch,
    open_masked_lm,
    read_texts,
    short_names,
)
from lit_distil.console import Table, bullets, markdown_table, progress_bar, signed
from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.sources.tables import SOURCE_KEY, read_rows
from lit_distil.tasks import Features

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PseudoLikelihoods:
    """Of N texts.

    Attributes:
        totals: float64 `[N]`, the sum over the tokens of a text, in nats.
        num_tokens: int64 `[N]`, tokens that were scored; special tokens are not.
    """

    totals: NDArray[np.float64]
    num_tokens: Ints

    @property
    def perplexities(self) -> NDArray[np.float64]:
        """float64 `[N]`: pseudo-perplexity of each text, `exp(-PLL / tokens)`."""
        return np.exp(-self.totals / self.num_tokens)

    @property
    def corpus_perplexity(self) -> float:
        """Pseudo-perplexity of all texts, every token with the same weight (Salazar et al., section 2.3)."""
        return float(np.exp(-self.totals.sum() / self.num_tokens.sum()))


@torch.inference_mode()
def pseudo_likelihoods(
    model: MaskedLM,
    texts: Sequence[str],
    *,
    places: Sequence[str],
    within_word: bool = False,
    tokens_per_batch: int = 4096,
) -> PseudoLikelihoods:
    """Score texts, each of them one sequence.

    Args:
        model: What scores them.
        texts: One or more.
        places: What a message calls each text.
        within_word: Mask also what follows in the same word.
        tokens_per_batch: Most tokens of a flat batch, the copies of a text counted one by one; at least one copy.

    Raises:
        ValueError: A text is too long or has no tokens, or `tokens_per_batch` is not positive.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    features = model.encode(texts, places=places)
    scored = [_scored_positions(model, feature) for feature in features]
    word_starts = _word_starts(model, texts, scored, places) if within_word else None
    totals = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: -len(features[i].input_ids))
    num_copies = sum(len(positions) for positions in scored)
    with progress_bar(total=num_copies, desc="scoring", unit="token") as bar:
        for chunk in _chunks(features, scored, order, tokens_per_batch):
            owners = np.concatenate([np.full(len(positions), text) for text, positions in chunk])
            values = _log_probabilities(model, features, word_starts, chunk)
            np.add.at(totals, owners, values)
            bar.update(len(owners))
    return PseudoLikelihoods(totals, np.array([len(positions) for positions in scored], dtype=np.int64))


def _chunks(
    features: Sequence[Features], scored: Sequence[Ints], order: Sequence[int], tokens_per_batch: int
) -> Iterator[list[tuple[int, Ints]]]:
    """Batches of (text, positions to mask one at a time), the longest texts first so that like lengths meet."""
    chunk: list[tuple[int, Ints]] = []
    room = tokens_per_batch
    for text in order:
        length, left = len(features[text].input_ids), scored[text]
        while len(left):
            if chunk and room < length:
                yield chunk
                chunk, room = [], tokens_per_batch
            taken = left[: max(1, room // length)]
            chunk.append((text, taken))
            room -= len(taken) * length
            left = left[len(taken) :]
    if chunk:
        yield chunk


def _log_probabilities(
    model: MaskedLM,
    features: Sequence[Features],
    word_starts: Sequence[NDArray[np.bool_]] | None,
    chunk: Sequence[tuple[int, Ints]],
) -> NDArray[np.float64]:
    """float64 `[copies]`: log-probability of the token that each copy hides."""
    copies, labels, rows = [], [], []
    start = 0
    for text, positions in chunk:
        feature = features[text]
        for position in positions.tolist():
            ids = feature.input_ids.copy()
            labels.append(ids[position])
            rows.append(start + position)
            end = position + 1
            if word_starts is not None:
                following = np.flatnonzero(word_starts[text][end:])
                end += int(following[0])  # a special token ends the last word
            ids[position:end] = model.tokenizer.mask_token_id
            copies.append(Features(input_ids=ids, token_type_ids=feature.token_type_ids, label=None))
            start += len(ids)
    batch = flat_batch(copies, device=model.device)
    logits: Any = model.network(batch, rows=torch.tensor(rows, device=model.device)).logits
    return _at_labels(logits, torch.tensor(labels, device=model.device)).cpu().numpy()


def _at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 `[rows]`, the log-softmax at the labels."""
    chosen = logits.float().log_softmax(-1).gather(1, labels[:, None])
    return chosen[:, 0].to(torch.float64) if logits.device.type != "mps" else chosen[:, 0]


def _scored_positions(model: MaskedLM, feature: Features) -> Ints:
    """Every token but those that the tokenizer put around the text."""
    around = {getattr(model.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos")}
    return np.flatnonzero(~np.isin(feature.input_ids, [index for index in around if index is not None]))


def _word_starts(
    model: MaskedLM, texts: Sequence[str], scored: Sequence[Ints], places: Sequence[str]
) -> list[NDArray[np.bool_]]:
    """For each text bool `[length]`, whether a token begins a word; special tokens do."""
    _, starts, lengths = TextEncoder(model.tokenizer)(list(texts))
    found = []
    for place, of_text, positions in zip(places, np.split(starts, np.cumsum(lengths)[:-1]), scored, strict=True):
        if len(of_text) != len(positions):
            raise ValueError(f"{place}: it holds a special token, so its words are not known; leave within_word out")
        whole = np.ones(int(positions[-1]) + 2, dtype=bool)
        whole[positions] = of_text
        found.append(whole)
    return found


@dataclass(frozen=True)
class MinimalPairs:
    """N pairs of sentences.

    Attributes:
        good: The acceptable sentences.
        bad: Their unacceptable counterparts.
        paradigms: What each pair tests: its UID, or the name of its file where rows have none.
        places: File and line of each.
    """

    good: list[str]
    bad: list[str]
    paradigms: list[str]
    places: list[str]

    def __len__(self) -> int:
        return len(self.good)


@dataclass(frozen=True)
class Share:
    """A share of pairs that are right.

    Attributes:
        accuracy: The share.
        error: Its standard error from the number of pairs alone.
        num_pairs: That number.
    """

    accuracy: float
    error: float
    num_pairs: int

    @classmethod
    def of(cls, right: NDArray[np.bool_]) -> Share:
        """Of pairs that are right or wrong."""
        accuracy = float(right.mean())
        return cls(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(right)), len(right))


@dataclass(frozen=True)
class PairsResult:
    """One model's result.

    Attributes:
        paradigms: By UID, in their order.
        pairs: Over all pairs.
        mean: Mean over the paradigms with equal weight, the overall figure of BLiMP; its number is that of the pairs.
    """

    paradigms: dict[str, Share]
    pairs: Share
    mean: Share


def read_pairs(path: str) -> MinimalPairs:
    """Pairs of a file, or of every JSONL file of a folder.

    Raises:
        ValueError: There are none, or a row lacks a sentence or has the same one twice.
    """
    place = Path(path)
    files = sorted(file for file in place.rglob("*.jsonl*") if file.is_file()) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise ValueError(f"pairs: no file at {path!r}, nor a folder with .jsonl files in BLiMP's format")
    pairs = MinimalPairs([], [], [], [])
    for file in files:
        for row in read_rows(file):
            for column in ("sentence_good", "sentence_bad"):
                if not str(row.get(column) or "").strip():
                    columns = sorted(name for name in row if name != SOURCE_KEY)
                    raise ValueError(f"{row[SOURCE_KEY]}: {column!r} is missing or empty; there are {columns}")
            if row["sentence_good"] == row["sentence_bad"]:
                raise ValueError(f"{row[SOURCE_KEY]}: both sentences are {row['sentence_good']!r}; no model can tell")
            pairs.good.append(str(row["sentence_good"]))
            pairs.bad.append(str(row["sentence_bad"]))
            pairs.paradigms.append(str(row.get("UID") or file.name.split(".")[0]))
            pairs.places.append(str(row[SOURCE_KEY]))
    if not len(pairs):
        raise ValueError(f"pairs: {path!r} holds no rows")
    return pairs


def judge(paradigms: Sequence[str], right: NDArray[np.bool_]) -> PairsResult:
    """Accuracies with standard errors.

    Args:
        paradigms: Of each pair.
        right: bool `[N]`, whether its good sentence scored higher.
    """
    names = np.array(paradigms)
    shares = {name: Share.of(right[names == name]) for name in sorted(set(paradigms))}
    count = len(shares)
    mean = Share(
        accuracy=sum(share.accuracy for share in shares.values()) / count,
        error=math.sqrt(sum(share.error**2 for share in shares.values())) / count,
        num_pairs=len(right),
    )
    return PairsResult(paradigms=shares, pairs=Share.of(right), mean=mean)


def paired_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> tuple[float, float]:
    """Accuracy of one model less another's on the same pairs, and the standard error of that difference."""
    differences = ours.astype(float) - theirs.astype(float)
    return float(differences.mean()), float(differences.std() / math.sqrt(len(differences)))


def pairs_table(names: Sequence[str], results: Sequence[PairsResult]) -> Table:
    """A row a paradigm and two overall; a column a model."""
    table = [["paradigm", "pairs", *(f"{name} %" for name in names)]]
    for paradigm, share in results[0].paradigms.items():
        cells = [_percent(result.paradigms[paradigm]) for result in results]
        table.append([paradigm, f"{share.num_pairs:,}", *cells])
    total = f"{results[0].pairs.num_pairs:,}"
    table.append(["mean of the paradigms", total, *(_percent(result.mean) for result in results)])
    table.append(["all pairs", total, *(_percent(result.pairs) for result in results)])
    return table


def difference_lines(names: Sequence[str], right: Sequence[NDArray[np.bool_]]) -> list[str]:
    """How each further model differs from the first on the same pairs."""
    lines = []
    for name, of_model in zip(names[1:], right[1:], strict=True):
        value, error = paired_difference(of_model, right[0])
        lines.append(f"{name} less {names[0]}: {signed(100 * value, 1)} points (± {100 * error:.1f}, the same pairs)")
    return lines


def pairs_numbers(names: Sequence[str], results: Sequence[PairsResult]) -> dict[str, Any]:
    """Every number as plain types, by model."""
    return {name: asdict(result) for name, result in zip(names, results, strict=True)}


def _percent(share: Share) -> str:
    return f"{100 * share.accuracy:.1f} ± {100 * share.error:.1f}"


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
    names = [model] if isinstance(model, str) else model
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
    call_with_words(score, arguments, prog="lit-distil score")


def _score_pairs(
    names: list[str], pairs: MinimalPairs, device: str, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    right = [score_pairs(open_masked_lm(name, device=device), pairs, **settings) for name in names]
    results = [judge(pairs.paradigms, of_model) for of_model in right]
    short = short_names(names)
    parts = [markdown_table(pairs_table(short, results))]
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
    return markdown_table(_sentences_table(short_names(names), texts, scores)), {"models": numbers}


def _sentences_table(names: Sequence[str], texts: Sequence[str], scores: Sequence[PseudoLikelihoods]) -> Table:
    """A row a sentence, three columns a model, and a row for all of them."""
    table = [["sentence", *(cell for name in names for cell in (f"{name}: PLL", "tokens", "pseudo-perplexity"))]]
    for number, text in enumerate(texts):
        cells = []
        for of_model in scores:
            cells += [f"{of_model.totals[number]:.2f}", str(of_model.num_tokens[number])]
            cells.append(f"{of_model.perplexities[number]:.2f}")
        brief = text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
        table.append([brief, *cells])
    if len(texts) > 1:
        cells = []
        for of_model in scores:
            cells += [f"{of_model.totals.sum():.2f}", f"{of_model.num_tokens.sum():,}"]
            cells.append(f"{of_model.corpus_perplexity:.2f}")
        table.append(["all, weighted by tokens", *cells])
    return table
