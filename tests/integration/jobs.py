"""Run several command lines in one process: `python -m tests.integration.jobs jobs.json`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    start = time.perf_counter()
    from lit_distil.run import run

    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        print(f">>> {time.perf_counter() - start:.1f} s", *arguments, flush=True)
        run(arguments)


if __name__ == "__main__":
    main()
