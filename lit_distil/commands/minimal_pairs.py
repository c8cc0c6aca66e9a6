"""Minimal pairs in BLiMP's format: how often a model gives the good sentence the higher score.

Warstadt et al. 2020 (arXiv 1912.00582): rows with `sentence_good`, `sentence_bad` and `UID`, the paradigm. A pair is
right if the good sentence scores strictly higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_distil.commands.render import Table, signed
from lit_distil.data.tables import SOURCE_KEY, read_rows


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
