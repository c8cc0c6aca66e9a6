"""The script for a machine with a GPU runs with tiny networks on a CPU, ends in time, and says what it left out."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workspace import REPOSITORY


@pytest.fixture(scope="module")
def gpu() -> Any:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    spec = importlib.util.spec_from_file_location("gpu_benchmark", REPOSITORY / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cases", [slice(4, 5), pytest.param(slice(None), marks=pytest.mark.slow)], ids=["one", "all"])
def test_cases_are_measured_here_and_with_the_peer_on_the_same_work(
    cases: slice, gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = gpu.CASES[cases]
    monkeypatch.setattr(gpu, "CASES", chosen)
    monkeypatch.setattr(gpu, "TIMING", {"warm_up_steps": 1, "steps": 2})
    monkeypatch.setattr(gpu, "BEGIN", time.monotonic())
    assert gpu.main(["--dry_run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert result["left_out"] == {} and len(result["rows"]) == len(chosen) > 0
    for row in result["rows"]:
        assert row["ours"]["tokens_per_second"] > 0 < row["peer"]["tokens_per_second"]
        assert 0 < row["ours"]["mfu"] < 1.5 and row["peer"]["losses"]
        # the same batch and weights; dropout is all that differs
        assert row["ours"]["first_loss"] == pytest.approx(row["peer"]["first_loss"], rel=0.05)
    page = (tmp_path / "speed.md").read_text()
    assert all(row["case"] in page for row in result["rows"]) and page == page.strip() + "\n"
    assert "6 layers, all positions" in capsys.readouterr().out


def test_a_case_that_fails_or_has_no_time_is_left_out_with_its_reason(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(case: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if case.distils == "all":
            raise RuntimeError("CUDA out of memory\nmore lines")
        time.sleep(30)
        raise AssertionError("nothing stopped it")

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "CASES", gpu.CASES[4:7])
    start = time.monotonic()
    result = gpu.run_table(tmp_path, 1.0, is_tiny=True)
    assert time.monotonic() - start < 20 and result["rows"] == []
    assert [*result["left_out"].values()] == ["RuntimeError: CUDA out of memory"] + ["the time was up"] * 2
    assert json.loads((tmp_path / "speed.json").read_text())["left_out"] == result["left_out"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu")]) == 2
    assert "finds no CUDA GPU here" in capsys.readouterr().out and not (tmp_path / "gpu").exists()


def test_outcomes_of_the_tests_are_kept_even_if_the_time_is_up(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "print('tests/gpu/test_a.py::test_b[x y] PASSED [ 50%]', flush=True); import time; time.sleep(30)"
    command = gpu.subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda _, **more: command([gpu.sys.executable, "-c", said], **more))
    result = gpu.run_tests(tmp_path, 2.0)
    assert result["outcomes"] == {"tests/gpu/test_a.py::test_b[x y]": "PASSED"} and not result["ended_in_time"]
    assert json.loads((tmp_path / "tests.json").read_text())["outcomes"] == result["outcomes"]
