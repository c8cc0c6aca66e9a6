"""Distillation: a student that matches a frozen teacher's distribution over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_distil.models import MaskedLMNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.students import CopyRecord, describe, mark_frozen, summarise
from lit_distil.modules.base import Stage
from lit_distil.modules.masked_lm import LanguageModelModule
from lit_distil.modules.preflight import check_pair
from lit_distil.objectives import Objective
from lit_distil.optim import Schedule
from lit_distil.types import Batch, EncoderOutput


class FrozenTeacher:
    """Holds the teacher beside the student's parameters, not among them.

    It is no submodule, so optimizer, DDP's buckets, checkpoints, `state_dict` and weight averaging never see it; a
    deep copy of the module shares it; `.train()` on the module cannot wake its dropout.
    """

    def __init__(self, network: MaskedLMNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()  # not inference mode: inference tensors cannot be saved for the student's backward
    def __call__(self, batch: Batch, *, rows: Any, output_hidden_states: bool) -> EncoderOutput:
        """What the teacher makes of the batch, on the batch's device."""
        if next(self.network.parameters()).device != batch.input_ids.device:
            self.network.to(batch.input_ids.device)
        return self.network(batch, rows=rows, output_hidden_states=output_hidden_states)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        return self


def freeze_position_embeddings(network: MaskedLMNetwork) -> None:
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


class DistillationModule(LanguageModelModule):
    """Distils a teacher into a student (Hinton et al. 2015, section 2; DistilBERT, section 3).

    Args:
        teacher: Name on the Hub, an exported folder, or a folder of Hugging Face's own.
        student: How the student comes to be: from the teacher's layers (`EveryOther`, `Layers`, ...), from a
            configuration (`FromConfig`) or from a pretrained one (`Pretrained`).
        objectives: Named objectives with their weights; each is logged unweighted under its name.
        teacher_revision: Commit, tag or branch of the teacher on the Hub.
        teacher_dtype: `bfloat16` keeps the teacher's weights in half the memory; None keeps its own.
        freeze_positions: Leave the student's position embeddings as they were copied, as DistilBERT's authors do.
        evaluate_at_start: Validate before the first step too, so that the curves of `val/` begin at step 0 with the
            student as it was initialised.
        optimizer: See `EncoderModule`.
        schedule: See `EncoderModule`.
    """

    def __init__(
        self,
        teacher: str,
        student: StudentInitialisation | NetworkSource,
        objectives: dict[str, Objective],
        *,
        teacher_revision: str | None = None,
        teacher_dtype: str | None = None,
        freeze_positions: bool = False,
        evaluate_at_start: bool = False,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.save_plain_hyperparameters()
        if not objectives:
            raise ValueError("model.objectives: distillation needs at least one, such as {soft: SoftTargetLoss}")
        if not any(objective.weight > 0 for objective in objectives.values()):
            raise ValueError("model.objectives: every weight is 0, so there is nothing to train; give one a weight")
        if teacher_dtype is not None and not isinstance(getattr(torch, teacher_dtype, None), torch.dtype):
            raise ValueError(
                f"model.teacher_dtype: no dtype {teacher_dtype!r} in torch; use bfloat16, float16 or float32"
            )
        self.teacher_source = Pretrained(teacher, revision=teacher_revision)
        self.teacher_name = teacher
        self.teacher_dtype = teacher_dtype
        self.student_source = student
        self.freeze_positions = freeze_positions
        self.evaluate_at_start = evaluate_at_start
        self.objectives = nn.ModuleDict(objectives)
        self.teacher: FrozenTeacher | None = None

    def build_networks(self) -> None:
        """Load the teacher and make the student, unless they are there."""
        if self.teacher is not None:
            return
        self.trainer.datamodule.check_same_vocabulary(self.teacher_name, self.teacher_source.revision)  # type: ignore[attr-defined]
        try:
            teacher = self.teacher_source.build(self.vocabulary, head="masked_lm")
        except ValueError as error:
            raise ValueError(f"model.teacher: {error}") from error
        records: list[CopyRecord] = []
        if self.network is None:
            if isinstance(self.student_source, StudentInitialisation):
                student, records = self.student_source.build(teacher)
            else:
                student = self.student_source.build(self.vocabulary, head="masked_lm")
            self.network = MaskedLMNetwork(student)
        if self.freeze_positions:
            freeze_position_embeddings(self.network)
        if records:
            records = mark_frozen(records, self.network.model)
            rank_zero_info(f"student of {self.teacher_name}: {summarise(records)}\n{describe(records)}")
        if self.teacher_dtype is not None:
            teacher = teacher.to(getattr(torch, self.teacher_dtype))
        self.teacher = FrozenTeacher(MaskedLMNetwork(teacher))
        check_pair(self.network, self.teacher.network, self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Beside what every module does, validate the student as it was initialised, if asked to."""
        trainer: Any = self.trainer
        if self.evaluate_at_start and trainer.global_step == 0 and trainer.enable_validation:
            is_first = trainer._logger_connector._first_loop_iter
            trainer.validating = True  # as Lightning itself does between two steps
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            trainer._logger_connector._first_loop_iter = is_first
        super().on_train_start()  # the clock starts after it

    def outputs(self, batch: Batch) -> tuple[EncoderOutput, EncoderOutput | None]:
        """Student and teacher see the same masked input, and give logits only where an objective needs them."""
        assert self.network is not None
        objectives: list[Objective] = list(self.objectives.values())  # type: ignore[arg-type]
        needs_all = any(objective.rows == "all" for objective in objectives)
        rows: Any = "all" if needs_all else batch.masked_positions
        hidden = any(objective.needs_hidden_states for objective in objectives)
        teacher = None
        if any(objective.needs_teacher for objective in objectives):
            assert self.teacher is not None
            teacher = self.teacher(batch, rows=rows, output_hidden_states=hidden)
        return self.network(batch, rows=rows, output_hidden_states=hidden), teacher

    def observe(self, stage: Stage, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> None:
        """Beside the accuracies: how often student and teacher name the same token, and how sure the teacher is."""
        super().observe(stage, student, teacher, batch)
        if teacher is None or teacher.logits is None or student.logits is None:
            return
        meters = self._meters[stage]
        agree = (student.logits.argmax(-1) == teacher.logits.argmax(-1)).sum()
        meters.add("agreement_with_teacher", agree, len(student.logits))
        if stage != "train":
            log_p = torch.log_softmax(teacher.logits.float(), -1)
            meters.add("teacher_entropy", -(log_p.exp() * log_p).sum(), len(log_p))

    def forward(self, batch: Batch) -> Tensor | None:
        """The student's logits of every real token, `[T, vocabulary]`."""
        assert self.network is not None
        return self.network(batch, rows="all").logits
