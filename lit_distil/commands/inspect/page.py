"""Batches as one HTML page that needs no other file, in light and in dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lit_distil.commands.html_page import html_page
from lit_distil.commands.inspect.text import (
    MEANINGS,
    Kind,
    Part,
    Piece,
    SequenceView,
    SplitFacts,
    Totals,
    batch_heading,
    histogram,
    printable,
    rest_of,
    segment_name,
    sequence_heading,
    summary,
)
from lit_distil.types import Batch


def batches_page(
    title: str, batches: Sequence[tuple[Sequence[SequenceView], Batch]], totals: Totals, split: SplitFacts
) -> str:
    """The page.

    Args:
        title: Headline.
        batches: Each batch and those of its sequences, from the first on, that are to be written out.
        totals: Sums over the batches.
        split: Where they are from.
    """
    title = printable(title)
    parts = [f"<h1>{escape(title)}</h1>", _table(summary(totals, split))]
    if totals.has_masks:
        parts += ["<h2>Share of a sequence’s tokens that is to be predicted</h2>", _histogram(histogram(totals))]
    parts.append(_legend(totals))
    for number, (views, batch) in enumerate(batches, start=1):
        parts.append(f"<h2>{escape(batch_heading(number, batch))}</h2>")
        parts += map(_sequence, views)
        if rest := rest_of(views, batch):
            parts.append(f'<p class="more">{escape(rest)}</p>')
    return html_page(title, parts, style=_CSS)


def _sequence(view: SequenceView) -> str:
    parts = "\n".join(_part(part) for part in view.parts)
    return f"<section><h3>{escape(sequence_heading(view))}</h3>\n{parts}\n</section>"


def _part(part: Part) -> str:
    words = "".join(f"{' ' if piece.spaced else ''}{_token(piece)}" for piece in part.pieces).strip()
    name = segment_name(part.segment)
    return f'<p class="part"><b>{name}</b><span>{words}</span></p>'


def _token(piece: Piece) -> str:
    text = escape(piece.text)
    if piece.original is not None:
        put = "" if piece.kind == "kept" else f"<ins>{text}</ins>"
        hint = escape(f"position {piece.position}: {MEANINGS[piece.kind]}")
        text = f'<span class="{piece.kind}" title="{hint}"><s>{escape(piece.original)}</s>{put}</span>'
    elif piece.in_answer:
        text = f"<mark>{text}</mark>"
    elif piece.kind != "text":
        text = f'<span class="{piece.kind}">{text}</span>'
    return text if piece.label is None else f"{text}<sub>{escape(piece.label)}</sub>"


def _legend(totals: Totals) -> str:
    if not totals.has_masks:
        return ""
    examples: list[tuple[Kind, str]] = [("mask", "<ins>[MASK]</ins>"), ("random", "<ins>other</ins>"), ("kept", "")]
    marks = [f'<span class="{kind}"><s>was</s>{put}</span> {escape(MEANINGS[kind])}' for kind, put in examples]
    return f'<p class="legend">{" &ensp; ".join(marks)}</p>'


def _table(rows: list[list[str]]) -> str:
    cells = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{cells}\n</table>"


def _histogram(bars: list[tuple[str, int]]) -> str:
    """Upright bars with their counts above and their ranges below."""
    step, tall, base = 76, 120, 140
    most = max(count for _, count in bars)
    parts = []
    for number, (name, count) in enumerate(bars):
        middle, height = number * step + step // 2, tall * count / most
        parts.append(f'<rect x="{middle - 26}" y="{base - height:.1f}" width="52" height="{height:.1f}" rx="2"/>')
        parts.append(f'<text x="{middle}" y="{base - height - 5:.1f}">{count:,}</text>')
        parts.append(f'<text class="range" x="{middle}" y="{base + 16}">{escape(name)}</text>')
    width = len(bars) * step
    label = escape("; ".join(f"{name}: {count} sequences" for name, count in bars))
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} 164" width="{width}" height="164">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


# colours after Okabe and Ito, which stay apart for the colour-blind; the words keep the contrast of text
_CSS = """
:root { color-scheme: light dark; --back: #fff; --text: #1d1f21; --faint: #5b6168; --line: #dfe3e7; --bar: #0072b2;
  --mask: #ffe08a; --random: #f3c6dd; --kept: #b8e3f5; --answer: #bfe8d3; --unknown: #b3261e; --tag: #0b5a8a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --text: #e6e8ea; --faint: #a0a7ae; --line: #33383d; --bar: #56b4e9;
    --mask: #6b5200; --random: #6d2a4e; --kept: #0f4d66; --answer: #14523a; --unknown: #ff9a8f; --tag: #8ecbf0; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .9rem; font-weight: 600; color: var(--faint); margin: 0 0 .4rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; font-weight: 600; }
td { overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); padding: .8rem 0; }
.part { display: flex; gap: .6rem; margin: .2rem 0; }
.part > b { flex: none; min-width: 1rem; color: var(--faint); }
.part > span { overflow-wrap: anywhere; min-width: 0; }
.mask, .random, .kept { border-radius: 3px; padding: 0 .2rem; white-space: nowrap; }
.mask { background: var(--mask); } .random { background: var(--random); } .kept { background: var(--kept); }
.mask s, .random s { margin-right: .3rem; }
.kept s { text-decoration: underline dotted; }
ins { text-decoration: none; font-weight: 600; }
mark { background: var(--answer); color: inherit; border-radius: 3px; }
.special, .legend, .more { color: var(--faint); font-size: .85em; }
.unknown { color: var(--unknown); text-decoration: underline wavy; }
sub { color: var(--tag); font-size: .7em; margin-left: .1rem; }
svg { max-width: 100%; height: auto; }
svg rect { fill: var(--bar); }
svg text { fill: var(--text); font-size: 12px; text-anchor: middle; font-variant-numeric: tabular-nums; }
svg .range { fill: var(--faint); }
"""
