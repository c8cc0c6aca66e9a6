"""The pages that commands write: Markdown, a self-contained HTML file, and the numbers as JSON."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lit_distil.console import Table, bullets, markdown_table
from lit_distil.files import check_output_files, write_file

_PART = re.compile(r"^<!-- (?P<name>[\w-]+):begin -->\n(?P<text>.*?)^<!-- (?P=name):end -->$", re.DOTALL | re.MULTILINE)
_OURS = '<meta name="generator" content="lit_distil">'  # as in templates/base.html.jinja


@dataclass(frozen=True)
class Section:
    """Part of a page: a heading, pictures, a table and a list, each of which may be missing.

    Attributes:
        heading: Plain text; empty means no heading.
        table: Rows of cells, the header first.
        lines: Items of a list.
        pictures: PNG files in the folder of the page.
        small: Whether the list is small print.
    """

    heading: str = ""
    table: Table = ()
    lines: Sequence[str] = ()
    pictures: Sequence[Path] = ()
    small: bool = False

    @property
    def images(self) -> list[tuple[str, str]]:
        """Name and base64 data of each picture."""
        return [(_name(picture), base64.b64encode(picture.read_bytes()).decode()) for picture in self.pictures]


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The page as Markdown; its pictures are files beside it."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.heading}"] if section.heading else []
        parts += [f"![{_name(picture)}]({picture.name})" for picture in section.pictures]
        parts += [markdown_table(section.table)] if section.table else []
        parts += [bullets(section.lines)] if section.lines else []
    return "\n\n".join(parts) + "\n"


def parts_of(page: str) -> dict[str, str]:
    """What a page has between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, by name, without space around it."""
    return {match["name"]: match["text"].strip() for match in _PART.finditer(page)}


def with_part(page: str, name: str, text: str) -> str:
    """The page with a text between the two comments of this name.

    Raises:
        ValueError: The page does not have them once.
    """
    found = [match for match in _PART.finditer(page) if match["name"] == name]
    if len(found) != 1:
        comments = f"<!-- {name}:begin --> and <!-- {name}:end -->"
        raise ValueError(f"the page must have {comments} once, each on a line; found {len(found)}")
    first, last = found[0].span("text")
    return f"{page[:first]}{text}\n{page[last:]}"


def check_pages(page: Path, others: Sequence[str] = (".md", ".json"), *, overwrite: bool, mark: str = _OURS) -> None:
    """Refuse to replace a page that no command wrote; one that a command wrote may be written again.

    Args:
        page: The page, HTML or Markdown.
        others: Files written beside it: suffixes that replace its own, or file names.
        overwrite: Replace the files, whoever wrote them.
        mark: Text at the beginning of a page by which the command recognises its own pages.

    Raises:
        ValueError: One of the files exists, and no command wrote the page.
    """
    is_ours = page.is_file() and mark in page.read_text(encoding="utf-8", errors="replace")[:1000]
    beside = [page.with_suffix(name) if name[0] == "." else page.with_name(name) for name in others]
    check_output_files([page, *beside], are_ours=is_ours, overwrite=overwrite)


def write_pages(file: Path, title: str, sections: Sequence[Section], numbers: Mapping[str, Any]) -> None:
    """Write the page as `<file>.md` and `<file>.html`, and its numbers as `<file>.json`; create the folder."""
    page, html = render("sections.html.jinja", title=title, sections=sections), file.with_suffix(".html")
    write_report(file, to_markdown(title, sections), numbers)
    write_file(html, page)
    print(f"written: {html}")


def write_report(file: Path, markdown: str, numbers: Mapping[str, Any]) -> None:
    """Write a text as `<file>.md` and its numbers as `<file>.json`; create the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file.with_suffix(".md"), markdown)
    write_file(file.with_suffix(".json"), json.dumps(_in_json(numbers), indent=2, ensure_ascii=False) + "\n")


def render(template: str, **values: Any) -> str:
    """Fill in a template of `commands/templates`; every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _in_json(value: Any) -> Any:
    """The same with null for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _in_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(picture: Path) -> str:
    return picture.stem.replace("_", " ")
