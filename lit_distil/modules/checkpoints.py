"""Saving and loading modules: a checkpoint holds the network's own configuration with its weights, in plain types."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import fsspec
import torch
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from lit_distil.models import FlatNetwork, FromConfig, Head
from lit_distil.models.sources import random_network
from lit_distil.modules.checks import reading_checkpoint
from lit_distil.modules.meters import LoggedModule
from lit_distil.trust import check_class_paths, guard


def saved_model(checkpoint: dict[str, Any]) -> PreTrainedModel:
    """Build the model that a checkpoint describes, with its head and random weights."""
    network = checkpoint["network"]
    return random_network(network["head"], AutoConfig.for_model(**json.loads(network["config"])))


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint's network, under the names of the Hugging Face model."""
    prefix = "network.model."
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


class SavedModule(LoggedModule):
    """A module whose `network` can be rebuilt from a checkpoint alone, and whose meters a resumed run continues.

    Attributes:
        network_class: The class that runs the Hugging Face model on flat batches.
        head: The kind of head on the network.
    """

    network_class: type[FlatNetwork]
    head: Head

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = None  # built once the vocabulary and the strategy are known
        self.is_encoder_only = False
        """Whether the network's head is new and untrained, so that only the encoder is exported."""
        self.has_network_only = False
        """Whether `load_from_checkpoint` restored the network and nothing else."""
        self.saved_groups: list[list[int]] | None = None
        """Sizes of the optimizer's parameter groups in the checkpoint that the run continues from."""

    @property
    def has_trainer(self) -> bool:
        """Whether the module has a trainer; it has none while a checkpoint is loaded for use."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    def save_plain_hyperparameters(self) -> None:
        """Keep the constructor's arguments in the checkpoint if they came from the command line, as plain types.

        A module built in Python got live objects, which a checkpoint read with `weights_only` cannot hold.
        """
        if _given_hyperparameters.get() is not None:  # Lightning gives no other sign of it
            self.save_hyperparameters(frame=inspect.currentframe().f_back)  # type: ignore[union-attr]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the network's configuration, so that loading needs neither teacher nor data.

        Raises:
            DivergedError: The network has diverged; earlier checkpoints stay as they are.
        """
        if self.has_trainer:
            self.guard.check_weights(self, self.trainer.global_step)
            checkpoint["guard"] = self.guard.state()
        settings = self.network.config.to_dict()
        settings.pop("transformers_version", None)
        checkpoint["network"] = {"head": self.head, "config": json.dumps(settings, default=str)}
        if self.is_encoder_only:
            checkpoint["network"]["is_encoder_only"] = True
        if self.has_trainer:
            checkpoint["unfinished"] = self.unfinished_step()
            checkpoint["meters"] = self._meters["train"].state(self.trainer)  # the sums since the last logged step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the checkpoint's network, unless the module has one already."""
        if "network" not in checkpoint:
            raise ValueError("ckpt_path: it was not written by a module of lit_distil, since it names no network")
        if self.network is None:
            self.head = checkpoint["network"]["head"]
            self.is_encoder_only = checkpoint["network"].get("is_encoder_only", False)
            self.network = self.network_class(saved_model(checkpoint))
        if self.has_trainer and "meters" in checkpoint:
            self._meters["train"].restore(checkpoint["meters"], self.trainer)
            self._unfinished = checkpoint.get("unfinished", {})
            if self.trainer.strategy.restore_checkpoint_after_setup:  # `on_fit_start` has already run
                self.enter_last_step()
        if self.has_trainer and "guard" in checkpoint:
            self.guard.restore(checkpoint["guard"])
        if self.has_trainer and self.trainer.state.fn == TrainerFn.FITTING:
            states = checkpoint.get("optimizer_states")
            if not states or not all("param_groups" in state for state in states):
                raise ValueError("ckpt_path: it holds no state of an optimizer; begin a new run from its export")
            self.saved_groups = [[len(group["params"]) for group in state["param_groups"]] for state in states]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does; weights of another network are a ValueError."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            reason = " ".join(str(error).partition(":\n")[2].split())[:200]
            raise ValueError(
                f"ckpt_path: the weights in the checkpoint are not those of this network ({reason}); repeat the "
                "settings of the run that wrote it"
            ) from error

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        weights_only: bool = True,
        trust: Sequence[str] = (),
        **arguments: Any,
    ) -> Self:
        """Load a module from a checkpoint, in eval mode, with the trained network; needs no teacher, data or trainer.

        If the run was started from YAML, the checkpoint holds the constructor's arguments and the module is complete.
        If the module was built in Python, pass its arguments again to get a complete module. Without them, a module
        with a `network` argument is complete anyway; one with a teacher gets only its network and can only predict.

        Args:
            checkpoint_path: File on disk or on object storage.
            map_location: Where to put the tensors, as for `torch.load`.
            weights_only: Refuse anything but plain types in the file.
            trust: Modules that the settings in the checkpoint may name; see `lit_distil.distil`.
            arguments: Constructor arguments; they override those in the checkpoint.

        Raises:
            ValueError: The file is on the web, or its settings name a module that is not trusted.
        """
        address = str(checkpoint_path)
        if address.startswith(("http://", "https://")) or "::" in address:
            raise ValueError(f"checkpoint_path: {address!r} is not loaded from the web; fetch the file first")
        with reading_checkpoint(address), fsspec.open(address, "rb") as stream:
            saved = torch.load(stream, map_location=map_location, weights_only=weights_only)
        known = {**saved.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **arguments}
        missing = [name for name in _required(cls) if name not in known]
        if missing == ["network"]:
            settings = json.loads(saved["network"]["config"])
            arguments["network"] = FromConfig(settings.pop("model_type"), config=settings)
        if not missing or missing == ["network"]:
            with guard(trust):
                check_class_paths(known)
                module = super().load_from_checkpoint(
                    checkpoint_path, map_location=map_location, weights_only=weights_only, **arguments
                )
            return module.eval()
        module = cls.__new__(cls)
        plain = next(kind for kind in cls.__mro__ if "__init__" in vars(kind) and not _required(kind))
        plain.__init__(module)  # type: ignore[misc]
        module.has_network_only = True
        module.on_load_checkpoint(saved)
        weights = {name: value for name, value in saved["state_dict"].items() if name.startswith("network.")}
        module.load_state_dict(weights)
        return module.to(next(iter(weights.values())).device).eval()

    def check_predicting(self) -> None:
        """Refuse to train or evaluate a module that has only its network and so can only predict."""
        if self.trainer.state.fn != TrainerFn.PREDICTING:
            raise ValueError(
                f"{type(self).__name__}: the checkpoint came from a module built in Python and holds its network "
                "alone, which can only predict. Give load_from_checkpoint the other arguments (teacher=..., "
                "objectives=...), or build the module anew and give the trainer ckpt_path"
            )


def _required(kind: type) -> list[str]:
    """The names of the constructor's arguments that have no default."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
