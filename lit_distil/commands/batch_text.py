"""Batches as text for a terminal, with colours or without."""

from __future__ import annotations

from collections.abc import Sequence

from lit_distil.commands.batch_totals import SplitFacts, Totals, histogram, summary
from lit_distil.commands.batch_views import Kind, Piece, SequenceView
from lit_distil.types import Batch

_LONGEST_BAR = 40
# bold on a colour of its own for what is to be predicted, which light and dark terminals both show
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
    """Puts colours around words, or leaves them alone.

    Args:
        colours: Whether to.
    """

    def __init__(self, colours: bool) -> None:
        self.colours = colours

    def __call__(self, text: str, style: str) -> str:
        """The text in the style of a kind of token, or of `answer`, `label` and `heading`."""
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code else text


def batch_heading(number: int, batch: Batch) -> str:
    """What stands above a batch: its number from 1, its sequences and its tokens."""
    return f"batch {number}: {batch.num_sequences:,} sequences, {batch.num_tokens:,} tokens"


def rest_of(views: Sequence[SequenceView], batch: Batch) -> str:
    """How many sequences of a batch are not among those that are shown; empty where all are."""
    rest = batch.num_sequences - len(views)
    return f"and {rest:,} more sequences (--show)" if rest else ""


def sequence_heading(view: SequenceView) -> str:
    """Which sample it is, how long, how much of it is to be predicted, and what else is known of it."""
    pieces = view.pieces
    num_masked = sum(piece.original is not None for piece in pieces)
    masked = [f"{num_masked} to predict ({100 * num_masked / len(pieces):.1f} %)"] if num_masked else []
    return " · ".join([f"sample {view.sample}", f"{len(pieces)} tokens", *masked, *view.notes])


def segment_name(segment: int | None) -> str:
    """`A`, `B`, or nothing where there are no segments."""
    return "" if segment is None else chr(ord("A") + segment)


def legend(views: Sequence[SequenceView], painter: Painter) -> str:
    """What the marks in these sequences mean; empty where there are none."""
    used = {piece.kind for view in views for piece in view.pieces}
    lines = [f"{painter(mark, kind)} {MEANINGS[kind]}" for kind, mark in EXAMPLES.items() if kind in used]
    if "unknown" in used:
        lines.append(f"{painter('underlined', 'unknown')} unknown to the vocabulary")
    return "   ".join(lines)


def sequence_text(view: SequenceView, painter: Painter) -> str:
    """A sequence under its heading, a line for each part."""
    lines = [painter(sequence_heading(view), "heading")]
    for part in view.parts:
        words = "".join(f"{' ' if piece.spaced else ''}{_token(piece, painter)}" for piece in part.pieces).strip()
        name = segment_name(part.segment)
        lines.append(f"  {name + ' ' if name else ''}│ {words}")
    return "\n".join(lines)


def totals_text(totals: Totals, split: SplitFacts, painter: Painter) -> str:
    """The totals, and a histogram of the share that is to be predicted."""
    rows = summary(totals, split)
    width = max(len(name) for name, _ in rows)
    lines = [f"{painter(name.ljust(width), 'heading')}  {value}" for name, value in rows]
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
