"""Batches as text for a terminal, and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from lit_distil.commands.inspect.batches import (
    Kind,
    Piece,
    SequenceView,
    SplitFacts,
    Totals,
    histogram,
    printable,
    summary,
)
from lit_distil.commands.pages import render
from lit_distil.console import text_table
from lit_distil.types import Batch

_LONGEST_BAR = 40
# bold on a colour of its own for positions to predict, which is readable on light and dark terminals
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
    """Puts terminal colours around words, if `colours` is set."""

    def __init__(self, colours: bool) -> None:
        self.colours = colours

    def __call__(self, text: str, style: str) -> str:
        """The text in the style of a kind of token, or of `answer`, `label` and `heading`."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code else text


def batch_heading(number: int, batch: Batch) -> str:
    """The number of a batch (from 1), its sequences and its tokens."""
    return f"batch {number}: {batch.num_sequences:,} sequences, {batch.num_tokens:,} tokens"


def rest_of(views: Sequence[SequenceView], batch: Batch) -> str:
    """How many sequences of a batch are not shown; empty if none."""
    rest = batch.num_sequences - len(views)
    return f"and {rest:,} more sequences (--show)" if rest else ""


def sequence_heading(view: SequenceView) -> str:
    """Which sample, its length, how much of it is to be predicted, and its notes."""
    pieces = view.pieces
    num_masked = sum(piece.original is not None for piece in pieces)
    masked = [f"{num_masked} to predict ({100 * num_masked / len(pieces):.1f} %)"] if num_masked else []
    return " · ".join([f"sample {view.sample}", f"{len(pieces)} tokens", *masked, *view.notes])


def segment_name(segment: int | None) -> str:
    """`A`, `B`, or nothing without segments."""
    return "" if segment is None else chr(ord("A") + segment)


def legend(views: Sequence[SequenceView], painter: Painter) -> str:
    """What the marks in these sequences mean; empty if there are none."""
    used = {piece.kind for view in views for piece in view.pieces}
    lines = [f"{painter(mark, kind)} {MEANINGS[kind]}" for kind, mark in EXAMPLES.items() if kind in used]
    if "unknown" in used:
        lines.append(f"{painter('underlined', 'unknown')} unknown to the vocabulary")
    return "   ".join(lines)


def sequence_text(view: SequenceView, painter: Painter) -> str:
    """A sequence with its heading, a line for each part."""
    lines = [painter(sequence_heading(view), "heading")]
    for part in view.parts:
        words = "".join(f"{' ' if piece.spaced else ''}{_token(piece, painter)}" for piece in part.pieces).strip()
        name = segment_name(part.segment)
        lines.append(f"  {name + ' ' if name else ''}│ {words}")
    return "\n".join(lines)


def totals_text(totals: Totals, split: SplitFacts, painter: Painter) -> str:
    """The totals, and a histogram of the share to predict."""
    lines = []
    for row in text_table(summary(totals, split), numbers=False).splitlines():
        name, gap, value = row.partition("  ")
        lines.append(painter(name, "heading") + gap + value)
    if totals.has_masks:
        bars = histogram(totals)
        most = max(count for _, count in bars)
        wide = max(len(name) for name, _ in bars)
        lines += ["", painter("share of a sequence's tokens that is to be predicted", "heading")]
        for name, count in bars:
            length = -(-_LONGEST_BAR * count // most)  # a single sequence still shows
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


def batches_page(
    title: str, batches: Sequence[tuple[Sequence[SequenceView], Batch]], totals: Totals, split: SplitFacts
) -> str:
    """Batches as one HTML page that needs no other file, in light and dark.

    Args:
        title: Headline.
        batches: Each batch with the sequences of it to write out, from the first on.
        totals: Sums over the batches.
        split: Where they are from.
    """
    return render(
        "inspect.html.jinja",
        title=printable(title),
        summary=summary(totals, split),
        bars=histogram(totals) if totals.has_masks else [],
        meanings=MEANINGS,
        batches=[
            (
                batch_heading(number, batch),
                [
                    (sequence_heading(view), [(segment_name(part.segment), part.pieces) for part in view.parts])
                    for view in views
                ],
                rest_of(views, batch),
            )
            for number, (views, batch) in enumerate(batches, start=1)
        ],
    )
