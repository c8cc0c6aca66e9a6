"""The device that these tests are about."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def accelerator() -> str:
    """`gpu`, or `cpu` with LIT_DISTIL_GPU_TESTS=cpu, which tries the tests themselves."""
    if torch.cuda.is_available():
        return "gpu"
    if os.environ.get("LIT_DISTIL_GPU_TESTS") != "cpu":
        pytest.skip(f"torch {torch.__version__} finds no CUDA device")
    return "cpu"


@pytest.fixture(scope="session")
def device(accelerator: str) -> torch.device:
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
