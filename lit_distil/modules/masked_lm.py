"""Masked-language-model pretraining, with next-sentence prediction where the data carries its labels."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining

from lit_distil.models import MaskedLMNetwork, NetworkSource
from lit_distil.models.sources import Head
from lit_distil.modules.base import EncoderModule, Stage
from lit_distil.modules.checks import check_length, check_networks
from lit_distil.modules.pairing import Comparisons
from lit_distil.modules.teachers import network_requests
from lit_distil.modules.terms import TeacherOutputs
from lit_distil.objectives import MaskedLMLoss, NextSentenceLoss, Objective
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class LanguageModelModule(EncoderModule):
    """What pretraining and distillation share: a masked-LM network and what is seen of its predictions."""

    network: MaskedLMNetwork | None
    head: Head = "masked_lm"

    @property
    def network_head(self) -> Head:
        """`masked_lm`, or `pretraining` with a next-sentence head."""
        return self.head

    def build_from_saved(self, head: Head, config: dict[str, Any]) -> None:
        """Build the network of a checkpoint."""
        self.head = head
        auto_class = AutoModelForPreTraining if head == "pretraining" else AutoModelForMaskedLM
        model_config = AutoConfig.for_model(**config)
        self.network = MaskedLMNetwork(auto_class.from_config(model_config))

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
        """The five likeliest tokens at each masked position, by sequence: ids and probabilities."""
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


class MaskedLMModule(LanguageModelModule):
    """Pretrains an encoder with masked-LM (BERT section 3.1 task 1; RoBERTa), and NSP if the format labels pairs.

    Args:
        network: The architecture with fresh weights (`FromConfig`), or one to go on with (`Pretrained`).
        optimizer: See `EncoderModule`; needed for training only.
        schedule: See `EncoderModule`.
        objectives: Named objectives; the default is `masked_lm`, and `next_sentence` beside it where the format
            labels pairs, with weight 1 each, as BERT adds them.
        max_skipped_steps: See `EncoderModule`.
    """

    def __init__(
        self,
        network: NetworkSource,
        *,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
        objectives: dict[str, Objective] | None = None,
        max_skipped_steps: int = 25,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, max_skipped_steps=max_skipped_steps)
        self.save_plain_hyperparameters()
        self.network_source = network
        self.objectives = nn.ModuleDict(objectives or {"masked_lm": MaskedLMLoss()})
        self._objectives_given = bool(objectives)

    def build_networks(self) -> None:
        """Build the network for the data's vocabulary."""
        if self.network is not None:
            return
        has_pairs = self.trainer.datamodule.has_next_sentence  # type: ignore[attr-defined]
        self.head = "pretraining" if has_pairs else "masked_lm"
        self.network = MaskedLMNetwork(self.network_source.build(self.vocabulary, head=self.head))
        if has_pairs and not self._objectives_given:
            self.objectives["next_sentence"] = NextSentenceLoss()
        check_length("network", self.network, self.trainer.datamodule)  # type: ignore[attr-defined]
        check_networks(self.comparisons, self.network, {}, self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def comparisons(self) -> Comparisons:
        """The objectives, none of which compares with a teacher."""
        return Comparisons(dict(self.objectives.items()), (), {})  # type: ignore[arg-type]

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, TeacherOutputs]:
        """What the network makes of the masked positions, and what else the objectives need."""
        assert self.network is not None
        ours, _ = network_requests(self.comparisons, batch, self.network.num_layers, {})
        return self.network(batch, project=False, **ours), {}

    def forward(self, batch: Batch) -> Tensor | None:
        """Logits of every real token, `[T, vocabulary]`."""
        assert self.network is not None
        return self.network(batch, rows="all").logits
