"""Between two logged steps the host asks no tensor for its value: on a GPU it would wait there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import QUIET, fused, probe
from tests.workspace import KINDS, Workspace, fit


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_between_logged_steps_on_one_rank_or_two(
    kind: str, workspace: Workspace, two_ranks: Path, tmp_path: Path
) -> None:
    callbacks = [probe("SaveReads", tmp_path / "reads")]
    fit(fused(workspace.configuration(kind, 0.1)), tmp_path / "run", callbacks=callbacks, **QUIET)
    files = [tmp_path / "reads-0.json"]
    files += [two_ranks / f"{kind}-{accumulate}-reads-{rank}.json" for rank in range(2) for accumulate in (1, 2)]
    for found in (json.loads(file.read_text()) for file in files):
        assert found["steps"] == 5 and found["operations"] > 100  # steps 2, 3, 5, 6 and 7
        assert found["reads"] == []


def test_an_optimizer_that_skips_nothing_by_itself_has_its_gradients_read(workspace: Workspace, tmp_path: Path) -> None:
    """Not vacuous: this read is found, once a step."""
    callbacks = [probe("SaveReads", tmp_path / "reads")]
    fit(workspace.configuration("pretraining"), tmp_path / "run", callbacks=callbacks, **QUIET)
    found = json.loads((tmp_path / "reads-0.json").read_text())
    assert any("guards.py" in read for read in found["reads"])
