"""Modules with teachers: settings that change over the steps, several teachers, and mistakes about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distil.models import EveryOther, Pretrained
from lit_distil.objectives import MaskedLMLoss, SoftTargetLoss
from lit_distil.schedules import LinearRamp, Stages
from tests.modules.test_distillation import make_data, make_module, make_trainer
from tests.workspace import Workspace


class Recorder(Callback):
    """Keeps what the first objective's settings were in each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        soft = pl_module.objectives["soft"]
        self.seen.append((soft.weight, soft.temperature))


def test_weight_and_temperature_follow_their_schedules_and_come_to_rest_in_evaluation(
    workspace: Workspace, tmp_path: Path
) -> None:
    soft = SoftTargetLoss(LinearRamp(4.0, 1.0, steps=3), weight=Stages([0.0, 5.0], [2]))
    recorder, module = Recorder(), make_module(workspace.teacher, objectives={"soft": soft, "mlm": MaskedLMLoss()})
    trainer = make_trainer(tmp_path, max_steps=5, callbacks=[recorder], limit_val_batches=1)
    trainer.fit(module, datamodule=make_data(workspace))
    assert recorder.seen == [(0.0, 4.0), (0.0, 3.0), (5.0, 2.0), (5.0, 1.0), (5.0, 1.0)]
    assert module.latest["train/weight/soft"] == 5.0 and module.latest["train/temperature/soft"] == 1.0
    soft.set_step(0)
    trainer.validate(module, datamodule=make_data(workspace), verbose=False)
    assert (soft.weight, soft.temperature) == (5.0, 1.0)


def test_two_teachers_are_distilled_as_the_mean_of_their_distributions(workspace: Workspace, tmp_path: Path) -> None:
    weaker = tmp_path / "weaker"
    model, _ = EveryOther().build(Pretrained(workspace.teacher).build(None))
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(weaker)
    from lit_distil.data import load_tokenizer

    load_tokenizer(workspace.byte_bpe).save_pretrained(weaker)
    module = make_module(
        {"large": workspace.teacher, "small": str(weaker)},  # type: ignore[arg-type]
        teacher_weights={"large": 3.0, "small": 1.0},
        objective_teachers={"cosine": "large"},
        gradient_shares_every=1,
    )
    trainer = make_trainer(tmp_path / "run", max_steps=2)
    trainer.fit(module, datamodule=make_data(workspace))
    shares = [module.latest[f"train/gradient_share/{name}"] for name in ("soft", "cosine", "mlm")]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5) and min(shares) > 0
    batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    module.eval()
    with torch.no_grad():
        student, teachers = module.outputs(batch)
        assert set(teachers) == {"large", "small"}
        _, sums = module.terms.total(student, teachers, batch, batch.counts)
    num_masked = batch.counts["masked"]
    logits = {name: one.projection.logits()[:num_masked] for name, one in teachers.items()}  # type: ignore[union-attr]
    mixture = 0.75 * F.softmax(logits["large"] / 2, -1) + 0.25 * F.softmax(logits["small"] / 2, -1)
    own = student.projection.logits()[:num_masked]  # type: ignore[union-attr]
    expected = 4 * F.kl_div(F.log_softmax(own / 2, -1), mixture, reduction="sum")
    torch.testing.assert_close(sums["soft"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_weights": {"large": 1.0}}, r"model\.teacher_weights names \['large'\], and the teachers are"),
        ({"teacher_weights": {"large": 1.0, "small": 0.0}}, r"model\.teacher_weights must be positive, got"),
        ({"objective_teachers": {"sfot": "large"}}, r"model\.objective_teachers: sfot: large"),
        (
            {"objective_teachers": {"cosine": "large", "mlm": "small"}},
            r"mlm: small - mlm \(MaskedLMLoss\) compares with no teacher",
        ),
        ({"gradient_shares_every": -1}, r"model\.gradient_shares_every must be at least 0"),
    ],
)
def test_mistakes_about_several_teachers_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module({"large": "a", "small": "b"}, **{"objective_teachers": {"cosine": "large"}, **changes})  # type: ignore[arg-type]


def test_a_teacher_that_no_objective_compares_with_is_told(recwarn: pytest.WarningsRecorder) -> None:
    chosen = {"soft": "large", "cosine": "large"}
    with pytest.warns(UserWarning, match=r"model\.teacher: no objective compares with small"):
        make_module({"large": "a", "small": "b"}, objective_teachers=chosen)  # type: ignore[arg-type]
    recwarn.clear()
    make_module({"large": "a", "small": "b"}, objective_teachers={"cosine": "large"})  # type: ignore[arg-type]
    assert not recwarn
