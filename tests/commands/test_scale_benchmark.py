"""The benchmark behind docs/scale.md runs from end to end at a small size and prints rows for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.conftest import LINES
from tests.workspace import environment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_every_figure_is_measured_and_stands_in_a_table(tmp_path: Path) -> None:
    # documents of several lines, so that every format makes sequences of them
    documents = ["\n".join(f"{number} {line}" for line in LINES) for number in range(200)]
    (tmp_path / "real.txt").write_text("\n\n".join(documents), encoding="utf-8")
    folder = tmp_path / "work"
    folder.mkdir()
    options = ["--text", str(tmp_path / "real.txt"), "--megabytes", "20", "--slice_megabytes", "1"]
    command = [sys.executable, str(SCRIPT), *options, "--num_processes", "2", "--folder", str(folder)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.iterdir()) == []  # nothing is left behind
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    prepared = {line["what"]: line for line in said if line["what"].startswith("prepare")}
    assert set(prepared) == {"prepare 0.2 MB", "prepare 1 MB", "prepare 2 MB", "prepare 20 MB"}
    assert 19e6 < prepared["prepare 20 MB"]["bytes"] < 21e6 and prepared["prepare 20 MB"]["peak_each_mb"] > 50
    starts = [line for line in said if line["what"].startswith("start 20 MB")]
    assert len(starts) == 7 and all(line["start_s"] > 0 and line["sequences"] > 100 for line in starts)
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) > 35 and not re.search(r"\bnan\b|\binf\b", done.stdout)
    for words in ("`datasets.map`", "making the sequences first", "token budget", "`SentencePair`", "shards on disk"):
        assert any(words in row for row in rows), words
    assert all(row.split("|")[2].strip() for row in rows if "---" not in row and row.strip("| "))
