"""Flat batches bring a new shape in every step; a long run does not grow with the shapes it has seen."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lit_distil.commands.benchmark.latency import peak_bytes
from tests.workspace import REPOSITORY, environment


def measure() -> None:
    """Print by how many bytes activations of 150 new shapes raise the peak, once there have been some."""
    for num_tokens in range(4000, 4200):
        if num_tokens == 4050:
            before = peak_bytes()
        hidden = torch.zeros(num_tokens, 256, requires_grad=True)
        torch.nn.functional.gelu(hidden).sum().backward()
    print(peak_bytes() - before)


@pytest.mark.slow
def test_kernels_of_shapes_that_are_gone_are_not_kept() -> None:
    """Kept, as oneDNN does by default, they took 500 MB and more."""
    code = "import lit_distil; from tests.test_memory import measure; measure()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100e6
