"""Masked-language-model pretraining, with next-sentence prediction if the data has its labels."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from transformers import PreTrainedModel

from lit_distil.models import MaskedLMNetwork, NetworkSource
from lit_distil.models.sources import as_source
from lit_distil.modules.base import LanguageModelModule
from lit_distil.modules.checks import check_length, check_networks
from lit_distil.objectives import MaskedLMLoss, NextSentenceLoss, Objective
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.types import Batch, Compiling, DataModule, EncoderOutput, Vocabulary


class MaskedLMModule(LanguageModelModule):
    """Pretrains an encoder with masked-LM (BERT section 3.1 task 1; RoBERTa), and NSP if the format labels pairs.

    Args:
        network: An architecture with random weights (`FromConfig`), a network to continue from (`Pretrained`), or a
            model in memory, which is copied.
        objectives: Named objectives; the default is `masked_lm`, plus `next_sentence` if the format labels pairs, both
            with weight 1, as BERT adds them.
    """

    def __init__(
        self,
        network: NetworkSource | PreTrainedModel,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        objectives: dict[str, Objective] | None = None,
        max_skipped_steps: int = 25,
        compile: Compiling = False,
        activation_checkpointing: int = 0,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            schedule=schedule,
            max_skipped_steps=max_skipped_steps,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
        )
        self.save_plain_hyperparameters()
        self.network_source = as_source(network)
        self.objectives = nn.ModuleDict(objectives or {"masked_lm": MaskedLMLoss()})
        self._has_default_objectives = not objectives

    def sketch_networks(self, data: DataModule, vocabulary: Vocabulary | None) -> None:
        """See `EncoderModule.sketch_networks`."""
        self._choose_head(data)
        sketch = self.network_source.sketch(vocabulary, head=self.head)
        if sketch is not None:
            self._check(MaskedLMNetwork(sketch), data)

    def build_networks(self) -> None:
        """Build the network for the data's vocabulary."""
        if self.network is None:
            self._choose_head(self.data)
            self.network = MaskedLMNetwork(self.network_source.build(self.vocabulary, head=self.head))
            self._check(self.network, self.data)

    def _choose_head(self, data: DataModule) -> None:
        self.head = "pretraining" if data.has_next_sentence else "masked_lm"
        if self.head == "pretraining" and self._has_default_objectives:
            self.objectives["next_sentence"] = NextSentenceLoss()

    def _check(self, network: MaskedLMNetwork, data: DataModule) -> None:
        check_length("network", network, data)
        check_networks(self.terms, network, {}, data)

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The network's output at the masked positions, with whatever else the objectives need."""
        assert self.network is not None
        request, _ = self.terms.requests(self.network.num_layers, {})
        return self.network(batch, rows=self.terms.rows(batch), project=False, **request), {}
