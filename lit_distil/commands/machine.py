"""What a measurement was made on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from lit_distil import __version__


def describe_hardware(*, threads: int, device: str, seed: int) -> dict[str, str | int | None]:
    """What the numbers were measured on and with."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "benchmark_threads": threads,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "transformers", "lightning")},
        "lit_distil": __version__,
        "seed": seed,
        "git_commit": _git_commit(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
