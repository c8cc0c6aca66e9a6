"""What batches hold altogether: tokens, padding, masks and their replacements, the commonest tokens, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lit_distil.commands.batch_tokens import printable
from lit_distil.commands.batch_views import REPLACEMENTS, Reader, has_token_labels, sequence_labels
from lit_distil.commands.render import Table
from lit_distil.types import IGNORE_INDEX, Batch

_WIDTHS = (1, 2, 5, 10)  # of a histogram's bars, in points of percentage
_MOST_BARS = 12


@dataclass(frozen=True)
class SplitFacts:
    """A split as a whole.

    Attributes:
        name: `train`, `validation`, `test` or `predict`.
        num_sequences: Sequences of it, or samples of a task.
        num_tokens: Tokens of its documents, or of its samples with their special tokens.
        num_documents: Documents of it, where it has documents.
    """

    name: str
    num_sequences: int
    num_tokens: int
    num_documents: int | None


@dataclass(frozen=True)
class Totals:
    """Sums over batches.

    Attributes:
        num_batches: How many there are.
        num_sequences: Sequences in them.
        num_tokens: Tokens in them, special tokens included.
        num_padded: Tokens that they would have if each batch were padded to its longest sequence.
        lengths: Of each sequence.
        num_masked: Positions to predict, of each sequence.
        has_masks: Whether anything is masked in these batches at all.
        replaced: How many of those positions are hidden, have another token, or are left as they are.
        frequent: The commonest tokens before masking, without special ones.
        num_ordinary: Tokens before masking that are not special; unknown ones count.
        num_unknown: Of these, unknown to the vocabulary.
        labels: How often each label of a sequence or token occurs.
        num_random_next: Pairs whose second segment is random, of `num_pairs`.
        num_pairs: Sequences that say whether their second segment follows the first.
    """

    num_batches: int
    num_sequences: int
    num_tokens: int
    num_padded: int
    lengths: list[int]
    num_masked: list[int]
    has_masks: bool
    replaced: dict[str, int]
    frequent: list[tuple[str, int]]
    num_ordinary: int
    num_unknown: int
    labels: list[tuple[str, int]]
    num_random_next: int
    num_pairs: int


def totals_of(batches: Sequence[Batch], reader: Reader, *, top: int) -> Totals:
    """Count what is in batches on the CPU.

    Args:
        batches: At least one.
        reader: What tells the meaning of their numbers.
        top: How many of the commonest tokens to name.
    """
    replaced = dict.fromkeys(REPLACEMENTS, 0)
    originals: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    num_masked: list[int] = []
    num_random_next = num_pairs = 0
    for batch in batches:
        ids = batch.input_ids[0].tolist()
        counts = [0] * batch.num_sequences
        if batch.masked_positions is not None and batch.masked_labels is not None:
            ends = batch.cu_seq_lens.tolist()
            sequence = 0
            for position, original in zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True):
                while position >= ends[sequence + 1]:
                    sequence += 1
                counts[sequence] += 1
                replaced[reader.kind(ids[position], original)] += 1
                ids[position] = original
        num_masked += counts
        originals.update(ids)
        labels.update(_labels(batch, reader.labels))
        if batch.next_sentence_labels is not None:
            num_random_next += int((batch.next_sentence_labels == 1).sum())
            num_pairs += batch.num_sequences
    unknown = reader.vocabulary.special_ids.get("unk_token_id")
    num_unknown = 0 if unknown is None else originals[unknown]
    ordinary = [(token, count) for token, count in originals.items() if token not in reader.tokens.special_ids]
    ordinary.sort(key=lambda entry: (-entry[1], entry[0]))
    return Totals(
        num_batches=len(batches),
        num_sequences=sum(batch.num_sequences for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_padded=sum(batch.num_sequences * max(batch.lengths) for batch in batches),
        lengths=[length for batch in batches for length in batch.lengths],
        num_masked=num_masked,
        has_masks=any(batch.masked_positions is not None for batch in batches),
        replaced={str(kind): count for kind, count in replaced.items()},
        frequent=[(reader.tokens.text(token), count) for token, count in ordinary[:top]],
        num_ordinary=sum(count for _, count in ordinary) + num_unknown,
        num_unknown=num_unknown,
        labels=sorted(labels.items(), key=lambda entry: (-entry[1], entry[0])),
        num_random_next=num_random_next,
        num_pairs=num_pairs,
    )


def summary(totals: Totals, split: SplitFacts) -> Table:
    """The totals as rows of two cells: what, how much."""
    lengths = totals.lengths
    size = f"{split.num_sequences:,} sequences, {split.num_tokens:,} tokens"
    documents = "" if split.num_documents is None else f"{split.num_documents:,} documents, "
    rows = [
        [f"{split.name} split", documents + size],
        ["batches shown", f"{totals.num_batches:,}"],
        ["sequences", f"{totals.num_sequences:,}"],
        ["tokens", f"{totals.num_tokens:,}, special tokens included"],
        ["tokens a sequence", f"{sum(lengths) / len(lengths):.1f} on average, {min(lengths)} to {max(lengths)}"],
        ["padding", f"{_percent(totals.num_padded - totals.num_tokens, totals.num_padded)} if batches were padded"],
        ["unknown tokens", f"{_percent(totals.num_unknown, totals.num_ordinary)} ({totals.num_unknown:,})"],
    ]
    if totals.num_pairs:
        share = _percent(totals.num_random_next, totals.num_pairs)
        rows.append(["random next segments", f"{share} ({totals.num_random_next:,} of {totals.num_pairs:,} pairs)"])
    if totals.has_masks:
        num_masked = sum(totals.num_masked)
        words = {"mask": "hidden", "random": "another token", "kept": "left as it is"}
        shares = [f"{words[kind]} {_percent(n, num_masked)} ({n:,})" for kind, n in totals.replaced.items()]
        rows += [
            ["to predict", f"{num_masked:,} tokens, {_percent(num_masked, totals.num_tokens)}"],
            ["of these", ", ".join(shares)],
        ]
    if totals.labels:
        rows.append(["labels", ", ".join(f"{name} {count:,}" for name, count in totals.labels)])
    if totals.frequent:
        rows.append(["commonest tokens", "  ".join(f"{token} {count:,}" for token, count in totals.frequent)])
    return rows


def histogram(totals: Totals) -> list[tuple[str, int]]:
    """How many sequences have which share of their tokens to predict: `12 to 13 %` and a count, without empty ends."""
    shares = [Fraction(100 * masked, n) for masked, n in zip(totals.num_masked, totals.lengths, strict=True)]
    lowest, highest = min(shares), max(shares)
    width = next((w for w in _WIDTHS if highest // w - lowest // w < _MOST_BARS), _WIDTHS[-1])
    counts = Counter(int(share // width) for share in shares)
    bars = range(int(lowest // width), int(highest // width) + 1)
    return [(f"{bar * width} to {(bar + 1) * width} %", counts[bar]) for bar in bars]


def _labels(batch: Batch, names: dict[int, str]) -> list[str]:
    if batch.labels is not None and has_token_labels(batch.labels):
        return [printable(names.get(tag, str(tag))) for tag in batch.labels[0].tolist() if tag != IGNORE_INDEX]
    if batch.group_sizes is not None:  # every choice of a group is named, which says nothing when it is counted
        return []
    return [label for label in sequence_labels(batch, names) if label is not None]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
