from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lit_distil.optim import LinearSchedule, apply_configured, parameter_groups


class ScaleNorm(nn.Module):
    """A normalisation of our own, with a matrix for a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


@pytest.fixture(scope="module")
def bert() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    return BertForMaskedLM(config)


def names(module: nn.Module, group: dict) -> set[str]:
    of = {id(p): n for n, p in module.named_parameters()}
    return {of[id(p)] for p in group["params"]}


def test_bert_decays_what_its_authors_decay(bert: BertForMaskedLM) -> None:
    decayed, plain = parameter_groups(bert, 0.01)
    # the rule of the authors' AdamWeightDecayOptimizer: exclude by name
    excluded = {n for n, _ in bert.named_parameters() if "LayerNorm" in n or "bias" in n}
    assert names(bert, plain) == excluded and len(excluded) > 10
    assert names(bert, decayed) == {n for n, _ in bert.named_parameters()} - excluded
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert "bert.embeddings.word_embeddings.weight" in names(bert, decayed)


def test_tied_and_all_parameters_are_there_once(bert: BertForMaskedLM) -> None:
    assert bert.cls.predictions.decoder.weight is bert.bert.embeddings.word_embeddings.weight
    flat = [id(p) for group in parameter_groups(bert) for p in group["params"]]
    assert len(flat) == len(set(flat)) == len(list(bert.parameters()))


def test_decay_left_out_is_the_optimizers_own(bert: BertForMaskedLM) -> None:
    groups = parameter_groups(bert)
    assert "weight_decay" not in groups[0]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.123)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.123, 0.0]


def test_decay_shrinks_weights_and_leaves_biases_and_norms(bert: BertForMaskedLM) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(parameter_groups(module, 0.5), lr=0.1).step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if name == "0.weight" else 1.0), msg=name)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = parameter_groups(module)
    assert [names(module, g) for g in groups] == [{"1.weight"}, {"1.bias"}]
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        parameter_groups(module)


def test_norms_are_known_by_the_name_of_their_class_and_by_dimension() -> None:
    module = nn.ModuleDict(
        {
            "layer": nn.LayerNorm((2, 2)),
            "rms": nn.RMSNorm(2),
            "batch": nn.BatchNorm1d(2),
            "own": ScaleNorm(),
            "linear": nn.Linear(2, 2, bias=False),
            "bilinear_bias": nn.Embedding(2, 2),
        }
    )
    decayed, plain = parameter_groups(module, 0.1)
    assert names(module, decayed) == {"linear.weight", "bilinear_bias.weight"}
    expected = {"layer.weight", "layer.bias", "rms.weight", "batch.weight", "batch.bias", "own.weight"}
    assert names(module, plain) == expected


def test_an_empty_group_is_left_out() -> None:
    assert [g["weight_decay"] for g in parameter_groups(nn.LayerNorm(2), 0.1)] == [0.0]
    assert [g["weight_decay"] for g in parameter_groups(nn.Linear(2, 2, bias=False), 0.1)] == [0.1]


def test_negative_decay_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_decay must be 0 or more, got -0\.1"):
        parameter_groups(nn.Linear(2, 2), -0.1)


def build_optimizer(
    lr: float, betas: tuple[float, float]
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": lr / 10}, {"params": parameters[1:], "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas)
    return optimizer, LinearSchedule(warmup=0.0).build(optimizer, 10)


def test_options_of_the_configuration_win_and_the_schedule_goes_on_from_its_step() -> None:
    old, old_schedule = build_optimizer(1e-3, (0.9, 0.999))
    for _ in range(4):
        old.step()
        old_schedule.step()
    new, schedule = build_optimizer(5e-4, (0.8, 0.9))
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
