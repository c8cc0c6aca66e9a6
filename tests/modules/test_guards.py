"""A step whose gradient is not finite is not taken, and a run of nothing else ends; every output has a gradient."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lit_distil.modules import meters
from lit_distil.modules.guards import DivergedError, StepGuard, host_group, with_all_outputs
from lit_distil.objectives import HiddenCosineLoss
from lit_distil.optim import BertAdam
from lit_distil.types import EncoderOutput, Projection
from tests.modules.test_distillation import make_data, make_module, make_trainer
from tests.objectives.examples import make_batch, make_output
from tests.workspace import Workspace, fit

KERNELS: dict[str, Any] = {
    "AdamW": partial(torch.optim.AdamW, lr=0.1),
    "fused AdamW": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "fused SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "fused Adagrad": partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1, fused=True),
    "fused BertAdam": partial(BertAdam, lr=0.1, fused=True),
    "NAdam": partial(torch.optim.NAdam, lr=0.1),
    "LBFGS": partial(torch.optim.LBFGS, lr=0.1),
}


def optimizer_with(gradient: float, kernel: str = "AdamW") -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = KERNELS[kernel](parameters)
    set_gradients(optimizer, gradient)
    return optimizer


def set_gradients(optimizer: torch.optim.Optimizer, gradient: float) -> list[nn.Parameter]:
    parameters = optimizer.param_groups[0]["params"]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2,), gradient)
    return parameters


def test_finite_gradients_are_left_alone_and_measured() -> None:
    optimizer = optimizer_with(1.0)
    norm = StepGuard(0).check(optimizer, 7)
    assert norm.item() == pytest.approx(math.sqrt(3 * 4 + 2))
    assert optimizer.param_groups[0]["params"][0].grad.tolist() == [2.0] * 3


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gradient", [math.inf, math.nan])
def test_one_bad_entry_takes_the_step_away_so_that_nothing_moves(gradient: float, kernel: str) -> None:
    """Neither weights nor averages nor weight decay; afterwards steps go on as if there had been none."""
    optimizer, guard = optimizer_with(gradient, kernel), StepGuard(3)
    assert not guard.check(optimizer, 7).isfinite()
    closure = lambda: torch.zeros(())  # noqa: E731
    optimizer.step(closure)
    parameters = optimizer.param_groups[0]["params"]
    assert guard.num_skipped == 1 and all(torch.equal(p, torch.ones_like(p)) for p in parameters)
    other = optimizer_with(1.0, kernel)
    for each in (optimizer, other):
        for value in (1.0, -0.5):
            set_gradients(each, value)
            guard.check(each, 8)
            each.step(closure)
    assert guard.num_skipped == 1 and not torch.equal(parameters[0], torch.ones(3))
    for mine, yours in zip(parameters, other.param_groups[0]["params"], strict=True):
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("kernel", ["fused AdamW", "fused SGD", "fused Adagrad", "fused BertAdam"])
def test_steps_of_finite_gradients_are_torchs_bit_for_bit(kernel: str) -> None:
    ours, theirs = optimizer_with(1.0, kernel), optimizer_with(1.0, kernel)
    guard = StepGuard(0)
    for value in (1.0, 0.3, -2.0):
        for each in (ours, theirs):
            set_gradients(each, value)
        guard.check(ours, 0)
        ours.step()
        theirs.step()
    for mine, yours in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(mine, yours) and not torch.equal(mine, torch.ones_like(mine))


def test_skipped_steps_are_counted_on_the_device_until_they_are_reported() -> None:
    guard = StepGuard(2)
    for gradient in (1.0, math.nan, math.nan, 1.0, math.inf):
        guard.check(optimizer_with(gradient, "fused AdamW"), 0)
    with pytest.warns(UserWarning, match=r"^step 5: .*in 3 steps since the last report"):
        guard.report(5)
    guard.check(optimizer_with(math.nan, "fused AdamW"), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard.report(6)  # the row that was reported goes on
    saved = json.loads(json.dumps(guard.state()))
    assert saved["num_skipped"] == 4 and saved["in_a_row"] == 2
    resumed = StepGuard(2)
    resumed.restore(saved)
    for each in (guard, resumed):  # a row that was longer in between ends the run, too
        for gradient in (math.nan, 1.0, 1.0):
            each.check(optimizer_with(gradient, "fused AdamW"), 0)
        with pytest.raises(DivergedError, match=r"^step 9: .* in 3 steps in a row"):
            each.report(9)


@pytest.mark.filterwarnings("ignore:step")
def test_patience_is_for_steps_in_a_row() -> None:
    guard = StepGuard(2)
    for _ in range(3):
        for gradient in (math.nan, math.nan, 1.0):
            guard.check(optimizer_with(gradient), 0)
    assert guard.num_skipped == 6
    guard.check(optimizer_with(math.nan), 0)
    guard.check(optimizer_with(math.nan), 1)
    with pytest.raises(RuntimeError, match=r"step 2: .* 3 steps in a row.*Lower the learning rate"):
        guard.check(optimizer_with(math.nan), 2)


def test_negative_patience_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.max_skipped_steps must be at least 0, got -1"):
        StepGuard(-1)


class Poison(Callback):
    """Plants an infinite gradient in some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps
        self.weights: list[torch.Tensor] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step in self.steps:
            next(p for p in pl_module.parameters() if p.grad is not None).grad[0] = math.inf  # type: ignore[index]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.network.parameters()]))


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("fused", [False, True])
def test_a_poisoned_step_is_skipped_in_training_and_counted(workspace: Workspace, tmp_path: Path, fused: bool) -> None:
    poison = Poison({1, 2})
    module = make_module(workspace.teacher, optimizer=partial(torch.optim.AdamW, lr=1e-2, fused=fused))
    trainer = make_trainer(tmp_path, max_steps=5, callbacks=[poison])
    trainer.fit(module, datamodule=make_data(workspace))
    weights = poison.weights
    assert torch.equal(weights[1], weights[0]) and torch.equal(weights[2], weights[0])
    assert not torch.equal(weights[3], weights[2]) and weights[-1].isfinite().all()
    assert module.guard.num_skipped == 2


class NoNumber(HiddenCosineLoss):
    """An own loss that is undefined in the second and the third step."""

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        loss = super().forward(*given, **named)
        self.num_calls = getattr(self, "num_calls", 0) + 1
        return loss * (math.nan if self.num_calls in (2, 3) else 1.0)


@pytest.mark.parametrize("fused", [False, True])
def test_the_term_that_is_no_number_is_named(workspace: Workspace, tmp_path: Path, fused: bool) -> None:
    terms = {"fine": HiddenCosineLoss(), "own": NoNumber(), "watched": NoNumber(weight=0.0)}
    optimizer = partial(torch.optim.AdamW, lr=1e-2, fused=fused)
    module = make_module(workspace.teacher, objectives=terms, optimizer=optimizer)
    trainer = make_trainer(tmp_path, max_steps=4, log_every_n_steps=4)
    with pytest.warns(UserWarning, match=r"skipped \(of the terms of the loss, own had no finite value\)"):
        trainer.fit(module, datamodule=make_data(workspace))
    assert module.guard.num_skipped == 2


@pytest.mark.filterwarnings("ignore:step")
def test_a_run_of_poisoned_steps_ends_with_finite_weights(workspace: Workspace, tmp_path: Path) -> None:
    module = make_module(workspace.teacher, max_skipped_steps=2)
    trainer = make_trainer(tmp_path, max_steps=9, callbacks=[Poison(set(range(1, 9)))])
    with pytest.raises(DivergedError, match="3 steps in a row"):
        trainer.fit(module, datamodule=make_data(workspace))
    assert trainer.global_step == 3 and all(p.isfinite().all() for p in module.network.parameters())


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("fused", [False, True])
def test_a_run_on_a_device_ends_with_finite_weights_when_a_step_is_logged(
    workspace: Workspace, tmp_path: Path, fused: bool
) -> None:
    """Of the steps 2 to 4; only what skips on the device may go on until the sixth, which is logged."""
    optimizer = partial(torch.optim.AdamW, lr=1e-2, fused=fused)
    module = make_module(workspace.teacher, max_skipped_steps=2, optimizer=optimizer)
    trainer = make_trainer(tmp_path, max_steps=20, log_every_n_steps=6, callbacks=[Poison({1, 2, 3})])
    with pytest.raises(DivergedError, match=rf"step {6 if fused else 3}: .*3 steps in a row"):
        trainer.fit(module, datamodule=make_data(workspace))
    assert trainer.global_step == (6 if fused else 3)
    assert all(p.isfinite().all() for p in module.network.parameters())


@pytest.mark.filterwarnings("ignore:step")
def test_a_run_that_takes_no_step_at_all_is_an_error(workspace: Workspace, tmp_path: Path) -> None:
    """Its weights are finite: those that it began with."""
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[Poison(set(range(4)))])
    with pytest.raises(DivergedError, match=r"4 of 4 steps were skipped, .* the weights are those from the start"):
        trainer.fit(make_module(workspace.teacher), datamodule=make_data(workspace))
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[Poison({0, 1, 2})])
    with pytest.warns(UserWarning, match="^3 of 4 steps were skipped"):
        trainer.fit(make_module(workspace.teacher), datamodule=make_data(workspace))


def far_away(value: float) -> tuple[StepGuard, nn.Module]:
    guard, layer = StepGuard(0), nn.Linear(4, 4)
    guard.start(layer)
    with torch.no_grad():
        layer.weight[1, 2] = value
    return guard, layer


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "a weight is infinite or undefined"),
        (-math.inf, "a weight is infinite or undefined"),
        (-1001.0, r"the largest weight has grown from 0\.\d+ to 1e\+03"),
    ],
)
def test_weights_that_are_no_numbers_or_far_away_end_the_run(value: float, message: str) -> None:
    guard, layer = far_away(value)
    with pytest.raises(DivergedError, match=rf"^step 7: {message}, so the run ends here and writes neither"):
        guard.check_weights(layer, 7)


def test_weights_are_compared_with_those_of_the_start_also_after_a_resume() -> None:
    guard, layer = far_away(900.0)
    guard.check_weights(layer, 7)
    resumed = StepGuard(0)
    resumed.restore(json.loads(json.dumps(guard.state())))
    resumed.start(layer)
    with torch.no_grad():
        layer.weight *= 2
    for each in (guard, resumed):
        with pytest.raises(DivergedError, match="has grown from 0"):
            each.check_weights(layer, 8)
    large = StepGuard(0)
    large.start(layer)  # a network that has such weights from the beginning
    with torch.no_grad():
        layer.weight *= 100
    large.check_weights(layer, 8)


def test_a_validation_loss_that_is_no_number_ends_the_run_until_the_next_is_one() -> None:
    guard, layer = far_away(0.5)
    guard.validation_loss = math.nan
    with pytest.raises(DivergedError, match=r"^step 3: the validation loss is nan"):
        guard.check_weights(layer, 3)
    guard.validation_loss = 2.0
    guard.check_weights(layer, 4)


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("every_n_steps", [1, None])
def test_a_run_that_diverges_keeps_its_checkpoints_and_exports_nothing(
    workspace: Workspace, tmp_path: Path, every_n_steps: int | None
) -> None:
    """A learning rate of 1e30 made weights of 1e30, a validation loss of NaN, and an export."""
    saving = {"class_path": "lit_distil.callbacks.RunCheckpoint", "init_args": {"every_n_steps": every_n_steps}}
    settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "callbacks": [saving]}
    config = workspace.pretraining()
    config["model"]["init_args"].pop("schedule")
    run = fit(config, tmp_path / "run", max_steps=2, **settings)
    shutil.rmtree(run / "export")
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1e30
    with pytest.raises(DivergedError, match=r"^step 3: the largest weight has grown from \d\S* to \d\S*e\+\d\d, so"):
        fit(config, run, "--ckpt_path", "last", max_steps=4, **settings)
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before
    assert not (run / "export").exists() and len(before) == 4


class InfiniteLogits(Callback):
    """Makes some logits of the student infinite in some steps, as an overflow does."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        bias = pl_module.network.model.get_output_embeddings().bias
        with torch.no_grad():
            if trainer.global_step in self.steps:
                self.before = bias[7].item()
                bias[7] = math.inf

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        bias = pl_module.network.model.get_output_embeddings().bias
        with torch.no_grad():
            if bias[7].isinf():
                bias[7] = self.before


@pytest.mark.filterwarnings("ignore:step")
def test_infinite_logits_skip_the_step_and_leave_finite_weights(workspace: Workspace, tmp_path: Path) -> None:
    """The closed forms must not make an infinity look like a gradient."""
    module = make_module(workspace.teacher, gradient_shares_every=0)
    trainer = make_trainer(tmp_path, max_steps=5, callbacks=[InfiniteLogits({1, 3})])
    trainer.fit(module, datamodule=make_data(workspace))
    assert module.guard.num_skipped == 2
    assert all(parameter.isfinite().all() for parameter in module.network.parameters())


def test_every_output_takes_a_gradient_and_the_loss_is_what_it_was() -> None:
    """Under DDP a parameter without a gradient ends the run; an infinity times 0 would end it, too."""
    student, teacher = make_output(1), make_output(2)
    assert student.logits is not None
    with torch.no_grad():
        student.logits[0, 0] = torch.inf
    student.next_sentence_logits = torch.ones(3, 2, requires_grad=True)
    loss = HiddenCosineLoss()(student, teacher, make_batch())
    leaves = [student.logits, student.next_sentence_logits, student.last_hidden_state]
    before = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    assert before[:2] == (None, None)
    joined = with_all_outputs(loss, student)
    after = torch.autograd.grad(joined, leaves)
    assert torch.equal(joined, loss) and before[2].abs().max() > 0
    assert not after[0].any() and not after[1].any() and torch.equal(after[2], before[2])
    features = make_output(1).logits
    assert features is not None
    deferred = EncoderOutput(
        student.last_hidden_state.detach(), projection=Projection(features, torch.eye(features.shape[1]), None)
    )
    joined = with_all_outputs(loss.detach().requires_grad_(), deferred)
    assert not torch.autograd.grad(joined, features)[0].any()


def test_the_hosts_wait_for_a_lost_rank_as_long_as_the_strategy_says() -> None:
    """The group's own default is half an hour, whatever the run's timeout is."""
    trainer: Any = SimpleNamespace(strategy=DDPStrategy(timeout=timedelta(seconds=7)))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        group = host_group(trainer)
        assert group is host_group(trainer)
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=7)
    finally:
        torch.distributed.destroy_process_group()


COUNT_FAULTS = """
import resource, sys, torch
from lit_distil.modules.guards import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 48 MB, written and freed
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

faults()
returned = faults()
keep_freed_memory()
faults()
print(returned, faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")
def test_memory_that_is_freed_is_there_for_the_next_step() -> None:
    """The kernel hands out a page (4 kB, or a huge one) at each first touch."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    returned, kept = map(float, done.stdout.split())
    assert returned > 20 and kept < 2


def test_a_run_on_the_cpu_keeps_it(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(meters, "keep_freed_memory", lambda: called.append(True))
    fit(workspace.pretraining(), tmp_path / "run", max_steps=1)
    assert called == [True]
