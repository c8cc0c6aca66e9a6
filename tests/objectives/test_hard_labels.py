from __future__ import annotations

import torch

from lit_distil.objectives import MaskedLMLoss, SoftTargetLoss, TeacherLabelLoss

from .examples import at_masked, make_batch, make_output


def test_teachers_labels_are_its_first_choices() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    masked = at_masked(teacher, batch)
    assert masked.logits is not None
    batch.masked_labels = masked.logits.argmax(-1)
    torch.testing.assert_close(TeacherLabelLoss()(student, teacher, batch), MaskedLMLoss()(student, None, batch))


def test_a_teacher_without_doubts_makes_soft_targets_hard_labels() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    assert teacher.logits is not None
    teacher.logits = teacher.logits.detach() * 1e4
    soft = SoftTargetLoss(1.0)(student, teacher, batch)
    torch.testing.assert_close(TeacherLabelLoss()(student, teacher, batch), soft)
