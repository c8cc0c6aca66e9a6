"""The pass over the vocabulary takes as much memory for many rows as for few."""

from __future__ import annotations

import subprocess
import sys

import torch

from lit_distil.commands.benchmark.latency import peak_bytes
from lit_distil.objectives import MaskedLMLoss, RowTerm, SoftTargetLoss, VocabularyPass
from lit_distil.types import Projection
from tests.workspace import REPOSITORY, environment

ROWS, WIDTH, VOCABULARY = 16_384, 8, 30_522


def measure() -> None:
    """Print by how many bytes one pass over all rows, gradients included, raises the peak."""
    student = Projection(torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH), None)
    student.weight.requires_grad_()
    teacher = Projection(torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH), None)
    labels = torch.randint(0, VOCABULARY, (ROWS // 8,))
    terms = [RowTerm(SoftTargetLoss(2.0, positions="all"), 1 / ROWS), RowTerm(MaskedLMLoss(), 1 / len(labels))]
    before = peak_bytes()
    loss, _ = VocabularyPass(terms, labels, {"t": teacher})(student)
    loss.backward()
    print(peak_bytes() - before)


def test_sixteen_thousand_rows_take_less_than_300_megabytes() -> None:
    """In full, the logits of one network alone are 2 GB; the gradients of a width of 768 would add 144 MB to this."""
    code = "from tests.objectives.test_vocabulary_memory import measure; measure()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) < 300e6 - 4 * 768 * (ROWS + VOCABULARY)
