"""Masked-language-model pretraining, with next-sentence prediction where the data carries its labels."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from lit_distil.models import MaskedLMNetwork, NetworkSource
from lit_distil.models.sources import AUTO_MODELS, Head, as_source
from lit_distil.modules.base import EncoderModule, Stage
from lit_distil.modules.checks import check_length, check_networks
from lit_distil.objectives import MaskedLMLoss, NextSentenceLoss, Objective
from lit_distil.objectives.terms import TeacherOutputs
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class LanguageModelModule(EncoderModule):
    """What pretraining and distillation share: a masked-LM network and the metrics of its predictions."""

    network: MaskedLMNetwork | None
    head: Head = "masked_lm"

    @property
    def network_head(self) -> Head:
        """`masked_lm`, or `pretraining` with a next-sentence head."""
        return self.head

    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build the network of a checkpoint."""
        self.head = head
        self.network = MaskedLMNetwork(AUTO_MODELS[head].from_config(AutoConfig.for_model(**config)))

    def observe_rows(self, stage: Stage, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        """Accuracy on the masked tokens."""
        if labels is not None:
            self._meters[stage].add("masked_accuracy", (student.argmax(-1) == labels).sum(), len(labels))

    def observe(self, stage: Stage, student: EncoderOutput, batch: Batch) -> None:
        """Accuracy of next-sentence prediction."""
        meters = self._meters[stage]
        if student.next_sentence_logits is not None and batch.next_sentence_labels is not None:
            correct = (student.next_sentence_logits.argmax(-1) == batch.next_sentence_labels).sum()
            meters.add("next_sentence_accuracy", correct, batch.num_sequences)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """The five likeliest tokens at each masked position, in their order: ids and probabilities."""
        assert self.network is not None
        if batch.masked_positions is None or batch.masked_labels is None:
            raise ValueError("data.masking: predicting masked tokens needs a masking strategy")
        output = self.network(batch, rows=batch.masked_positions)
        top = torch.softmax(output.logits.float(), -1).topk(5)
        sequence = torch.searchsorted(batch.cu_seq_lens.long(), batch.masked_positions, right=True) - 1
        first = batch.cu_seq_lens.long()[sequence]
        return [
            {
                "sample": int(batch.sample_ids[sequence[i]]),
                "position": int(batch.masked_positions[i] - first[i]),
                "label_id": int(batch.masked_labels[i]),
                "top_ids": top.indices[i].tolist(),
                "top_probabilities": top.values[i].tolist(),
            }
            for i in range(len(sequence))
        ]

    def forward(self, batch: Batch) -> Tensor | None:
        """Logits of every real token, `[T, vocabulary]`."""
        assert self.network is not None
        return self.network(batch, rows="all").logits


class MaskedLMModule(LanguageModelModule):
    """Pretrains an encoder with masked-LM (BERT section 3.1 task 1; RoBERTa), and NSP if the format labels pairs.

    Args:
        network: The architecture with fresh weights (`FromConfig`), one to go on with (`Pretrained`), or a model in
            memory, which is copied.
        optimizer: See `EncoderModule`; needed for training only.
        schedule: See `EncoderModule`.
        objectives: Named objectives; the default is `masked_lm`, with `next_sentence` beside it if the format labels
            pairs, both with weight 1, as BERT adds them.
        max_skipped_steps: See `EncoderModule`.
    """

    def __init__(
        self,
        network: NetworkSource | PreTrainedModel,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        objectives: dict[str, Objective] | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.save_plain_hyperparameters()
        self.network_source = as_source(network)
        self.objectives = nn.ModuleDict(objectives or {"masked_lm": MaskedLMLoss()})
        self._has_default_objectives = not objectives

    def build_networks(self) -> None:
        """Build the network for the data's vocabulary."""
        if self.network is None:
            self.head = "pretraining" if self.data.has_next_sentence else "masked_lm"
            self.network = MaskedLMNetwork(self.network_source.build(self.vocabulary, head=self.head))
            if self.head == "pretraining" and self._has_default_objectives:
                self.objectives["next_sentence"] = NextSentenceLoss()
            check_length("network", self.network, self.data)
            check_networks(self.terms, self.network, {}, self.data)

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """The network's output at the masked positions, with what else the objectives need."""
        assert self.network is not None
        request, _ = self.terms.requests(self.network.num_layers, {})
        return self.network(batch, rows=self.terms.rows(batch), project=False, **request), {}
