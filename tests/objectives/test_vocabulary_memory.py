"""The pass over the vocabulary takes as much memory for many rows as for few."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from lit_distil.objectives import MaskedLMLoss, RowTerm, SoftTargetLoss, VocabularyPass
from lit_distil.types import Projection

WIDTH, VOCABULARY = 8, 30_522


def peak_bytes(rows: int) -> int:
    """The most bytes that one pass over so many rows, gradients included, has allocated at a time.

    Every allocation is counted. The resident memory of a process differs by 25 MB from one run to the next.
    """
    student = Projection(torch.randn(rows, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH), None)
    student.weight.requires_grad_()
    teacher = Projection(torch.randn(rows, WIDTH), torch.randn(VOCABULARY, WIDTH), None)
    labels = torch.randint(0, VOCABULARY, (rows // 8,))
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 1 / rows), RowTerm(MaskedLMLoss(), 1 / len(labels))]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, _ = VocabularyPass(terms, labels, {"t": teacher})(student)
        loss.backward()
    events = profiler.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_sixteen_thousand_rows_of_a_width_of_768_take_less_than_300_megabytes() -> None:
    """In full, the logits of one network alone are 2 GB. Beside the buffers there are gradients, of 4 bytes each."""
    few, many = peak_bytes(400), peak_bytes(1_200)
    per_row = (many - few) / (1_200 - 400)
    assert 0 < per_row <= 4 * WIDTH + 8, "the gradient of a row and no more than two numbers beside it"
    rows = 16_384
    assert few + (rows - 400) * per_row + 4 * (768 - WIDTH) * (rows + VOCABULARY) < 300e6
