"""`lit-distil score`: score sentences and minimal pairs by pseudo-log-likelihood, for one or several models."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lit_distil.commands.networks import (
    MaskedLM,
    flat_batch,
    name_list,
    open_masked_lm,
    read_texts,
    short_names,
)
from lit_distil.commands.pages import check_pages, write_report
from lit_distil.console import Table, bullets, markdown_table, progress_bar, signed
from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.sources.tables import read_rows
from lit_distil.messages import check_at_least
from lit_distil.pieces import call_command
from lit_distil.tasks import Features
from lit_distil.tasks.base import SOURCE_KEY

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_LONGEST_CELL = 60
_HEADLINE = "# Pseudo-log-likelihoods"


def score(
    model: list[str] | str,
    texts: list[str] | None = None,
    file: str | None = None,
    text_column: str | None = None,
    pairs: str | None = None,
    within_word: bool = False,
    tokens_per_batch: int = 4096,
    device: str = "cpu",
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Score sentences, or minimal pairs, by the pseudo-log-likelihood of masked language models.

    Args:
        model: Exported folder, Hub name or checkpoint; several as [runs/teacher/export,runs/student/export].
        texts: Sentences, each scored on its own.
        file: Text file with one sentence a line, or a table (JSONL, CSV, Parquet, ...) with text_column.
        text_column: Column of the table that holds the texts.
        pairs: JSONL file in BLiMP's format (sentence_good, sentence_bad, UID), or a folder of them, instead of
            sentences.
        within_word: Mask a token together with the rest of its word (Kauf and Ivanova 2023) instead of alone.
        tokens_per_batch: Most tokens in a batch; changes the speed, not the scores.
        device: Where to run, such as cpu or cuda.
        out: Folder to write scores.md and scores.json to; None only prints.
        overwrite: Replace files of these names even if this command did not write them; its own may always be replaced.
    """
    names = name_list(model)
    if out is not None:
        check_pages(Path(out, "scores.md"), [".json"], overwrite=overwrite, mark=_HEADLINE)
    if pairs is not None and (texts or file is not None):
        raise ValueError("pairs: score pairs or sentences (texts, file), not both in one call")
    options: dict[str, Any] = {"within_word": within_word, "tokens_per_batch": tokens_per_batch}
    models = (open_masked_lm(name, device=device) for name in names)  # one at a time in memory
    if pairs is not None:
        minimal_pairs = read_pairs(pairs)
        right = [score_pairs(opened, minimal_pairs, **options) for opened in models]
        results = [judge([pair.paradigm for pair in minimal_pairs], of_model) for of_model in right]
        report = _pairs_report(short_names(names), results, right)
        numbers = {name: asdict(result) for name, result in zip(names, results, strict=True)}
    else:
        given, places = read_texts(texts or [], file, text_column)
        scores = [pseudo_likelihoods(opened, given, places=places, **options) for opened in models]
        report = markdown_table(_sentences_table(short_names(names), given, scores))
        numbers = {name: _sentences_numbers(given, of_model) for name, of_model in zip(names, scores, strict=True)}
    method = "PLL-word-l2r (Kauf and Ivanova 2023)" if within_word else "PLL (Salazar et al. 2020)"
    report += f"\n\nScores: {method}, in nats; special tokens are not scored."
    print(report)
    if out is not None:
        write_report(Path(out, "scores"), f"{_HEADLINE}\n\n{report}\n", {"method": method, "models": numbers})
        print(f"written: {Path(out, 'scores.md')}")


run = functools.partial(call_command, score, words="texts")


# Pseudo-log-likelihood: mask one token at a time, and add up the log-probabilities of the masked tokens


@dataclass(frozen=True)
class PseudoLikelihoods:
    """Scores of N texts.

    Attributes:
        totals: float64 `[N]`, the pseudo-log-likelihood of each text in nats, summed over its tokens.
        num_tokens: int64 `[N]`, the number of scored tokens, which excludes special tokens.
    """

    totals: NDArray[np.float64]
    num_tokens: Ints

    @property
    def perplexities(self) -> NDArray[np.float64]:
        """float64 `[N]`: pseudo-perplexity of each text, `exp(-PLL / tokens)`."""
        return np.exp(-self.totals / self.num_tokens)

    @property
    def corpus_perplexity(self) -> float:
        """Pseudo-perplexity of all texts together, weighting every token equally (Salazar et al., section 2.3)."""
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
    """Score texts, each as one sequence.

    Args:
        model: The model that scores them.
        texts: One or more.
        places: Where each text came from, for messages.
        within_word: Mask the rest of a token's word too.
        tokens_per_batch: Most tokens in a flat batch of masked copies of the texts, which has at least one copy.

    Raises:
        ValueError: A text is too long or has no tokens, or `tokens_per_batch` is not positive.
    """
    check_at_least(1, {"tokens_per_batch": tokens_per_batch})
    features = model.encode(texts, places=places)
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    around = [index for name in names if (index := getattr(model.tokenizer, name, None)) is not None]
    scored = [np.flatnonzero(~np.isin(feature.input_ids, around)) for feature in features]
    word_starts = _word_starts(model, texts, scored, places) if within_word else None
    totals = np.zeros(len(texts))
    with progress_bar(total=sum(map(len, scored)), desc="scoring", unit="token") as bar:
        for chunk in _chunks(features, scored, tokens_per_batch):
            owners = np.concatenate([np.full(len(positions), text) for text, positions in chunk])
            np.add.at(totals, owners, _log_probabilities(model, features, word_starts, chunk))
            bar.update(len(owners))
    return PseudoLikelihoods(totals, np.array([len(positions) for positions in scored], dtype=np.int64))


def _chunks(
    features: Sequence[Features], scored: Sequence[Ints], tokens_per_batch: int
) -> Iterator[list[tuple[int, Ints]]]:
    """Batches of (text, positions to mask one at a time), longest texts first so that batches hold similar lengths."""
    chunk: list[tuple[int, Ints]] = []
    room = tokens_per_batch
    for text in sorted(range(len(features)), key=lambda i: -len(features[i].input_ids)):
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
    word_starts: Sequence[Bools] | None,
    chunk: Sequence[tuple[int, Ints]],
) -> NDArray[np.float64]:
    """float64 `[copies]`: log-probability of the masked token in each copy."""
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
                end += int(np.flatnonzero(word_starts[text][end:])[0])  # the closing special token ends the last word
            ids[position:end] = model.tokenizer.mask_token_id
            copies.append(Features(input_ids=ids, token_type_ids=feature.token_type_ids, label=None))
            start += len(ids)
    batch = flat_batch(copies, device=model.device)
    logits: Any = model.network(batch, rows=torch.tensor(rows, device=model.device)).logits
    chosen = logits.float().log_softmax(-1).gather(1, torch.tensor(labels, device=model.device)[:, None])
    return chosen[:, 0].cpu().to(torch.float64).numpy()


def _word_starts(model: MaskedLM, texts: Sequence[str], scored: Sequence[Ints], places: Sequence[str]) -> list[Bools]:
    """For each text, bool `[length]`: whether a token starts a word; special tokens count as word starts."""
    _, starts, lengths = TextEncoder(model.tokenizer.backend_tokenizer.to_str())(list(texts))
    found = []
    for place, of_text, positions in zip(places, np.split(starts, np.cumsum(lengths)[:-1]), scored, strict=True):
        if len(of_text) != len(positions):
            raise ValueError(f"{place}: it contains a special token, so its words are unknown; leave within_word out")
        whole = np.ones(int(positions[-1]) + 2, dtype=bool)
        whole[positions] = of_text
        found.append(whole)
    return found


def _sentences_table(names: Sequence[str], texts: Sequence[str], scores: Sequence[PseudoLikelihoods]) -> Table:
    """One row per sentence plus a total, with three columns per model."""
    table = [["sentence", *(cell for name in names for cell in (f"{name}: PLL", "tokens", "pseudo-perplexity"))]]
    for number, text in enumerate(texts):
        row = [text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"]
        for of_model in scores:
            row += [f"{of_model.totals[number]:.2f}", str(of_model.num_tokens[number])]
            row.append(f"{of_model.perplexities[number]:.2f}")
        table.append(row)
    if len(texts) > 1:
        row = ["all, weighted by tokens"]
        for of_model in scores:
            row += [f"{of_model.totals.sum():.2f}", f"{of_model.num_tokens.sum():,}"]
            row.append(f"{of_model.corpus_perplexity:.2f}")
        table.append(row)
    return table


def _sentences_numbers(texts: Sequence[str], scores: PseudoLikelihoods) -> dict[str, Any]:
    rows = zip(texts, scores.totals.tolist(), scores.num_tokens.tolist(), strict=True)
    return {
        "corpus_pseudo_perplexity": scores.corpus_perplexity,
        "sentences": [{"text": text, "pll": total, "tokens": count} for text, total, count in rows],
    }


# Minimal pairs: whether the acceptable sentence scores higher (BLiMP, Warstadt et al. 2020)


class MinimalPair(NamedTuple):
    """An acceptable sentence and its unacceptable counterpart.

    Attributes:
        good: The acceptable sentence.
        bad: The unacceptable one.
        paradigm: What the pair tests: its UID, or the name of its file if it has no UID.
        place: File and line.
    """

    good: str
    bad: str
    paradigm: str
    place: str


def read_pairs(path: str) -> list[MinimalPair]:
    """Read the pairs in a file, or in every JSONL file of a folder.

    Raises:
        ValueError: There are none, a row lacks a sentence, or both of its sentences are the same.
    """
    place = Path(path)
    files = sorted(file for file in place.rglob("*.jsonl*") if file.is_file()) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise ValueError(f"pairs: no file at {path!r}, nor a folder with .jsonl files in BLiMP's format")
    pairs = []
    for file in files:
        for row in read_rows(file):
            where = str(row.pop(SOURCE_KEY))
            for column in ("sentence_good", "sentence_bad"):
                if not str(row.get(column) or "").strip():
                    raise ValueError(f"{where}: {column!r} is missing or empty; there are {sorted(row)}")
            good, bad = str(row["sentence_good"]), str(row["sentence_bad"])
            if good == bad:
                raise ValueError(f"{where}: both sentences are {good!r}; no model can tell them apart")
            pairs.append(MinimalPair(good, bad, str(row.get("UID") or file.name.split(".")[0]), where))
    if not pairs:
        raise ValueError(f"pairs: {path!r} holds no rows")
    return pairs


def score_pairs(model: MaskedLM, pairs: Sequence[MinimalPair], **options: Any) -> Bools:
    """Bool `[N]`: whether each pair's good sentence scores higher. A sentence in several pairs is scored once."""
    place_of: dict[str, str] = {}
    for sentence, place in [(pair.good, pair.place) for pair in pairs] + [(pair.bad, pair.place) for pair in pairs]:
        place_of.setdefault(sentence, place)
    scores = pseudo_likelihoods(model, list(place_of), places=list(place_of.values()), **options)
    score_of = dict(zip(place_of, scores.totals.tolist(), strict=True))
    return np.array([score_of[pair.good] > score_of[pair.bad] for pair in pairs])


@dataclass(frozen=True)
class Accuracy:
    """The share of pairs judged correctly, and its standard error given the number of pairs."""

    accuracy: float
    error: float
    num_pairs: int

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True)
class PairsResult:
    """The accuracies of one model.

    Attributes:
        paradigms: By paradigm.
        pairs: Over all pairs.
        mean: Unweighted mean over the paradigms, which is BLiMP's overall figure; `num_pairs` counts all pairs.
    """

    paradigms: dict[str, Accuracy]
    pairs: Accuracy
    mean: Accuracy


def judge(paradigms: Sequence[str], right: Bools) -> PairsResult:
    """Accuracies with standard errors; `right` is bool `[N]`, whether each pair's good sentence scored higher."""

    def accuracy_of(chosen: Bools) -> Accuracy:
        share = float(chosen.mean())
        return Accuracy(share, math.sqrt(share * (1 - share) / len(chosen)), len(chosen))

    names = np.array(paradigms)
    by_paradigm = {name: accuracy_of(right[names == name]) for name in sorted(set(paradigms))}
    mean = Accuracy(
        accuracy=sum(one.accuracy for one in by_paradigm.values()) / len(by_paradigm),
        error=math.sqrt(sum(one.error**2 for one in by_paradigm.values())) / len(by_paradigm),
        num_pairs=len(right),
    )
    return PairsResult(by_paradigm, accuracy_of(right), mean)


def paired_difference(ours: Bools, theirs: Bools) -> tuple[float, float]:
    """Difference in accuracy between two models on the same pairs, and its standard error."""
    differences = ours.astype(float) - theirs.astype(float)
    return float(differences.mean()), float(differences.std() / math.sqrt(len(differences)))


def _pairs_report(names: Sequence[str], results: Sequence[PairsResult], right: Sequence[Bools]) -> str:
    """A table with one row per paradigm and two overall rows, and how each other model differs from the first."""
    table = [["paradigm", "pairs", *(f"{name} %" for name in names)]]
    for paradigm, first in results[0].paradigms.items():
        table.append([paradigm, f"{first.num_pairs:,}", *(str(result.paradigms[paradigm]) for result in results)])
    total = f"{results[0].pairs.num_pairs:,}"
    table.append(["mean of the paradigms", total, *(str(result.mean) for result in results)])
    table.append(["all pairs", total, *(str(result.pairs) for result in results)])
    lines = []
    for name, of_model in zip(names[1:], right[1:], strict=True):
        value, error = paired_difference(of_model, right[0])
        lines.append(f"{name} minus {names[0]}: {signed(100 * value, 1)} points (± {100 * error:.1f}, the same pairs)")
    note = (
        "± is one standard error, from the number of pairs alone. A pair is right if its good sentence scores higher."
    )
    return "\n\n".join([markdown_table(table), *([bullets(lines)] if lines else []), note])
