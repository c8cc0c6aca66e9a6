"""A cached teacher under two ranks: each reads the rows of its own sequences, and the step is that of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_distil.commands.cache import run
from tests.commands.test_cache import configuration
from tests.integration.conftest import TWO_RANKS, probe
from tests.processes import run_on_two_ranks
from tests.workspace import Workspace, fit, ignore_rounding, kept_environment, with_trainer, write_config


@pytest.mark.slow
def test_two_ranks_train_from_a_cache_as_one_does(workspace: Workspace, tmp_path: Path) -> None:
    config = configuration(workspace)
    file = write_config(with_trainer(config, tmp_path / "run"), tmp_path / "config.yaml")
    with kept_environment():
        run(["--config", file, "--out", str(tmp_path / "cache"), "--k", "16"])
    config["model"]["init_args"]["teacher_cache"] = str(tmp_path / "cache")
    ignore_rounding(config)
    settings = {"max_steps": 3, "val_check_interval": 3, "check_val_every_n_epoch": None}
    saved = [probe("SaveWeights", tmp_path / "two.pt")]
    full = with_trainer(config, tmp_path / "two", **TWO_RANKS, **settings, callbacks=saved)
    run_on_two_ranks([["fit", "--config", write_config(full, tmp_path / "two.yaml")]], tmp_path)
    fit(config, tmp_path / "one", **settings, callbacks=[probe("SaveWeights", tmp_path / "one.pt")])
    expected, found = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert found.keys() == expected.keys() and len(expected) > 20
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
