"""The frame of an HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def html_page(title: str, parts: Sequence[str], *, style: str) -> str:
    """The page.

    Args:
        title: Plain text, for the window.
        parts: HTML, one after the other.
        style: CSS; it says whether the page knows dark (`color-scheme`).
    """
    return _PAGE.format(title=escape(title), style=style, body="\n".join(parts))
