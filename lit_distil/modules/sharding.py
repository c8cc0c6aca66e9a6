"""FSDP2: which parts of a network are sharded, and in what order."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(network: nn.Module, objectives: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard each layer of the network and then the rest, and what the objectives train.

    Raises:
        ValueError: The mesh asks for tensor parallelism.
    """
    from torch.distributed.fsdp import fully_shard

    if mesh["tensor_parallel"].size() > 1:
        raise ValueError("trainer.strategy.tensor_parallel_size must be 1: encoders are sharded by data only")
    data_mesh = mesh["data_parallel"]
    for module in list(network.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=data_mesh)
    fully_shard(network, mesh=data_mesh)
    for objective in objectives:
        if any(True for _ in objective.parameters()):  # a projection; else nobody would average its gradients
            fully_shard(objective, mesh=data_mesh)
