"""What a piece is, in plain values: its class and its settings, so that two of them can be compared across runs."""

from __future__ import annotations

from typing import Any


def describe(piece: Any) -> Any:
    """Plain values that two pieces of the same class and settings share, and others do not.

    Args:
        piece: A number, a text or None, which stay what they are; a list or a dictionary of pieces; or an object that
            keeps its settings as attributes.

    Returns:
        What JSON gives back as it took it.
    """
    if piece is None or isinstance(piece, bool | int | float | str):
        return piece
    if isinstance(piece, list | tuple):
        return [describe(each) for each in piece]
    if isinstance(piece, set | frozenset):
        return sorted(repr(each) for each in piece)
    if isinstance(piece, dict):
        return {str(name): describe(each) for name, each in piece.items()}
    if not hasattr(piece, "__dict__"):
        return repr(piece)
    settings = {name: describe(value) for name, value in sorted(vars(piece).items())}
    return {"class": f"{type(piece).__module__}.{type(piece).__qualname__}", **settings}
