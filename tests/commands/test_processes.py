"""What a command started ends with it, whatever thread started it, and its output comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_distil.commands.processes import ending_processes, run_process

PRINTS = [sys.executable, "-c", "import sys; print('x' * 200_000); print('wrong', file=sys.stderr); sys.exit(3)"]


def test_output_and_status_come_back() -> None:
    done = run_process(PRINTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "x" * 200_000 + "\n", "wrong\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_signal_ends_the_process_and_the_command(number: int, in_thread: bool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = [
        "sh",
        "-c",
        f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM; touch {begun}; while :; do sleep 0.05; done",
    ]

    def stop() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=stop, daemon=True).start()
    with ThreadPoolExecutor(1) as pool:
        run = (lambda: pool.submit(run_process, command).result()) if in_thread else (lambda: run_process(command))
        with pytest.raises(SystemExit) as stopped, ending_processes():
            run()
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_a_process_that_takes_too_long_is_ended() -> None:
    done = run_process([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a process that its parent has ended")
def test_a_killed_command_leaves_no_process_behind(tmp_path: Path) -> None:
    waits = f"trap 'touch {tmp_path}/ended; exit 0' TERM; touch {tmp_path}/begun; while :; do sleep 0.05; done"
    script = f"from lit_distil.commands.processes import run_process; run_process(['sh', '-c', {waits!r}])"
    command = subprocess.Popen([sys.executable, "-c", script])
    wait_for(tmp_path / "begun")
    command.kill()
    command.wait()
    wait_for(tmp_path / "ended")


def wait_for(file: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.02)
