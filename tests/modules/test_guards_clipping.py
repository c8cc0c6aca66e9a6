"""Gradients are clipped as torch and Lightning clip them, and their norm is taken once."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distil.modules.guards import StepGuard
from tests.modules.test_distillation import assert_equal, make_data, make_module, weights_of
from tests.workspace import Workspace, make_trainer


def optimizer_with_gradients(scale: float) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(0)
    shapes = [((40, 7), torch.float32), ((33,), torch.bfloat16), ((5, 5, 5), torch.float32), ((3,), torch.float64)]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]
    for parameter in parameters[:-1]:  # the last one has none
        parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return torch.optim.SGD([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], lr=0.2)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clipped_gradients_are_torchs_bit_for_bit(scale: float) -> None:
    ours, theirs = optimizer_with_gradients(scale), optimizer_with_gradients(scale)
    guard = StepGuard(0)
    norm = guard.check(ours, 0)
    guard.clip(ours, 0.5)
    parameters = [[p for group in each.param_groups for p in group["params"]] for each in (ours, theirs)]
    expected = torch.nn.utils.clip_grad_norm_(parameters[1], 0.5)
    assert torch.equal(norm, expected) and (expected > 0.5) == (scale > 0.1)
    for mine, yours in zip(*parameters, strict=True):
        assert (mine.grad is None) == (yours.grad is None)
        if yours.grad is not None:
            assert mine.grad is not None and torch.equal(mine.grad, yours.grad)


def test_clipping_without_a_norm_of_this_step_is_an_error() -> None:
    guard, optimizer = StepGuard(0), optimizer_with_gradients(1.0)
    guard.check(optimizer, 0)
    guard.clip(optimizer, 1.0)
    with pytest.raises(RuntimeError, match=r"call check\(\) of this step first"):
        guard.clip(optimizer, 1.0)


def test_the_decision_waits_for_the_device_once_or_never_and_the_clipping_never() -> None:
    found: list[str] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    guard, optimizer = StepGuard(0), optimizer_with_gradients(1.0)
    with Reads():
        guard.check(optimizer, 0)
        assert found.count("_local_scalar_dense") == 1
        guard.clip(optimizer, 0.5)
    assert found.count("_local_scalar_dense") == 1 and "_foreach_mul_" in found
    for group in optimizer.param_groups:
        group["fused"] = True  # as one that skips by itself
    found.clear()
    with Reads():
        guard.check(optimizer, 0)
    assert found and "_local_scalar_dense" not in found


RUNS: dict[str, dict[str, Any]] = {
    "norm": {"gradient_clip_val": 0.02},
    "accumulated": {"gradient_clip_val": 0.02, "accumulate_grad_batches": 2},
    "value": {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"},
    "none": {},
    "bf16": {"gradient_clip_val": 0.02, "precision": "bf16-mixed"},
    "scaler": {"gradient_clip_val": 0.02},
}


def run(name: str, workspace: Workspace, folder: Path, *, as_lightning: bool) -> tuple[dict[str, Tensor], list[int]]:
    """Weights after three steps, and how often either norm was taken: ours, Lightning's."""
    calls = [0, 0]
    settings = dict(RUNS[name])
    if name == "scaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        settings["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    module = make_module(workspace.teacher, optimizer=partial(AdamW, lr=1e-3, eps=1e-3), gradient_shares_every=0)
    trainer = make_trainer(folder, max_steps=3, **settings)
    with pytest.MonkeyPatch.context() as patch:
        for index, function in enumerate(("get_total_norm", "clip_grad_norm_")):
            patch.setattr(torch.nn.utils, function, counted(getattr(torch.nn.utils, function), calls, index))
        if as_lightning:
            original = LightningModule.configure_gradient_clipping
            patch.setattr(type(module), "configure_gradient_clipping", original)
        trainer.fit(module, datamodule=make_data(workspace))
    return weights_of(module.network.model), calls


def counted(function: Any, calls: list[int], index: int) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        calls[index] += options.get("norm_type") != math.inf  # that one is of the weights
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_with_lightnings_clipping_and_takes_the_norm_once_a_step(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    ours, calls = run(name, workspace, tmp_path, as_lightning=False)
    assert calls == [3, 0]
    theirs, calls = run(name, workspace, tmp_path, as_lightning=True)
    assert calls == [3, 0 if name in ("value", "none") else 3]
    assert_equal(ours, theirs)
    if name in ("norm", "value"):  # not vacuous: without clipping the run ends elsewhere
        free, _ = run("none", workspace, tmp_path, as_lightning=False)
        assert any(not torch.equal(free[key], value) for key, value in ours.items())


def test_fused_optimizers_clip_in_bfloat16_and_are_refused_where_they_hide_a_loss_scale(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Lightning takes every fused optimizer under mixed precision for one that hides a scale."""
    fused = partial(AdamW, lr=1e-3, fused=True)
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=64.0)):
        module = make_module(workspace.teacher, optimizer=fused)
        plugins = [MixedPrecision("16-mixed" if scaler else "bf16-mixed", "cpu", scaler)]
        trainer = make_trainer(tmp_path, max_steps=1, gradient_clip_val=0.1, plugins=plugins)
        if scaler is None:
            trainer.fit(module, datamodule=make_data(workspace))
            assert trainer.global_step == 1
        else:
            with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
                trainer.fit(module, datamodule=make_data(workspace))
