"""Batches as text for a terminal, and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from lit_distil.commands.inspect.batches import (
    BatchView,
    Kind,
    Piece,
    SequenceView,
    Totals,
    histogram,
    printable,
)
from lit_distil.commands.pages import render
from lit_distil.console import Table, text_table

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


def legend(batches: Sequence[BatchView], painter: Painter) -> str:
    """What the marks in these sequences mean; empty if there are none."""
    used = {piece.kind for batch in batches for view in batch.sequences for piece in view.pieces}
    lines = [f"{painter(mark, kind)} {MEANINGS[kind]}" for kind, mark in EXAMPLES.items() if kind in used]
    if "unknown" in used:
        lines.append(f"{painter('underlined', 'unknown')} unknown to the vocabulary")
    return "   ".join(lines)


def sequence_text(view: SequenceView, painter: Painter) -> str:
    """A sequence with its heading, a line for each part."""
    lines = [painter(view.heading, "heading")]
    for part in view.parts:
        words = "".join(f"{' ' if piece.spaced else ''}{_token(piece, painter)}" for piece in part.pieces).strip()
        lines.append(f"  {part.segment + ' ' if part.segment else ''}│ {words}")
    return "\n".join(lines)


def totals_text(totals: Totals, rows: Table, painter: Painter) -> str:
    """The rows of the summary, and a histogram of the share to predict."""
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


def batches_page(title: str, batches: Sequence[BatchView], totals: Totals, rows: Table) -> str:
    """Batches as one HTML page that needs no other file, in light and dark; `rows` is the summary."""
    bars = histogram(totals) if totals.has_masks else []
    settings = {"title": printable(title), "summary": rows, "bars": bars, "meanings": MEANINGS}
    return render("inspect.html.jinja", batches=batches, **settings)
