"""What the optimizer gets: groups with and without weight decay, slower learning in lower layers, frozen layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_distil.messages import causes, one_line
from lit_distil.pieces import PieceError


def parameter_groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Split the trained parameters into two groups for an optimizer: with weight decay, and without.

    Biases and normalisation weights are not decayed (BERT, appendix A.2, and its code): a parameter that is called
    `bias`, that has fewer than two dimensions, or that belongs to a layer whose class name ends in `Norm`. All others
    are decayed, including embeddings. A tied parameter is listed once. The order is the same on every rank and after a
    resume.

    Args:
        module: The module to train.
        weight_decay: Decay of the first group, 0 or more; None takes the optimizer's own.

    Returns:
        The groups that are not empty, with `params`; the one without decay has `weight_decay: 0.0`.

    Raises:
        ValueError: The decay is negative, or there is nothing to train.
    """
    if weight_decay is not None and not weight_decay >= 0:
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay}")
    norms = [part for part in module.modules() if type(part).__name__.endswith("Norm")]
    normalised = {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}
    decayed: dict[str, Any] = {"params": []} | ({} if weight_decay is None else {"weight_decay": weight_decay})
    plain: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2] == "bias" or parameter.ndim < 2
            (plain if is_bias or id(parameter) in normalised else decayed)["params"].append(parameter)
    groups = [group for group in (decayed, plain) if group["params"]]
    if not groups:
        raise ValueError(f"{type(module).__name__} has no parameter to train: all of them are frozen")
    return groups


def build_optimizer(factory: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Build an optimizer over groups, each with its scaled learning rate.

    Raises:
        ValueError: The optimizer refuses its settings or the parameters.
    """
    try:
        optimizer = factory(groups)
    except (Exception, PieceError) as error:  # each optimizer refuses settings its own way
        reason = one_line([*causes(error)][-1])
        raise ValueError(
            f"model.optimizer: it refuses its settings or these parameters: {reason}; it must "
            "take parameters of any shape, in groups with a weight decay each, as torch.optim.AdamW does"
        ) from error
    scale_learning_rates(optimizer.param_groups)
    return optimizer


def layers_of_parameters(model: nn.Module, num_layers: int) -> dict[str, int]:
    """Number the layer of each parameter: 0 for the embeddings, 1 to `num_layers` for the blocks, then the rest.

    The rest is the head, with a pooler and a final normalisation. A tied parameter has the layer of its first name.

    Args:
        model: A Hugging Face encoder with a head.
        num_layers: Number of blocks in its configuration.

    Returns:
        Name to layer, in the order of `named_parameters`.

    Raises:
        ValueError: The model has no list of that many blocks.
    """
    modules = dict(model.named_modules())
    stacks = [name for name, part in modules.items() if isinstance(part, nn.ModuleList) and len(part) == num_layers]
    if not stacks:
        raise ValueError(
            f"{type(model).__name__} has no list of {num_layers} blocks (it may share one among its layers), so "
            "layer_decay and freeze_layers cannot tell them apart; leave both out"
        )
    prefix = f"{min(stacks, key=lambda name: name.count('.'))}."
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if name.startswith(prefix):
            layers[name] = int(name[len(prefix) :].split(".", 1)[0]) + 1
        else:
            is_table = isinstance(modules[name.rpartition(".")[0]], nn.Embedding)
            # or a module of the embeddings, such as ELECTRA's `embeddings_project`
            is_embedding = is_table or any(part.startswith("embeddings") for part in name.split("."))
            layers[name] = 0 if is_embedding else num_layers + 1
    return layers


def layered_groups(module: nn.Module, layers: dict[str, int], *, decay: float) -> list[dict[str, Any]]:
    """Make parameter groups whose learning rates fall by a factor from each layer to the one below (ELECTRA, table 6).

    As in ELECTRA's code, there are two steps from the head to the highest block: with n blocks, the head learns at the
    peak rate, block i (counted from 1) at `decay ** (n + 2 - i)` times the peak, and the embeddings at
    `decay ** (n + 2)` times. The group stores the factor as `lr_factor`, for `scale_learning_rates`. Groups are split
    as in `parameter_groups`, with the head's first.

    Args:
        module: The module to train.
        layers: Name of a parameter to its layer. A parameter without a layer, such as a loss's own, learns at the full
            rate.
        decay: Factor between two layers, see `check_layer_decay`.

    Raises:
        ValueError: There is nothing to train.
    """
    top = max(layers.values())
    layer_of = {id(parameter): layers.get(name, top) for name, parameter in module.named_parameters()}
    undivided, groups = parameter_groups(module), []
    for layer in range(top, -1, -1):
        for group in undivided:
            if chosen := [parameter for parameter in group["params"] if layer_of[id(parameter)] == layer]:
                factor = decay ** (top + 1 - layer) if layer < top else 1.0
                groups.append({**group, "params": chosen, "lr_factor": factor})
    return groups


def check_layer_decay(decay: float) -> None:
    """Refuse a factor that is not above 0 and at most 1."""
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1 (1 or null: one learning rate), got {decay}")


def scale_learning_rates(groups: list[dict[str, Any]]) -> None:
    """Multiply the learning rate of each of an optimizer's groups by its `lr_factor`, if it has one."""
    for group in groups:
        group["lr"] = group["lr"] * group.get("lr_factor", 1.0)


def freeze_lowest(model: nn.Module, num_frozen: int, num_layers: int) -> None:
    """Freeze the embeddings and the lowest blocks: their parameters get no gradient and are in no optimizer.

    Their dropout stays on in training, so that the blocks above see the same noise as without freezing.

    Args:
        model: A Hugging Face encoder with a head.
        num_frozen: Blocks to freeze, from the lowest; 0 freezes the embeddings alone, -1 nothing.
        num_layers: Number of blocks in its configuration.

    Raises:
        ValueError: The model has fewer blocks.
    """
    if not -1 <= num_frozen <= num_layers:
        raise ValueError(
            f"freeze_layers must lie between -1 (nothing), 0 (the embeddings) and {num_layers}, the network's blocks, "
            f"got {num_frozen}"
        )
    if num_frozen < 0:
        return
    layers = layers_of_parameters(model, num_layers)
    for name, parameter in model.named_parameters():
        if layers[name] <= num_frozen:
            parameter.requires_grad_(False)


def apply_configured(
    optimizers: Iterable[Optimizer], schedulers: Iterable[Any], configured: Sequence[dict[str, Any]]
) -> None:
    """Let the configuration override a checkpoint: a resumed optimizer has the options that it was saved with.

    Args:
        optimizers: The restored optimizers.
        schedulers: Their schedulers; a `LambdaLR` continues from the step that it was restored to.
        configured: Learning rate, betas, decay and so on of each parameter group, as the optimizer was built.
    """
    for optimizer in optimizers:
        for group, options in zip(optimizer.param_groups, configured, strict=True):
            group.update(options)
    for scheduler in schedulers:
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs = [options["lr"] for options in configured]
            for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                group["initial_lr"] = base
                group["lr"] = base * factor(scheduler.last_epoch)
