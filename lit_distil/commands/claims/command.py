"""`lit-distil claims`: run the papers' claims as experiments on small networks, and write their verdicts and pages.

Every run is a process of its own with one thread. A run whose result is there is skipped, and one that was cut off goes
on from its last checkpoint, so the command can be stopped at any moment and given again.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from lit_distil.commands.benchmark.latency import describe_hardware
from lit_distil.commands.claims.exact import MEASUREMENTS
from lit_distil.commands.claims.pages import summary_table, write_claim_pages
from lit_distil.commands.claims.verdicts import CLAIM, Claim, load_claim, read_results
from lit_distil.commands.report.arms import Run, open_runs, relevant_settings
from lit_distil.console import markdown_table, progress_bar
from lit_distil.files import hash_values, write_json
from lit_distil.messages import recipes_folder
from lit_distil.pieces import call_command

TOKENIZER = "runs/claims/tokenizer"
_TRAIN_TOKENIZER = ["tokenizer", "--source", "lit_distil.data.Docstrings", "--vocab_size", "4096", "--out", TOKENIZER]

_children: list[subprocess.Popen[bytes]] = []  # that run now


@dataclass(frozen=True)
class Job:
    """A run, which several claims may share: arms without a file of their own are their base.

    Attributes:
        folder: The run's.
        seed: Of weights, order, masks and dropout.
        files: Configurations, the later ones over the earlier.
        after: The run whose export it starts from.
        results: For each claim's arm that it is, (claim, arm).
    """

    folder: Path
    seed: int
    files: tuple[Path, ...]
    after: Job | None = None
    results: list[tuple[str, str]] = field(default_factory=list, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether its export is there, which a run writes last."""
        return (self.folder / "export" / "config.json").is_file()

    def command(self) -> list[str]:
        """What `lit-distil` is given."""
        files = [word for file in self.files for word in ("--config", str(file))]
        command = ["fit", *files, "--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder)]
        if self.after is not None:
            model = yaml.safe_load(self.files[0].read_text(encoding="utf-8"))["model"]["init_args"]
            export = str(self.after.folder / "export")
            key = "teacher" if "teacher" in model else "network.name_or_path"
            command += [f"--model.{key}", export, "--data.tokenizer", export]
        has_checkpoint = (self.folder / "checkpoints" / "last.ckpt").is_file()
        return [*command, *(["--ckpt_path", "last"] if has_checkpoint else ["--overwrite"])]


def plan(claims: Sequence[Claim], seeds: Sequence[int], *, configs: Path, runs: Path) -> list[Job]:
    """The runs of these claims, each once, those that others start from first."""
    jobs: dict[Path, Job] = {}

    def job_of(claim: Claim, arm: str, seed: int) -> Job:
        spec, overlay = claim.arms[arm], configs / claim.name / f"{arm}.yaml"
        before = None if spec.after is None else job_of(claim, spec.after, seed)
        files = (configs / f"{spec.base}.yaml", *([overlay] if overlay.is_file() else []))
        is_shared = not overlay.is_file() and (before is None or before.folder.parts[-3] != claim.name)
        shared = spec.base if before is None else f"{spec.base}-of-{before.folder.parts[-2]}"
        folder = runs / (shared if is_shared else f"{claim.name}/{arm}") / f"seed-{seed}"
        job = jobs.setdefault(folder, Job(folder, seed, files, before))
        if (claim.name, arm) not in job.results:
            job.results.append((claim.name, arm))
        return job

    for seed in seeds:
        for claim in claims:
            for arm, spec in claim.arms.items():
                if spec.base not in MEASUREMENTS:
                    job_of(claim, arm, seed)
    return list(jobs.values())


def result_of(run: Run, seed: int) -> dict[str, Any]:
    """What a finished run measured, on what, and how long it trained.

    The minutes are those of its steps, without validations, also of a run that was cut off and went on.
    """
    speeds, tokens = (run.metrics.get(f"train/{name}", {}) for name in ("tokens_per_second", "tokens_per_step"))
    steps = [0, *sorted(speeds)]
    seconds = sum((b - a) * tokens[b] / speeds[b] for a, b in pairwise(steps))
    last = run.step("end")
    metrics = {name: run.value(name, "end") for name, column in run.metrics.items() if last in column}
    return {
        "seed": seed,
        "config": hash_values(relevant_settings(run.config)),
        "steps": run.num_steps,
        "tokens": round(fmean(tokens.values()) * run.num_steps),
        "minutes": round(seconds / 60, 2),
        "metrics": {name: value for name, value in metrics.items() if name.startswith("val/") and math.isfinite(value)},
    }


def claims(
    names: list[str] | None = None,
    seeds: int = 3,
    jobs: int = 2,
    out: str = "results/claims",
    runs: str = "runs/claims",
    configs: str | None = None,
    docs: str | None = None,
    only_pages: bool = False,
) -> None:
    """Run the papers' claims on small networks, and print their verdicts.

    Args:
        names: Claims, by the names of their folders; none for all.
        seeds: How many seeds each arm has: 1, 2, and so on.
        jobs: Runs side by side, with one thread each.
        out: Where a small JSON file of each run goes.
        runs: Where the runs go.
        configs: Folder of the claims; None for those that come with the package.
        docs: Folder of pages to write: claims.md and one page for each claim; None writes none.
        only_pages: Run nothing; take what is in `out`.
    """
    if seeds < 1 or jobs < 1:
        raise ValueError(f"{'seeds' if seeds < 1 else 'jobs'} must be at least 1, got {min(seeds, jobs)}")
    root, target = Path(configs) if configs else recipes_folder() / "claims", Path(out)
    chosen = [load_claim(root / name) for name in names or sorted(path.parent.name for path in root.glob(f"*/{CLAIM}"))]
    if not only_pages:
        _measure_exactly(chosen, range(1, seeds + 1), target)
        _run_all(plan(chosen, range(1, seeds + 1), configs=root, runs=Path(runs)), jobs, target)
    measured = [read_results(claim, target) for claim in chosen]
    print(markdown_table(summary_table(measured)))
    if docs is not None:
        write_claim_pages(measured, Path(docs))


def _measure_exactly(chosen: Sequence[Claim], seeds: Sequence[int], out: Path) -> None:
    """Claims about functions, which need no training."""
    for claim in chosen:
        for arm, spec in claim.arms.items():
            for seed in seeds if spec.base in MEASUREMENTS else ():
                if not (file := _result_file(out, claim.name, arm, seed)).is_file():
                    _write_result(file, claim.name, arm, {"seed": seed, "metrics": MEASUREMENTS[spec.base](seed)})


def _run_all(planned: Sequence[Job], num_jobs: int, out: Path) -> None:
    """Run what has no result yet, so many at a time; a run waits for the one that it starts from."""
    missing = {job: [one for one in job.results if not _result_file(out, *one, job.seed).is_file()] for job in planned}
    needed = {job for job, results in missing.items() if results}
    needed |= {job.after for job in needed if job.after is not None}
    if any(not job.is_finished for job in needed) and not Path(TOKENIZER, "tokenizer.json").is_file():
        _lit_distil(_TRAIN_TOKENIZER, Path(f"{TOKENIZER}.log"))
    started: dict[Job, Future[None]] = {}

    def stop(number: int, frame: Any) -> None:
        for child in _children:
            child.send_signal(signal.SIGTERM)  # a run saves; a Ctrl-C has reached it already, and a second would end it
        sys.exit(128 + number)

    def work(job: Job) -> None:
        if job.after in started:
            started[job.after].result()
        if not job.is_finished:
            _lit_distil(job.command(), job.folder.with_suffix(".log"))
        (run,) = open_runs([str(job.folder)])
        for claim, arm in missing[job]:
            _write_result(_result_file(out, claim, arm, job.seed), claim, arm, result_of(run, job.seed))

    is_main = threading.current_thread() is threading.main_thread()  # which alone may handle signals
    handlers = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT) if is_main}
    with ThreadPoolExecutor(num_jobs) as pool:
        for job in planned:  # in an order in which no run waits for a later one, so that the pool cannot lock up
            if job in needed:
                started[job] = pool.submit(work, job)
        try:
            for future in progress_bar(started.values(), desc="claims", unit="run"):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)


def _lit_distil(arguments: list[str], log: Path) -> None:
    """Run the command line with one thread; what it prints goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lit_distil", *arguments]
    with log.open("a", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _children.append(child)
        code = child.wait()
        _children.remove(child)
    if code != 0:
        *_, last = ["", *log.read_text(encoding="utf-8").splitlines()]
        raise ValueError(f"claims: `lit-distil {' '.join(arguments)}` failed ({last}); {log} has all of it")


def _result_file(out: Path, claim: str, arm: str, seed: int) -> Path:
    return out / claim / f"{arm}-seed-{seed}.json"


def _write_result(file: Path, claim: str, arm: str, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    hardware = describe_hardware(threads=1, device="cpu", seed=result["seed"])
    del hardware["seed"], hardware["benchmark_threads"]
    write_json(file, {"claim": claim, "arm": arm, **result, "made_with": hardware})


run = functools.partial(
    call_command, claims, words="names", help="Claims, by the names of their folders; none for all."
)
