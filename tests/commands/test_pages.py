"""Pages of sections: the same content as Markdown and as one HTML file, with everything escaped."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lit_distil.commands.pages import Section, render, to_markdown, write_pages

HOSTILE = "<script>alert('&')</script>"


def test_markdown_and_html_have_the_same_content_and_pictures_travel_inside_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "out" / "loss_curve.png"
    picture.parent.mkdir()
    picture.write_bytes(b"\x89PNG not really")
    sections = [
        Section(table=[["arm", "loss"], ["a | b", "3.1"]]),
        Section("Notes", lines=["one", "two"], small=True),
        Section(pictures=[picture]),
    ]
    write_pages(tmp_path / "out" / "page", "Title", sections, {"é": 1})
    assert (tmp_path / "out/page.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    text = (tmp_path / "out/page.md").read_text()
    assert text == to_markdown("Title", sections)
    assert text.split("\n\n") == [
        "# Title",
        "| arm    | loss |\n| ------ | ---: |\n| a \\| b |  3.1 |",
        "## Notes",
        "- one\n- two",
        "![loss curve](loss_curve.png)\n",
    ]
    html = (tmp_path / "out/page.html").read_text()
    assert "<td>a | b</td><td>3.1</td>" in html and '<ul class="small">\n<li>one</li>' in html
    data = html.split("data:image/png;base64,")[1].split('"')[0]
    assert base64.b64decode(data) == picture.read_bytes() and 'alt="loss curve"' in html


def test_nothing_in_a_page_can_act(tmp_path: Path) -> None:
    section = Section(HOSTILE, table=[[HOSTILE], [HOSTILE]], lines=[HOSTILE])
    write_pages(tmp_path / "page", HOSTILE, [section], {})
    html = (tmp_path / "page.html").read_text()
    assert "<script" not in html and html.count("&lt;script&gt;") == 6  # title twice, heading, two cells, list
    assert "http" not in html and "@import" not in html and "url(" not in html


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("sections.html.jinja", title="T")
