"""Teachers: frozen networks that stand beside a module and never in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from lit_distil.models import FlatNetwork, Pretrained
from lit_distil.models.sources import Head
from lit_distil.types import Batch, EncoderOutput, Vocabulary


class FrozenTeacher:
    """Holds the teacher beside the student's parameters, not among them.

    It is no submodule, so optimizer, DDP's buckets, checkpoints, `state_dict` and weight averaging never see it; a
    deep copy of the module shares it; `.train()` on the module cannot wake its dropout.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self.network: Any = network.eval().requires_grad_(False)

    @torch.no_grad()  # not inference mode: inference tensors cannot be saved for the student's backward
    def __call__(self, batch: Batch, **request: Any) -> EncoderOutput:
        """What the teacher makes of the batch, on the batch's device; the request is of its network's `forward`."""
        if next(self.network.parameters()).device != batch.input_ids.device:
            self.network.to(batch.input_ids.device)
        return self.network(batch, **request)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


def load_teacher(folder: str, revision: str | None, vocabulary: Vocabulary, head: Head) -> PreTrainedModel:
    """The network in a folder or on the Hub, with this head.

    Raises:
        ValueError: There is none such, or it lacks weights, the head's perhaps.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* has no weights for ")
            return Pretrained(folder, revision=revision).build(vocabulary, head=head)
    except ValueError as error:
        raise ValueError(f"model.teacher: {error}") from error
    except UserWarning as error:
        raise ValueError(
            f"model.teacher: {error}, and nothing can be learnt from them; give a whole network"
        ) from error


def freeze_position_embeddings(network: FlatNetwork) -> None:
    """Take the position embeddings out of training.

    Raises:
        ValueError: The architecture has no table of them.
    """
    tables = [module for name, module in network.named_modules() if name.endswith("position_embeddings")]
    if not tables:
        raise ValueError(
            f"model.freeze_positions: {network.config.model_type} has no table of position embeddings; set it to false"
        )
    for table in tables:
        table.requires_grad_(False)


def shares_of(names: Iterable[str], weights: dict[str, float] | None) -> dict[str, float]:
    """Each teacher's share in the mean of their distributions, of sum 1.

    Raises:
        ValueError: There is no teacher, a weight is not positive, or the names differ.
    """
    names = list(names)
    if not names:
        raise ValueError("model.teacher: no teacher is named; give a folder, or {name: folder, ...}")
    weights = weights if weights is not None else dict.fromkeys(names, 1.0)
    if weights.keys() != set(names):
        raise ValueError(f"model.teacher_weights names {sorted(weights)}, and the teachers are {sorted(names)}")
    if wrong := {name: weight for name, weight in weights.items() if not (weight > 0 and math.isfinite(weight))}:
        raise ValueError(f"model.teacher_weights must be positive, got {wrong}; leave out the teacher instead")
    return {name: weights[name] / sum(weights.values()) for name in names}
