"""Batches in readable form: each sequence with its tokens, masks and labels, and totals; as text and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lit_distil.commands.pages import render
from lit_distil.console import Table, text_table
from lit_distil.objectives import LabelKind
from lit_distil.types import IGNORE_INDEX, Batch, Vocabulary

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "→"}


class TokenTexts:
    """The text of a tokenizer's token ids (byte-level, SentencePiece or WordPiece), cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: set[int]) -> None:
        self.tokenizer = tokenizer
        self.special_ids = special_ids
        self.marks_spaces = any(token.startswith(("Ġ", "▁")) for token in tokenizer.get_vocab())
        """Whether the vocabulary marks a space before a token, where WordPiece marks that there is none."""
        self._known: dict[int, tuple[str, bool]] = {}

    def __call__(self, token_id: int) -> tuple[str, bool]:
        """The token's text, never empty and always printable, and whether there is a space before it."""
        if token_id not in self._known:
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def _read(self, token_id: int) -> tuple[str, bool]:
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if token_id in self.special_ids:
            return printable(token), True
        if not self.marks_spaces:
            goes_on = token.startswith("##") and len(token) > 2
            return printable(token[2:] if goes_on else token), not goes_on
        begins = token.startswith(("Ġ", "▁"))
        text = str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if "\N{REPLACEMENT CHARACTER}" in text:  # part of a character: show its bytes as in the vocabulary
            text = token[1:] if begins and len(token) > 1 else token
        elif not text.strip(" "):  # a token of spaces only
            return "␣" * max(1, len(text)), False
        return printable(text.removeprefix(" ")), begins


def printable(text: str) -> str:
    """The text with invisible characters made visible: line ends, escape characters, direction marks."""
    if text.isprintable():
        return text
    return "".join(
        _VISIBLE.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )


Kind = Literal["text", "special", "unknown", "mask", "random", "kept"]
"""Ordinary text, a special or an unknown token; or a token to predict: masked, randomly replaced or kept."""


@dataclass(frozen=True)
class Piece:
    """One token.

    Attributes:
        position: Its position in the sequence, from 0.
        text: The input text at this position.
        kind: Its kind.
        spaced: Whether there is a space before it.
        original: The text before masking, if it is to be predicted; otherwise None.
        label: Its label, if the task labels tokens.
        in_answer: Whether it is part of the answer to a question.
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
    """Tokens of one segment, up to and including a separator; `segment` is `A`, `B`, or empty without segments."""

    segment: str
    pieces: list[Piece]


@dataclass(frozen=True)
class SequenceView:
    """One sequence of a batch: a heading (sample, length, masks, label, origin), and its tokens."""

    heading: str
    parts: list[Part]

    @property
    def pieces(self) -> list[Piece]:
        """All tokens."""
        return [piece for part in self.parts for piece in part.pieces]


@dataclass(frozen=True)
class BatchView:
    """A batch: a heading, its first sequences, and a line about the remaining ones (empty if there are none)."""

    heading: str
    sequences: list[SequenceView]
    rest: str


@dataclass(frozen=True)
class Reader:
    """Turns batches on the CPU into readable form.

    Attributes:
        tokens: The text of token ids.
        vocabulary: For its special ids.
        labels: Name of each class or tag of a task.
        places: File and line of each sample that is a row.
        label_kind: The kind of a task's labels; None without a task.
    """

    tokens: TokenTexts
    vocabulary: Vocabulary
    labels: dict[int, str]
    places: dict[int, str]
    label_kind: LabelKind | None = None

    def view(self, number: int, batch: Batch, first: int | None) -> BatchView:
        """Batch `number` (from 1) with its `first` sequences; None shows all."""
        views = self.sequences(batch, first)
        rest = batch.num_sequences - len(views)
        heading = f"batch {number}: {batch.num_sequences:,} sequences, {batch.num_tokens:,} tokens"
        return BatchView(heading, views, f"and {rest:,} more sequences (--show)" if rest else "")

    def sequences(self, batch: Batch, first: int | None = None) -> list[SequenceView]:
        """The `first` sequences of a batch; None gives all."""
        sizes = batch.group_sizes or (1,) * batch.num_sequences
        samples = [sample for sample, size in zip(batch.sample_ids.tolist(), sizes, strict=True) for _ in range(size)]
        labels = self.sequence_labels(batch)
        originals, tags = masked_tokens(batch), self.token_labels(batch)
        views = []
        for number, (start, end) in enumerate(list(pairwise(batch.cu_seq_lens.tolist()))[:first]):
            pieces = self._pieces(batch, number, originals, tags[start:end])
            notes = [f"sample {samples[number]}", f"{len(pieces)} tokens"]
            if num_masked := sum(piece.original is not None for piece in pieces):
                notes.append(f"{num_masked} to predict ({100 * num_masked / len(pieces):.1f} %)")
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
            views.append(SequenceView(" · ".join(notes), parts))
        return views

    def sequence_labels(self, batch: Batch) -> list[str | None]:
        """The readable label of each sequence."""
        if self.label_kind is None:
            return [None] * batch.num_sequences
        texts = self.label_kind.label_texts(batch, self.labels)
        return [None if text is None else printable(text) for text in texts]

    def token_labels(self, batch: Batch) -> list[str | None]:
        """The readable label of each token."""
        if batch.labels is None or self.label_kind is None or not self.label_kind.per_token:
            return [None] * batch.num_tokens
        tags = batch.labels[0].tolist()
        return [None if tag == IGNORE_INDEX else printable(self.labels.get(tag, str(tag))) for tag in tags]

    def _pieces(self, batch: Batch, number: int, originals: dict[int, int], tags: list[str | None]) -> list[Piece]:
        """The tokens of one sequence; `tags` are the labels of its tokens."""
        start, end = batch.cu_seq_lens[number : number + 2].tolist()
        answer = range(0)
        if batch.answer_spans is not None and int(batch.answer_spans[number, 0]) != IGNORE_INDEX:
            answer = range(int(batch.answer_spans[number, 0]) - start, int(batch.answer_spans[number, 1]) - start + 1)
        pieces = []
        after_special = False
        for place, token_id in enumerate(batch.input_ids[0, start:end].tolist()):
            original = originals.get(start + place)
            # a mask within a word is spaced like the piece that it replaces
            text, spaced = self.tokens(token_id if original is None else original)
            is_special = original is None and token_id in self.tokens.special_ids
            pieces.append(
                Piece(
                    position=place,
                    text=self.tokens(token_id)[0],
                    kind=self.kind(token_id, original),
                    spaced=place > 0 and (spaced or is_special or after_special),
                    original=None if original is None else text,
                    label=tags[place],
                    in_answer=place in answer and not is_special,
                )
            )
            after_special = is_special
        return pieces

    def kind(self, token_id: int, original: int | None) -> Kind:
        """The kind of a token, by its id and the id before masking; a random token equal to the original is `kept`."""
        special = self.vocabulary.special_ids
        if original is not None:
            if token_id == special.get("mask_token_id"):
                return "mask"
            return "kept" if token_id == original else "random"
        if token_id == special.get("unk_token_id"):
            return "unknown"
        return "special" if token_id in self.tokens.special_ids else "text"

    def _parts(self, pieces: list[Piece], segments: list[int] | None, ids: list[int]) -> list[Part]:
        special = self.vocabulary.special_ids
        separators = {special[name] for name in ("sep_token_id", "eos_token_id") if name in special}
        parts = []
        begin = 0
        for end in range(1, len(pieces) + 1):
            is_end = end == len(pieces)
            # RoBERTa puts two separators between the texts of a pair
            is_cut = not is_end and ids[end - 1] in separators and ids[end] not in separators
            if is_end or is_cut or (segments is not None and segments[end] != segments[end - 1]):
                parts.append(Part("" if segments is None else "AB"[segments[begin]], pieces[begin:end]))
                begin = end
        return parts


def masked_tokens(batch: Batch) -> dict[int, int]:
    """The id before masking at each position to predict."""
    if batch.masked_positions is None or batch.masked_labels is None:
        return {}
    return dict(zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True))


def _answer(span: list[int], start: int, pieces: list[Piece]) -> str:
    if span[0] == IGNORE_INDEX:
        return "answer: not known"
    if span[0] == start:  # SQuAD's convention: the first token means no answer
        return "answer: none in this window"
    found = pieces[span[0] - start : span[1] - start + 1]
    words = "".join(f"{' ' if piece.spaced else ''}{piece.text}" for piece in found)
    return f"answer: {words.strip()}"


_WIDTHS = (1, 2, 5, 10)  # possible widths of a histogram's bars, in percentage points
_MOST_BARS = 12


@dataclass(frozen=True)
class Totals:
    """Sums over batches.

    Attributes:
        num_batches: How many batches.
        num_padded: Tokens if each batch were padded to its longest sequence.
        lengths: Length of each sequence.
        num_masked: Tokens to predict in each sequence.
        has_masks: Whether the batches have masks at all.
        replaced: How many of those are masked, replaced at random or kept.
        frequent: The most frequent tokens before masking, without special ones.
        num_ordinary: Tokens before masking that are not special, including unknown ones.
        num_unknown: Unknown tokens.
        labels: How often each label of a sequence or token occurs.
        num_random_next: How many of the `num_pairs` have a random second segment.
        num_pairs: Sequences with a next-sentence label.
    """

    num_batches: int
    num_padded: int
    lengths: list[int]
    num_masked: list[int]
    has_masks: bool
    replaced: Counter[Kind]
    frequent: list[tuple[str, int]]
    num_ordinary: int
    num_unknown: int
    labels: list[tuple[str, int]]
    num_random_next: int
    num_pairs: int


def totals_of(batches: Sequence[Batch], reader: Reader, *, top: int) -> Totals:
    """The totals of batches on the CPU, with the `top` most frequent tokens."""
    replaced: Counter[Kind] = Counter()
    originals: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    num_masked: list[int] = []
    num_random_next = num_pairs = 0
    for batch in batches:
        ids, masked = batch.input_ids[0].tolist(), masked_tokens(batch)
        for position, original in masked.items():
            replaced[reader.kind(ids[position], original)] += 1
            ids[position] = original
        originals.update(ids)
        for start, end in pairwise(batch.cu_seq_lens.tolist()):
            num_masked.append(sum(position in masked for position in range(start, end)))
        named = reader.token_labels(batch)
        if batch.group_sizes is None:  # otherwise each choice has a text of its own
            named += reader.sequence_labels(batch)
        labels.update(label for label in named if label is not None)
        if batch.next_sentence_labels is not None:
            num_random_next += int((batch.next_sentence_labels == 1).sum())
            num_pairs += batch.num_sequences
    unknown = reader.vocabulary.special_ids.get("unk_token_id")
    num_unknown = 0 if unknown is None else originals[unknown]
    ordinary = [(token, count) for token, count in originals.items() if token not in reader.tokens.special_ids]
    ordinary.sort(key=lambda entry: (-entry[1], entry[0]))
    return Totals(
        num_batches=len(batches),
        num_padded=sum(batch.num_sequences * max(batch.lengths) for batch in batches),
        lengths=[length for batch in batches for length in batch.lengths],
        num_masked=num_masked,
        has_masks=any(batch.masked_positions is not None for batch in batches),
        replaced=replaced,
        frequent=[(reader.tokens(token)[0], count) for token, count in ordinary[:top]],
        num_ordinary=sum(count for _, count in ordinary) + num_unknown,
        num_unknown=num_unknown,
        labels=sorted(labels.items(), key=lambda entry: (-entry[1], entry[0])),
        num_random_next=num_random_next,
        num_pairs=num_pairs,
    )


def summary(totals: Totals) -> list[list[str]]:
    """The totals as rows of name and value."""
    lengths = totals.lengths
    rows = [
        ["batches shown", f"{totals.num_batches:,}"],
        ["sequences", f"{len(lengths):,}"],
        ["tokens", f"{sum(lengths):,}, special tokens included"],
        ["tokens a sequence", f"{sum(lengths) / len(lengths):.1f} on average, {min(lengths)} to {max(lengths)}"],
        ["padding", f"{_percent(totals.num_padded - sum(lengths), totals.num_padded)} if batches were padded"],
        ["unknown tokens", f"{_percent(totals.num_unknown, totals.num_ordinary)} ({totals.num_unknown:,})"],
    ]
    if totals.num_pairs:
        share = _percent(totals.num_random_next, totals.num_pairs)
        rows.append(["random next segments", f"{share} ({totals.num_random_next:,} of {totals.num_pairs:,} pairs)"])
    if totals.has_masks:
        num_masked = sum(totals.num_masked)
        words: dict[Kind, str] = {"mask": "hidden", "random": "another token", "kept": "left as it is"}
        counts = [(word, totals.replaced[kind]) for kind, word in words.items()]
        shares = [f"{word} {_percent(count, num_masked)} ({count:,})" for word, count in counts]
        rows.append(["to predict", f"{num_masked:,} tokens, {_percent(num_masked, sum(lengths))}"])
        rows.append(["of these", ", ".join(shares)])
    if totals.labels:
        rows.append(["labels", ", ".join(f"{name} {count:,}" for name, count in totals.labels)])
    if totals.frequent:
        rows.append(["most frequent tokens", "  ".join(f"{token} {count:,}" for token, count in totals.frequent)])
    return rows


def histogram(totals: Totals) -> list[tuple[str, int]]:
    """Histogram of the share of a sequence's tokens to predict: rows such as `12 to 13 %` and a count."""
    shares = [Fraction(100 * masked, n) for masked, n in zip(totals.num_masked, totals.lengths, strict=True)]
    lowest, highest = min(shares), max(shares)
    width = next((w for w in _WIDTHS if highest // w - lowest // w < _MOST_BARS), _WIDTHS[-1])
    counts = Counter(int(share // width) for share in shares)
    bars = range(int(lowest // width), int(highest // width) + 1)
    return [(f"{bar * width} to {(bar + 1) * width} %", counts[bar]) for bar in bars]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


# Batches as text for a terminal, and as one HTML page


_LONGEST_BAR = 40
# tokens to predict are bold on a colour of their own, readable on light and dark terminals
_STYLES: dict[str, str] = {
    "special": "2",
    "unknown": "1;4;31",
    "mask": "1;30;43",
    "random": "1;37;45",
    "kept": "1;30;46",
    "answer": "1;32",
    "label": "34",
    "heading": "1",
}
EXAMPLES: dict[Kind, str] = {"mask": "⟦was → [MASK]⟧", "random": "⟦was → other⟧", "kept": "⟦was ↺⟧"}
MEANINGS: dict[Kind, str] = {
    "mask": "to predict, hidden",
    "random": "to predict, another token put there",
    "kept": "to predict, left as it is",
}


class Painter:
    """Colours text for a terminal, if `colours` is set."""

    def __init__(self, colours: bool) -> None:
        self.colours = colours

    def __call__(self, text: str, style: str) -> str:
        """The text in the style of a kind of token, or of an `answer`, `label` or `heading`."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code else text


def legend(batches: Sequence[BatchView], painter: Painter) -> str:
    """What the marks in these sequences mean; empty without marks."""
    used = {piece.kind for batch in batches for view in batch.sequences for piece in view.pieces}
    lines = [f"{painter(mark, kind)} {MEANINGS[kind]}" for kind, mark in EXAMPLES.items() if kind in used]
    if "unknown" in used:
        lines.append(f"{painter('underlined', 'unknown')} unknown to the vocabulary")
    return "   ".join(lines)


def sequence_text(view: SequenceView, painter: Painter) -> str:
    """A sequence: its heading, then one line per part."""
    lines = [painter(view.heading, "heading")]
    for part in view.parts:
        words = "".join(f"{' ' if piece.spaced else ''}{_token(piece, painter)}" for piece in part.pieces).strip()
        lines.append(f"  {part.segment + ' ' if part.segment else ''}│ {words}")
    return "\n".join(lines)


def totals_text(totals: Totals, rows: Table, painter: Painter) -> str:
    """The summary, and a histogram of the share of tokens to predict."""
    lines = []
    for row in text_table(rows, numbers=False).splitlines():
        name, gap, value = row.partition("  ")
        lines.append(painter(name, "heading") + gap + value)
    if totals.has_masks:
        bars = histogram(totals)
        most = max(count for _, count in bars)
        wide = max(len(name) for name, _ in bars)
        lines += ["", painter("share of a sequence's tokens to predict", "heading")]
        for name, count in bars:
            length = -(-_LONGEST_BAR * count // most)  # even one sequence shows a bar
            lines.append(f"  {name.rjust(wide)} {'█' * length}{' ' if length else ''}{count:,}")
    return "\n".join(lines)


def _token(piece: Piece, painter: Painter) -> str:
    if piece.original is None:
        text = painter(piece.text, "answer" if piece.in_answer else piece.kind)
    elif piece.kind == "kept":
        text = painter(f"⟦{piece.original} ↺⟧", piece.kind)
    else:
        text = painter(f"⟦{piece.original} → {piece.text}⟧", piece.kind)
    return text if piece.label is None else f"{text}{painter(f'⟨{piece.label}⟩', 'label')}"


def batches_page(title: str, batches: Sequence[BatchView], totals: Totals, rows: Table) -> str:
    """Batches as one self-contained HTML page, with a light and a dark style; `rows` is the summary."""
    bars = histogram(totals) if totals.has_masks else []
    settings = {"title": printable(title), "summary": rows, "bars": bars, "meanings": MEANINGS}
    return render("inspect.html.jinja", batches=batches, **settings)
