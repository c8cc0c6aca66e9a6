"""Minimal pairs of the embedded corpus: ten words of a held-out docstring, and the same with two of them exchanged."""

from __future__ import annotations

from pathlib import Path

from lit_distil.commands.networks import open_masked_lm
from lit_distil.commands.score import MinimalPair, judge, score_pairs
from lit_distil.data import Docstrings
from lit_distil.files import hash_of
from lit_distil.tasks.base import SOURCE_KEY

ACCURACY, ROWS = "pairs/accuracy", "pairs/rows"
_NUM_WORDS = 10


def docstring_pairs(number: int, source: Docstrings | None = None) -> list[MinimalPair]:
    """Pairs from documents that pretraining holds out, the first by a hash of the text.

    The good sentence is the first ten words of a docstring; in the bad one, two neighbours that differ are exchanged,
    the first word never.

    Args:
        number: How many; there are fewer if there are not as many docstrings.
        source: Whose validation documents to take; None for those of the claims.
    """
    source = source or Docstrings(validation_share=0.05, test_share=0.05)
    pairs: dict[str, MinimalPair] = {}
    for row in sorted(source.rows("validation"), key=lambda row: hash_of(row["text"])):
        words = row["text"].split()[:_NUM_WORDS]
        places = [place for place in range(1, len(words) - 1) if words[place] != words[place + 1]]
        if len(words) == _NUM_WORDS and places and len(pairs) < number:
            place = places[int(hash_of(f"place {row['text']}")[:8], 16) % len(places)]
            bad = [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
            good = " ".join(words)
            pairs[good] = MinimalPair(good, " ".join(bad), "neighbours exchanged", str(row[SOURCE_KEY]))
    return list(pairs.values())


def accuracy_on_pairs(export: Path, number: int) -> dict[str, float]:
    """The share of pairs of which a masked language model finds the good sentence likelier, and their number."""
    pairs = docstring_pairs(number)
    result = judge([pair.paradigm for pair in pairs], score_pairs(open_masked_lm(str(export)), pairs)).pairs
    return {ACCURACY: result.accuracy, ROWS: float(result.num_pairs)}
