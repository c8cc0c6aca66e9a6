from __future__ import annotations

import pytest
import torch

from lit_distil.optim import LinearSchedule, apply_configured


def build(lr: float, betas: tuple[float, float]) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": lr / 10}, {"params": parameters[1:], "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas)
    return optimizer, LinearSchedule(warmup=0.0).build(optimizer, 10)


def test_options_of_the_configuration_win_and_the_schedule_goes_on_from_its_step() -> None:
    old, old_schedule = build(1e-3, (0.9, 0.999))
    for _ in range(4):
        old.step()
        old_schedule.step()
    new, schedule = build(5e-4, (0.8, 0.9))
    configured = [{k: v for k, v in group.items() if k != "params"} for group in new.param_groups]
    configured = [{**options, "lr": options["initial_lr"]} for options in configured]
    new.load_state_dict(old.state_dict())
    schedule.load_state_dict(old_schedule.state_dict())
    assert new.param_groups[1]["betas"] == (0.9, 0.999)
    apply_configured([new], [schedule], configured)
    assert [group["betas"] for group in new.param_groups] == [(0.8, 0.9)] * 2
    assert [group["lr"] for group in new.param_groups] == pytest.approx([0.6 * 5e-5, 0.6 * 5e-4])
    schedule.step()
    assert [group["lr"] for group in new.param_groups] == pytest.approx([0.5 * 5e-5, 0.5 * 5e-4])
