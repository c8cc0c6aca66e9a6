"""Pages of sections: the same content as Markdown and as one HTML file, with everything escaped."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot
import pytest
from jinja2 import UndefinedError

from lit_distil.commands.pages import Section, parts_of, render, to_markdown, with_part, write_pages

HOSTILE = "<script>alert('&')</script>"


def test_a_part_of_a_page_is_replaced_and_nothing_else() -> None:
    page = "a\n<!-- one:begin -->\n<!-- one:end -->\nb\n<!-- two:begin -->\n| old |\n<!-- two:end -->\n"
    assert parts_of(page) == {"one": "", "two": "| old |"}
    filled = with_part(with_part(page, "two", r"| \1 |"), "one", "first\nlast")
    assert parts_of(filled) == {"one": "first\nlast", "two": r"| \1 |"}
    assert with_part(with_part(filled, "two", "| old |"), "one", "").replace("\n\n", "\n") == page
    for other, count in (("nothing", 0), (page + page, 2), ("text <!-- one:begin --> <!-- one:end -->", 0)):
        with pytest.raises(ValueError, match=f"must have <!-- one:begin --> and <!-- one:end --> once.*found {count}"):
            with_part(other, "one", "")


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
    assert '<td>a | b</td><td data-column="loss">3.1</td>' in html and '<ul class="small">\n<li>one</li>' in html
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


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  const edges = [...document.querySelectorAll("body *")].map(one => one.getBoundingClientRect().right);
  const scrolling = [...document.querySelectorAll(".wide")].filter(one => one.scrollWidth > one.clientWidth).length;
  const light = getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)";
  const seen = [innerWidth, Math.max(...edges) <= innerWidth, scrolling, light ? "light" : "dark"];
  parent.postMessage(seen.join(" "), "*");
})</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    """Of a table as wide as the report's widest, a long path and a picture: on a laptop and a phone, day and night."""
    header = ["network", "perplexity", "macro-F1 %", "accuracy kept %", "MB", "latency ms (quartiles)", "seq/s"]
    row = ["Student, random start, soft targets", "109.9", "45.0", "102.0", "5.5", "2.40 (2.30 to 2.50)", "794"]
    path = "runs/" + "a-long-name/" * 20
    picture = tmp_path / "picture.png"
    figure, _ = matplotlib.pyplot.subplots(figsize=(12, 6))
    figure.savefig(picture)
    matplotlib.pyplot.close(figure)
    sections = [Section(table=[header, row]), Section(lines=[path]), Section(pictures=[picture, picture])]
    write_pages(tmp_path / "page", path, sections, {})
    page = tmp_path / "page.html"
    page.write_text(page.read_text().replace("</body>", PROBE))
    frame = tmp_path / "frame.html"  # a browser's window may not be as narrow as a phone
    listen = "<script>addEventListener('message', event => { document.title = event.data; })</script>"
    frame.write_text(f'<title></title>{listen}<iframe src="page.html" style="width: {width}px; border: 0"></iframe>')
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser"]
    flags += ["--virtual-time-budget=5000", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    command = [str(BROWSER), *flags, "--window-size=1300,900", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (title,) = re.findall("<title>(.*)</title>", done.stdout)
    assert title == f"{width} true 0 {scheme}"
