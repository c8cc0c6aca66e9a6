from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_distil import cli
from lit_distil.commands import cache as cache_writer
from lit_distil.commands.cache import run
from lit_distil.data import load_tokenizer
from lit_distil.models import MaskedLMNetwork, Pretrained
from lit_distil.modules import FrozenTeacher
from lit_distil.objectives import SoftTargetLoss, TopLogits
from lit_distil.schedules import LinearRamp
from tests.modules.caches import make_data, make_module, write_cache
from tests.workspace import Workspace, fit, kept_environment, logged, with_trainer, write_config


def configuration(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    """The workspace's distillation with two masks of each sequence and objectives that a cache is enough for."""
    config = workspace.distillation(**changes)
    settings = config["model"]["init_args"]
    del settings["objectives"]["cosine"]
    settings["objectives"]["soft"]["init_args"]["positions"] = "masked"
    config["data"]["init_args"]["masking"]["init_args"]["patterns"] = 2
    return config


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_distillation_trains_from_the_cache_that_its_configuration_gives(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed of the run is the seed of the masks, here as in fit; a file that a run kept has further keys."""
    out, config = tmp_path / "cache", configuration(workspace)
    kept = {"imports": None, "weights_only": None, "ckpt_path": None, "allow_changes": False}
    file = write_config({**with_trainer(config, tmp_path / "run"), **kept}, tmp_path / "config.yaml")
    with kept_environment():
        run(["--config", file, "--out", str(out), "--k", "16"])
    printed = capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["temperatures"] == [1.0, 2.0] and manifest["positions"] == "masked"
    assert manifest["data"]["train"]["seed"] == 7
    sizes = manifest["splits"]
    assert sizes["train"]["patterns"] == 2 and sizes["validation"]["patterns"] == 1
    assert re.search(rf"train +172 sequences × 2 masks = {sizes['train']['rows']:,} rows", printed)
    assert "a row      16 of 320 tokens, temperatures [1.0, 2.0]: 72 bytes" in printed
    kept = re.search(r"kept       ([\d.]+)% of the mass at T = 1, ([\d.]+)% of the mass at T = 2", printed)
    assert kept is not None and 5 < float(kept[2]) < float(kept[1]) < 100
    taken = sum(path.stat().st_size for path in out.rglob("*.npy")) / 1e6
    said = re.search(r"on disk    ([\d.]+) MB", printed)
    assert said is not None and float(said[1]) == pytest.approx(taken, abs=0.06) and float(said[1]) > 0.2
    assert re.search(r"time       about \d+ seconds on cpu", printed) and f"written: {out}" in printed

    config["model"]["init_args"]["teacher_cache"] = str(out)
    steps = fit(config, tmp_path / "run", max_steps=2, val_check_interval=2, check_val_every_n_epoch=None)
    assert len(logged(steps, "train/loss/soft")) == 2 and len(logged(steps, "val/loss/soft")) == 1


def test_the_rows_are_the_teachers_likeliest_tokens(workspace: Workspace, tmp_path: Path) -> None:
    """Against logits in full, sequence by sequence and one at a time."""
    data = make_data(workspace)
    out = write_cache(workspace, tmp_path / "cache", data=data, k=5, scores="float32", batch_size=7)
    teacher = FrozenTeacher(MaskedLMNetwork(Pretrained(workspace.teacher).build(None)))
    offsets = np.load(out / "train" / "offsets.npy")
    ids, scores, rests = (np.load(out / "train" / f"{name}.npy") for name in ("ids", "scores", "rests"))
    dataset = data.datasets["train"]
    assert len(offsets) == 2 * len(dataset) + 1 and ids.dtype == np.uint16
    for number in (0, 9, len(dataset) - 1, len(dataset), 2 * len(dataset) - 1):
        pattern, sample = divmod(number, len(dataset))
        logits = teacher(dataset.collate(np.array([sample]), np.array([pattern])), rows="all", project=True).logits
        assert logits is not None
        values, order = logits.sort(-1, descending=True)
        rows = slice(offsets[number], offsets[number + 1])
        assert torch.equal(torch.from_numpy(ids[rows].astype(np.int64)), order[:, :5])
        values = values - values[:, :1]
        torch.testing.assert_close(torch.from_numpy(scores[rows]), values[:, :5], rtol=1e-4, atol=1e-4)
        for i, temperature in enumerate((1.0, 2.0)):
            rest = (values[:, 5:] / temperature).exp().sum(-1).log()
            torch.testing.assert_close(torch.from_numpy(rests[rows, i]), rest, rtol=1e-4, atol=1e-4)


def test_an_interrupted_cache_is_continued_and_gives_the_same_files(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_writer, "_SECONDS_BETWEEN_SAVES", 0.0)
    settings = {"k": 8, "scores": "float16", "batch_size": 16}
    whole = write_cache(workspace, tmp_path / "whole", **settings)
    asked, rows = [], cache_writer.CacheWriter._rows

    def count(self: Any, batch: Any) -> Any:
        asked.append(batch.num_sequences)
        if len(asked) == stop_after:
            raise KeyboardInterrupt
        return rows(self, batch)

    monkeypatch.setattr(cache_writer.CacheWriter, "_rows", count)
    out, stop_after = tmp_path / "cache", 5 + 14  # 5 were timed, and 13 of the 24 batches are done
    with pytest.raises(KeyboardInterrupt):
        write_cache(workspace, out, **settings)
    work = tmp_path / "cache.partial"
    assert not out.exists() and json.loads((work / "progress.json").read_text())["done"]["train"] == 172 + 2 * 16
    with pytest.raises(ValueError, match="an unfinished cache of other settings"):
        write_cache(workspace, out, **{**settings, "k": 9})
    before, stop_after = len(asked), 0
    write_cache(workspace, out, **settings)
    assert sum(asked[before + 5 :]) == 172 + 172 - (172 + 32) + 16  # what was left of train, and validation
    assert content(out) == content(whole) and not work.exists()


def test_the_share_that_is_kept_is_that_of_the_distribution() -> None:
    logits = 3 * torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    top = TopLogits.of(logits, 4, (1.0, 2.0))
    expected = [torch.softmax(logits / each, -1).topk(4).values.sum(-1) for each in (1.0, 2.0)]
    found = cache_writer.kept_shares(top.scores.numpy(), top.rests.numpy(), [1.0, 2.0])
    np.testing.assert_allclose(found, torch.stack(expected, -1).numpy(), rtol=1e-5)


def test_estimating_writes_nothing(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cache(workspace, tmp_path / "cache", estimate=True)
    assert "on disk" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_full_disk_is_refused_before_the_first_row(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**7, 9 * 10**6, 10**6))
    with pytest.raises(ValueError, match=r"needs 0\.0\d GB and the disk has 0\.00 GB free; take a smaller --k"):
        write_cache(workspace, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_mistakes_end_in_a_message(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dynamic, cosine = configuration(workspace), configuration(workspace)
    del dynamic["data"]["init_args"]["masking"]["init_args"]["patterns"]
    cosine["model"]["init_args"]["objectives"]["cosine"] = {"class_path": "lit_distil.objectives.HiddenCosineLoss"}
    out = ["--out", str(tmp_path / "cache")]
    for name, config, more, message in (
        ("dynamic", dynamic, out, "none comes twice. Give every sequence a fixed number of masks"),
        ("cosine", cosine, out, "cosine (HiddenCosineLoss) needs the teacher's hidden states"),
        ("k", configuration(workspace), [*out, "--k", "321"], "k must lie between 1 and the 320 entries"),
        ("there", configuration(workspace), ["--out", str(tmp_path)], "holds files that this command does not write"),
    ):
        file = write_config(with_trainer(config, tmp_path / "run"), tmp_path / f"{name}.yaml")
        with kept_environment(), pytest.raises(SystemExit) as stop:
            cli.main(["cache", "--config", file, *more])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_teacher_without_a_head_is_refused_and_not_cached_with_a_new_one(
    workspace: Workspace, tmp_path: Path
) -> None:
    """A student of its own never loads its cached teacher, so nobody would notice afterwards."""
    headless = str(tmp_path / "headless")
    Pretrained(workspace.teacher).build(None).base_model.save_pretrained(headless)
    load_tokenizer(workspace.byte_bpe).save_pretrained(headless)
    with pytest.raises(ValueError, match=r"model\.teacher: .*headless has no trained masked-LM"):
        write_cache(workspace, tmp_path / "cache", module=make_module(workspace, teacher=headless))
    assert not (tmp_path / "cache").exists()


def test_settings_that_do_not_fit_the_objectives_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an objective has positions all or unmasked; take --positions all"):
        write_cache(workspace, tmp_path / "cache", positions="masked")
    ramp = make_module(workspace, objectives={"soft": SoftTargetLoss(LinearRamp(2.0, 1.0, steps=5))})
    with pytest.raises(ValueError, match=r"temperature of SoftTargetLoss changes.*\(--k 320\)"):
        write_cache(workspace, tmp_path / "cache", module=ramp, k=8)
