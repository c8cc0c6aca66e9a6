"""The layers of an encoder, from the embeddings to the head: slower learning below, or none at all."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_distil.optim.groups import parameter_groups


def layers_of_parameters(model: nn.Module, num_layers: int) -> dict[str, int]:
    """To which layer each parameter belongs: 0 the embeddings, 1 to `num_layers` the blocks, one more what follows.

    What follows is the head, and with it a pooler and a last normalisation. A tied parameter has its first place.

    Args:
        model: An encoder of Hugging Face with a head.
        num_layers: Blocks that its configuration names.

    Returns:
        Name to layer, in the order of `named_parameters`.

    Raises:
        ValueError: The model has no list of so many blocks.
    """
    stacks = [
        name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == num_layers
    ]
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
        else:  # ELECTRA widens its embeddings by `embeddings_project`
            is_embedding = any(part.startswith("embeddings") for part in name.split("."))
            layers[name] = 0 if is_embedding else num_layers + 1
    return layers


def layered_groups(module: nn.Module, layers: dict[str, int], *, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rates fall by a factor from each layer to the one below (ELECTRA, table 6).

    Layer `l` of `L` learns at `decay ** (L - l)` times the peak. The factor stands in the group as `lr_factor`, for
    `scale_learning_rates`. Groups are as in `parameter_groups`, those of the head first.

    Args:
        module: What is trained.
        layers: Name of a parameter to its layer; one that is not named learns at the full rate, as a loss's own do.
        decay: Factor between two layers, above 0 and at most 1.

    Raises:
        ValueError: The factor is out of range, or nothing trains.
    """
    check_layer_decay(decay)
    top = max(layers.values())
    members: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault(layers.get(name, top), []).append(name)
    by_name = dict(module.named_parameters())
    groups: list[dict[str, Any]] = []
    plain = parameter_groups(module)
    for layer in sorted(members, reverse=True):
        wanted = {id(by_name[name]) for name in members[layer]}
        for group in plain:
            if chosen := [parameter for parameter in group["params"] if id(parameter) in wanted]:
                groups.append({**group, "params": chosen, "lr_factor": decay ** (top - layer)})
    return groups


def scale_learning_rates(groups: list[dict[str, Any]]) -> None:
    """Multiply the learning rate of each of an optimizer's groups by its `lr_factor`, where it has one."""
    for group in groups:
        group["lr"] = group["lr"] * group.get("lr_factor", 1.0)


def check_layer_decay(decay: float) -> None:
    """Raises:
    ValueError: The factor is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1 (1 or null: one learning rate), got {decay}")


def freeze_lowest(model: nn.Module, num_frozen: int, num_layers: int) -> None:
    """Freeze the embeddings and the lowest blocks: their parameters get no gradient and are in no optimizer.

    Their dropout stays as it is in training, which is what fine-tuning does elsewhere (`requires_grad_(False)` in
    transformers): what is above learns on the same noise as with nothing frozen.

    Args:
        model: An encoder of Hugging Face with a head.
        num_frozen: Blocks to freeze, from the lowest; 0 freezes the embeddings alone, -1 nothing.
        num_layers: Blocks that its configuration names.

    Raises:
        ValueError: There are fewer blocks.
    """
    if not -1 <= num_frozen <= num_layers:
        raise ValueError(
            f"freeze_layers must lie between -1 (nothing), 0 (the embeddings) and {num_layers}, the blocks of this "
            f"{getattr(model, 'base_model_prefix', 'network')}, got {num_frozen}"
        )
    if num_frozen < 0:
        return
    layers = layers_of_parameters(model, num_layers)
    for name, parameter in model.named_parameters():
        if layers[name] <= num_frozen:
            parameter.requires_grad_(False)
