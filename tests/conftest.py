"""Fixtures for all tests: a workspace with tiny text, tokenizers and teachers, made once for all processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lit_distil", deadline=None)  # a slow machine must not fail a test
settings.load_profile("lit_distil")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _multiply_exactly() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_float32_matmul_precision("highest")


def _keep_parser() -> None:
    if "lit_distil.run" in sys.modules:
        from tests.processes import keep_parser

        keep_parser()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin the fixtures of every test with exact fp32 products: commands leave "medium", bf16 on CPUs that have it."""
    _multiply_exactly()
    _keep_parser()


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """Begin every test with exact fp32 products too, whatever its fixtures ran."""
    _multiply_exactly()


@pytest.fixture(autouse=True)
def no_seed_of_another_test() -> None:
    """Forget the seed that a run in this process has left in the environment: data and modules take it as theirs."""
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def workspace(shared_root: Path):  # type: ignore[no-untyped-def]
    """Files, tokenizers and teachers for tiny runs."""
    from tests.workspace import Workspace, shared

    return Workspace(shared(shared_root, "workspace", lambda folder: Workspace(folder).fill() and None))
