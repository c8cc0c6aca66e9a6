"""A batch taken apart for a reader: sequences, their parts and tokens, what was masked, and the labels in words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

from lit_distil.commands.batch_tokens import TokenTexts, printable
from lit_distil.types import IGNORE_INDEX, Batch, Vocabulary

Kind = Literal["text", "special", "unknown", "mask", "random", "kept"]
"""What a token is: text, special, unknown to the vocabulary; or to be predicted, and hidden, replaced or left there."""

REPLACEMENTS: tuple[Kind, ...] = ("mask", "random", "kept")


@dataclass(frozen=True)
class Piece:
    """One token.

    Attributes:
        position: Its place in the sequence, from 0.
        text: What the network is given there.
        kind: What it is.
        spaced: Whether a space stands before it.
        original: What stood there, at a position to predict; None elsewhere.
        label: The token's own label in words, where a task labels tokens.
        in_answer: Whether it lies in the answer that a task looks for.
    """

    position: int
    text: str
    kind: Kind
    spaced: bool
    original: str | None = None
    label: str | None = None
    in_answer: bool = False


@dataclass(frozen=True)
class Part:
    """Tokens up to a separator, or of one segment.

    Attributes:
        segment: 0 or 1 where the format or the tokenizer has segments, otherwise None.
        pieces: The tokens, the separator among them.
    """

    segment: int | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class SequenceView:
    """One sequence of a batch.

    Attributes:
        sample: Its index in its data set.
        parts: Its tokens.
        notes: What else is known of it, in words: whether the second segment follows, its label, where it is from.
    """

    sample: int
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def pieces(self) -> list[Piece]:
        """All tokens."""
        return [piece for part in self.parts for piece in part.pieces]


@dataclass(frozen=True)
class Reader:
    """What tells the meaning of the numbers in a batch.

    Attributes:
        tokens: The text of ids.
        vocabulary: Special ids.
        labels: Name of each class or tag of a task.
        places: File and line of samples, where they are rows.
    """

    tokens: TokenTexts
    vocabulary: Vocabulary
    labels: dict[int, str]
    places: dict[int, str]

    def views(self, batch: Batch, first: int | None = None) -> list[SequenceView]:
        """Sequences of a batch on the CPU, in its order.

        Args:
            batch: The batch.
            first: How many of its sequences; None takes all. A batch of thousands is not taken apart for a few.
        """
        sizes = batch.group_sizes or (1,) * batch.num_sequences
        samples = [sample for sample, size in zip(batch.sample_ids.tolist(), sizes, strict=True) for _ in range(size)]
        labels = sequence_labels(batch, self.labels)
        originals: dict[int, int] = {}
        if batch.masked_positions is not None and batch.masked_labels is not None:
            originals = dict(zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True))
        views = []
        for number, (start, end) in enumerate(list(pairwise(batch.cu_seq_lens.tolist()))[:first]):
            pieces = self._pieces(batch, number, start, end, originals)
            notes = []
            if batch.next_sentence_labels is not None:
                is_random = int(batch.next_sentence_labels[number]) == 1
                notes.append("random next: B is from another document" if is_random else "is next: B follows A")
            if batch.answer_spans is not None:
                notes.append(_answer(batch.answer_spans[number].tolist(), start, pieces))
            if labels[number] is not None:
                notes.append(f"label: {labels[number]}")
            if samples[number] in self.places:
                notes.append(f"from {printable(self.places[samples[number]])}")
            segments = None if batch.token_type_ids is None else batch.token_type_ids[0, start:end].tolist()
            parts = self._parts(pieces, segments, batch.input_ids[0, start:end].tolist())
            views.append(SequenceView(samples[number], parts, tuple(notes)))
        return views

    def _pieces(self, batch: Batch, number: int, start: int, end: int, originals: dict[int, int]) -> list[Piece]:
        """The tokens of one sequence, which are those from `start` to `end` of the batch."""
        tags = None
        if batch.labels is not None and has_token_labels(batch.labels):
            tags = batch.labels[0, start:end].tolist()
        answer = range(0)
        if batch.answer_spans is not None and int(batch.answer_spans[number, 0]) != IGNORE_INDEX:
            answer = range(int(batch.answer_spans[number, 0]) - start, int(batch.answer_spans[number, 1]) - start + 1)
        pieces = []
        after_special = False
        for place, token_id in enumerate(batch.input_ids[0, start:end].tolist()):
            original = originals.get(start + place)
            # a mask within a word stands where the word's part stood
            text, spaced = self.tokens(token_id if original is None else original)
            is_special = original is None and token_id in self.tokens.special_ids
            tag = None if tags is None or tags[place] == IGNORE_INDEX else tags[place]
            pieces.append(
                Piece(
                    position=place,
                    text=self.tokens.text(token_id),
                    kind=self.kind(token_id, original),
                    spaced=place > 0 and (spaced or is_special or after_special),
                    original=None if original is None else text,
                    label=None if tag is None else printable(self.labels.get(tag, str(tag))),
                    in_answer=place in answer and not is_special,
                )
            )
            after_special = is_special
        return pieces

    def kind(self, token_id: int, original: int | None) -> Kind:
        """What a token is, by what is put there and what stood there; a random token that is the old one is `kept`."""
        special = self.vocabulary.special_ids
        if original is not None:
            if token_id == special.get("mask_token_id"):
                return "mask"
            return "kept" if token_id == original else "random"
        if token_id == special.get("unk_token_id"):
            return "unknown"
        return "special" if token_id in self.tokens.special_ids else "text"

    def _parts(self, pieces: list[Piece], segments: list[int] | None, ids: list[int]) -> tuple[Part, ...]:
        special = self.vocabulary.special_ids
        separators = {special[name] for name in ("sep_token_id", "eos_token_id") if name in special}
        parts = []
        begin = 0
        for end in range(1, len(pieces) + 1):
            is_end = end == len(pieces)
            # RoBERTa's two separators of a pair stand together
            is_cut = not is_end and ids[end - 1] in separators and ids[end] not in separators
            if is_end or is_cut or (segments is not None and segments[end] != segments[end - 1]):
                parts.append(Part(None if segments is None else segments[begin], tuple(pieces[begin:end])))
                begin = end
        return tuple(parts)


def has_token_labels(labels: Tensor) -> bool:
    """Whether there is one label a token."""
    return labels.dim() == 2 and not labels.is_floating_point()


def sequence_labels(batch: Batch, names: dict[int, str]) -> list[str | None]:
    """The label of each sequence in words; None where there is none, or where tokens or answers are labelled."""
    labels = batch.labels
    if batch.group_sizes is not None:
        right = [None] * len(batch.group_sizes) if labels is None else labels.tolist()
        return [
            f"choice {choice + 1} of {size}{', the right one' if choice == answer else ''}"
            for size, answer in zip(batch.group_sizes, right, strict=True)
            for choice in range(size)
        ]
    if labels is None or has_token_labels(labels):
        return [None] * batch.num_sequences
    if labels.dim() == 2:
        rows: list[list[float]] = labels.tolist()
        chosen = [[names.get(index, str(index)) for index, value in enumerate(row) if value] for row in rows]
        return [printable(", ".join(one)) if one else "(none of the labels)" for one in chosen]
    if labels.is_floating_point():
        return [f"{value:g}" for value in labels.tolist()]
    return [printable(names.get(index, str(index))) for index in labels.tolist()]


def _answer(span: list[int], start: int, pieces: list[Piece]) -> str:
    if span[0] == IGNORE_INDEX:
        return "answer: not known"
    if span[0] == start:  # SQuAD's convention: the first token stands for it
        return "answer: none in this window"
    found = pieces[span[0] - start : span[1] - start + 1]
    words = "".join(f"{' ' if piece.spaced else ''}{piece.text}" for piece in found)
    return f"answer: {words.strip()}"
