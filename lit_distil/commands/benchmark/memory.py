"""Peak memory of a network: a process of its own loads it, runs one batch and prints the peak."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

_MINUTES = 10


def peak_memory_mb(network: str, *, length: int, batch_size: int, device: str = "cpu") -> float:
    """Peak memory, in 10^6 bytes, that loading a network and running one batch adds to a process.

    On a CPU this is resident memory, including the pages of the file; on CUDA what torch allocated on the device.

    Raises:
        ValueError: The process failed; the message has the last line that it printed.
    """
    settings = {"network": network, "length": length, "batch_size": batch_size, "device": device}
    command = [sys.executable, "-m", "lit_distil.commands.benchmark.memory", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * _MINUTES, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"memory: measuring {network!r} failed ({said[-1]}); leave it out: --memory false")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _measure(network: str, length: int, batch_size: int, device: str) -> float:
    import torch

    from lit_distil.commands.benchmark.latency import make_inputs, open_timed

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_bytes()
    opened = open_timed(network, length=length, device=device)
    with torch.inference_mode():
        opened.whole(**make_inputs([opened], length, batch_size, device))
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    return (peak_bytes() - before) / 1e6


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent, which this process was forked from
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        return 1024 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
