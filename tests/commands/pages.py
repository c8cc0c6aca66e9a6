"""Reading the pages that commands write."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Tags of a page, its words, and what is struck out."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []
        self.struck: list[str] = []
        self.is_struck = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.is_struck = tag == "s"
        assert not {name for name, _ in attrs} & {"src", "href", "srcset", "onload", "onerror", "onclick"}

    def handle_endtag(self, tag: str) -> None:
        self.is_struck = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.is_struck:
            self.struck.append(data)
