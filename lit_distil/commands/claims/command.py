"""`lit-distil claims`: run the papers' claims as experiments on small networks, and write their verdicts and pages.

Every run is a process of its own with one thread. A run whose result is there is skipped, and one that was cut off goes
on from its last checkpoint, so the command can be stopped at any moment and given again.
"""

from __future__ import annotations

import functools
import glob
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoConfig

from lit_distil.callbacks.evaluations import JACKKNIFE
from lit_distil.commands.benchmark.estimate import RESULTS, Chain, report
from lit_distil.commands.benchmark.latency import describe_hardware, measure_networks
from lit_distil.commands.claims.measurements import MEASUREMENTS, accuracy_on_pairs
from lit_distil.commands.claims.pages import Suite, summary_table, write_claim_pages
from lit_distil.commands.claims.scales import load_scale, scale_file, write_scaled
from lit_distil.commands.claims.verdicts import CLAIM, Claim, files_of, is_current, load_claim, read_results
from lit_distil.commands.processes import ending_processes, run_process
from lit_distil.commands.report.arms import relevant_settings
from lit_distil.commands.report.runs import Run, load_result, open_runs
from lit_distil.console import markdown_table, progress_bar, without_bars
from lit_distil.data.sources.base import LocalFiles
from lit_distil.files import hash_values, write_json
from lit_distil.messages import check_at_least, missing_folder, read_settings, recipes_folder
from lit_distil.models.sources import STAND_INS
from lit_distil.pieces import call_command
from lit_distil.trust import imported

TOKENIZER = "runs/claims/tokenizer"
_MADE_WITH = "made_with.json"
_MEASURING = threading.Lock()  # one network at a time: none slows another down, and transformers loads one at a time
_NUM_ENTRIES = 4096
_TRAIN_TOKENIZER = ["tokenizer", "--source", "lit_distil.data.Docstrings", "--vocab_size", str(_NUM_ENTRIES)]
_TRAIN_TOKENIZER += ["--out", TOKENIZER]


@dataclass(frozen=True)
class Job:
    """A run. Arms with the same recipe share it, also those of several claims.

    Attributes:
        folder: Named after the recipe, so that a recipe that changes finds neither a checkpoint nor an export.
        seed: Of weights, order, masks and dropout. A base with a `data.seed` of its own has order and masks from the
            sum of both, so its runs do not see what those before them saw.
        files: Configurations, the later ones over the earlier.
        recipe: `ArmSpec.recipe`.
        after: The run whose export it starts from.
        results: For each claim's arm that it is, (claim, arm).
        claims: Those of the results, by name.
    """

    folder: Path
    seed: int
    files: tuple[Path, ...]
    recipe: str
    after: Job | None = None
    results: list[tuple[str, str]] = field(default_factory=list, compare=False)
    claims: dict[str, Claim] = field(default_factory=dict, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether its export is there, which a run writes last."""
        return (self.folder / "export" / "config.json").is_file()

    def command(self) -> list[str]:
        """What `lit-distil` is given."""
        files = [word for file in self.files for word in ("--config", str(file))]
        command = ["fit", *files, "--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.folder)]
        base = read_settings(self.files[0])
        data = base.get("data", {}).get("init_args", {})
        if "seed" in data:
            command += ["--data.seed", str(data["seed"] + self.seed)]
        if self.after is not None:
            export = str(self.after.folder / "export")
            key = "teacher" if "teacher" in base["model"]["init_args"] else "network.name_or_path"
            command += [f"--model.{key}", export, "--data.tokenizer", export]
        if "task" in data:
            command += ["--trainer.callbacks+=lit_distil.callbacks.JackknifeWriter"]
        has_checkpoint = (self.folder / "checkpoints" / "last.ckpt").is_file()
        return [*command, *(["--ckpt_path", "last"] if has_checkpoint else ["--overwrite"])]


def plan(claims: Sequence[Claim], seeds: Sequence[int], *, configs: Path, runs: Path) -> list[Job]:
    """The runs of these claims, each once: first those that the effects need, and each after the one it starts from."""
    jobs: dict[Path, Job] = {}

    def job_of(claim: Claim, arm: str, seed: int) -> Job:
        spec = claim.arms[arm]
        before = None if spec.after is None else job_of(claim, spec.after, seed)
        folder = runs / f"{spec.base}-{spec.recipe[:8]}" / f"seed-{seed}"
        files = files_of(configs / claim.name, spec.base, arm)
        job = jobs.setdefault(folder, Job(folder, seed, files, spec.recipe, before))
        if (claim.name, arm) not in job.results:
            job.results.append((claim.name, arm))
            job.claims[claim.name] = claim
        return job

    for is_needed, claim, seed in product((True, False), claims, seeds):
        needed = {arm for effect in claim.effects for arm in effect.names}
        for arm, spec in claim.arms.items():
            if (arm in needed) is is_needed and spec.base not in MEASUREMENTS:
                job_of(claim, arm, seed)
    return list(jobs.values())


def estimate_of(planned: Sequence[Job], gpu: str) -> str:
    """What the runs will take: a table of tokens, operations and hours.

    A row is a recipe, named by the first claim and arm that it belongs to.

    Args:
        planned: The runs.
        gpu: See `lit_distil.commands.benchmark.estimate.rate_of`.
    """
    chain = Chain()
    ids = dict.fromkeys([*STAND_INS, "pad_token_id"], 0)
    chain.networks[TOKENIZER] = AutoConfig.for_model("bert", vocab_size=_NUM_ENTRIES, **ids)  # it need not be there yet
    recipes = Counter(job.folder.parent for job in planned)
    first = {job.folder.parent: job for job in reversed(planned)}
    for folder, job in first.items():  # seeds are alike; without this, a recipe could start from one that has no row
        if job.after is not None:
            first[folder] = replace(job, after=first.get(job.after.folder.parent, job.after))
    stages = [(chain.read(first[folder].command()), first[folder], count) for folder, count in recipes.items()]
    named = [
        (replace(stage, folder=f"{'/'.join(job.results[0])}, seed {job.seed}"), count)
        for stage, job, count in stages
        if stage is not None
    ]
    return report(named, gpu, [*chain.notes], mfu=None, results=Path(RESULTS))


def result_of(run: Run, followed: Collection[str] = ()) -> dict[str, Any]:
    """What a finished run measured, on what, and how long it trained.

    The minutes are those of its steps, without validations, also of a run that was cut off and went on. Of the metrics
    that are `followed`, the values at earlier validations stand in `validations`, and those without each group of rows
    in `without_rows` (`JackknifeWriter`).
    """
    speeds, tokens = (run.metrics.get(f"train/{name}", {}) for name in ("tokens_per_second", "tokens_per_step"))
    if not speeds:
        raise ValueError(f"claims: {run.folder} logged no step; take more than trainer.log_every_n_steps")
    steps = [0, *sorted(speeds)]
    seconds = sum((b - a) * tokens[b] / speeds[b] for a, b in pairwise(steps))
    last = run.step("end")
    metrics = {name: run.value(name, "end") for name, column in run.metrics.items() if last in column}
    on_the_way = {name: run.metrics[name] for name in followed if name in run.metrics}
    groups, confusion = Path(run.folder, JACKKNIFE), run.confusion("end")
    without = json.loads(groups.read_text(encoding="utf-8")) if groups.is_file() else {}
    return {
        "config": hash_values(relevant_settings(run.config)),
        "steps": run.num_steps,
        "tokens": round(fmean(tokens.values()) * run.num_steps),
        "minutes": round(seconds / 60, 2),
        "metrics": {name: value for name, value in metrics.items() if name.startswith("val/") and math.isfinite(value)},
        "validations": {
            name: {str(step): value for step, value in column.items() if step < last and math.isfinite(value)}
            for name, column in on_the_way.items()
        },
        "without_rows": {name: without[name] for name in followed if name in without},
        **({} if confusion is None else {"confusion": confusion.to_plain()}),
    }


def size_of(export: Path, start: Path | None = None) -> dict[str, int | float]:
    """Layers and parameters of an exported network, and its milliseconds for one sequence of 64 tokens, one thread.

    Args:
        export: The network.
        start: The one that it started from. The two take turns, and the result also has how many times as fast the
            network is; what else the machine does slows both. Without its export, the result leaves this out.
    """
    networks = [str(one) for one in (export, start) if one is not None and (one / "config.json").is_file()]
    found, *starts = measure_networks(networks, length=64, batch_size=1)
    layers = AutoConfig.from_pretrained(export).num_hidden_layers
    milliseconds = found.latency_ms.median
    size = {"layers": layers, "parameters": found.parameters, "milliseconds": round(milliseconds, 4)}
    if starts:
        size["times_as_fast"] = round(starts[0].latency_ms.median / milliseconds, 4)
    return size


def claims(
    names: list[str] | None = None,
    seeds: int = 3,
    jobs: int = 2,
    out: str | None = None,
    runs: str | None = None,
    configs: str | None = None,
    docs: str | None = None,
    only_pages: bool = False,
    scale: str | None = None,
    text: str | None = None,
    estimate: str | None = None,
) -> None:
    """Run the papers' claims on small networks, and print their verdicts.

    Args:
        names: Claims, by the names of their folders; none for all.
        seeds: How many seeds each arm has: 1, 2, and so on.
        jobs: Runs side by side, with one thread each.
        out: Where a small JSON file of each run goes; None for results/claims, or results/claims-SCALE.
        runs: Where the runs go; None for runs/claims, or runs/claims-SCALE.
        configs: Folder of the claims; None for those that come with the package.
        docs: Folder of pages to write: claims.md, a page for each claim, and the table in a README beside the folder
            that shows its pages; None writes none.
        only_pages: Run nothing; print the table of what is in `out`, and write the pages if `docs` names a folder.
        scale: Another size, such as gpu, or another network (minilm): a file of `scales/` beside the claims, or of your
            own. A scale has `times`, `over`, `arms`, `bases`, `claims` and `about` (docs/claims.md says what they do).
        text: Text file to pretrain and distil on in place of docstrings, a tenth of it held out. Claims that cut the
            text keep theirs. Without `scale`, results and runs go to claims-text. Results are told apart by the name of
            the file, not by what is in it: for another text, take another `out` and `runs`.
        estimate: Run nothing; print what would run and how long it takes on this GPU, such as H100; or cpu.
    """
    check_at_least(1, {"seeds": seeds, "jobs": jobs})
    root = Path(configs) if configs else recipes_folder() / "claims"
    name = "claims" + (f"-{Path(scale).stem}" if scale is not None else "-text" if text is not None else "")
    target, runs = Path(out or f"results/{name}"), runs or f"runs/{name}"
    if docs is not None and not Path(docs).is_dir():
        raise ValueError(f"docs: there is no folder {docs!r}; make it first, or give another")
    if only_pages and out is not None and not target.is_dir():
        raise ValueError(f"out: there is no folder {out!r}, so there are no results to show")
    suite = Suite(name)
    if scale is not None or text is not None:
        size = load_scale(None if scale is None else scale_file(root / "scales", scale), root)
        options = [("scale", scale), ("text", text)]
        spoken = "".join(f" --{option} {value}" for option, value in options if value is not None)
        root = write_scaled(root, size, Path(runs) / "configs", text=text)
        suite = Suite(name, spoken, size.about or f"# The papers' claims:{spoken}\n")
    everyone = sorted(path.parent.name for path in root.glob(f"*/{CLAIM}"))
    if not everyone:
        raise ValueError(f"configs: no claim in {root}; a claim is a folder with a {CLAIM}")
    chosen = [load_claim(root / name) for name in dict.fromkeys(names or everyone)]
    if estimate is not None:
        planned = plan(chosen, range(1, seeds + 1), configs=root, runs=Path(runs))
        missing = [job for job in needed_of(planned, target) if not job.is_finished]
        _check_inputs(missing)
        nothing = f"every run has its result in {target}; with another --out all of them count"
        print(estimate_of(missing, estimate) if missing else nothing)
        return
    if not only_pages:
        with ending_processes():
            _measure_exactly(chosen, range(1, seeds + 1), target)
            planned = plan(chosen, range(1, seeds + 1), configs=root, runs=Path(runs))
            _run_all(planned, jobs, target)
    measured = [read_results(claim, target) for claim in chosen]
    if docs is not None:  # the table is of all claims, whichever were asked for
        write_claim_pages([read_results(load_claim(root / name), target) for name in everyone], Path(docs), suite)
    print(markdown_table(summary_table(measured)))


def _measure_exactly(chosen: Sequence[Claim], seeds: Sequence[int], out: Path) -> None:
    """Claims about functions, which need no training."""
    for claim in chosen:
        for arm, spec in claim.arms.items():
            for seed in seeds if spec.base in MEASUREMENTS else ():
                if not _has_result(out, claim.name, arm, seed, spec.recipe, 0):
                    found = {"metrics": MEASUREMENTS[spec.base](seed)}
                    _write_result(out, claim.name, arm, spec.recipe, seed, found, _made_with())


def _run_all(planned: Sequence[Job], num_jobs: int, out: Path) -> None:
    """Run what has no result yet, so many at a time; a run waits for the one that it starts from."""
    missing = {job: _missing(job, out) for job in planned}
    needed = needed_of(planned, out)
    _check_inputs([job for job in needed if not job.is_finished])
    starts = [job for job in needed if not job.is_finished and job.after is None and job.files]
    is_used = any(TOKENIZER in job.files[0].read_text(encoding="utf-8") for job in starts)
    if is_used and not Path(TOKENIZER, "tokenizer.json").is_file():
        _lit_distil(_TRAIN_TOKENIZER, Path(f"{TOKENIZER}.log"))
    contents = {job: _contents(job) for job in needed}

    def work(job: Job) -> None:
        if is_new := not job.is_finished:
            _lit_distil(job.command(), job.folder.with_suffix(".log"))
        if _contents(job) != contents[job]:  # what it was made from is not the recipe that its result would name
            if is_new:
                shutil.rmtree(job.folder, ignore_errors=True)
            raise ValueError(f"claims: {job.files[0]} or a file over it has changed since; give the command again")
        if is_new:
            write_json(job.folder / _MADE_WITH, _made_with())
        (run,) = open_runs([str(job.folder)])
        export, note = job.folder / "export", job.folder / _MADE_WITH
        made_with = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else _made_with()
        if run.config["trainer"]["accelerator"] in ("gpu", "cuda"):
            made_with["device"] = describe_hardware(threads=1, device="cuda", seed=job.seed)["device"]
        with _MEASURING, without_bars():
            start = None if job.after is None else job.after.folder / "export"
            size = size_of(export, start) if missing[job] else {}
            for claim, arm in missing[job]:
                result = result_of(run, job.claims[claim].metrics)
                if (pairs := job.claims[claim].pairs) and "val/masked_lm_loss" in result["metrics"]:
                    on_pairs, groups = accuracy_on_pairs(export, pairs)
                    result["pairs"] = pairs
                    result["metrics"] |= on_pairs
                    result["without_rows"] |= groups
                result["size"] = size
                _write_result(out, claim, arm, job.recipe, job.seed, result, made_with)

    for _ in progress_bar(_each_when_it_can(needed, num_jobs, work), desc="claims", unit="run", total=len(needed)):
        pass


def _each_when_it_can(jobs: Sequence[Job], num_jobs: int, work: Callable[[Job], None]) -> Iterator[None]:
    """Do the work of all runs, so many at a time: always the first of those that wait for no other. One step a run."""
    waiting, running = [*jobs], dict[Future[None], Job]()
    with ThreadPoolExecutor(num_jobs) as pool:
        try:
            while waiting or running:
                unfinished = {*waiting, *running.values()}
                ready = [job for job in waiting if job.after not in unfinished]
                for job in ready[: num_jobs - len(running)]:
                    running[pool.submit(work, job)] = job
                    waiting.remove(job)
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    del running[future]
                    future.result()
                    yield
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_inputs(jobs: Sequence[Job]) -> None:
    """Tell all files and networks that these runs read and that are not there, before the first one starts."""
    problems: dict[str, None] = {}

    def look(settings: Any, *, starts_anew: bool) -> None:
        if not isinstance(settings, dict):
            return
        source = imported(settings.get("class_path", ""))
        if isinstance(source, type) and issubclass(source, LocalFiles):
            given = [settings.get("init_args", {}).get(split) for split in ("train", "validation", "test")]
            patterns = [one for value in given for one in (value if isinstance(value, list) else [value]) if one]
            problems.update({f"no file {one!r}": None for one in patterns if not glob.glob(one)})
        for key, value in settings.items():
            # a run that starts from another has its tokenizer and network, and the claims' own tokenizer is trained
            if key in ("tokenizer", "name_or_path") and starts_anew and value != TOKENIZER:
                problems.update({one: None for one in [missing_folder(value)] if one})
            look(value, starts_anew=starts_anew)

    for job in jobs:
        for file in job.files:
            look(read_settings(file), starts_anew=job.after is None)
    if problems:
        raise ValueError(f"claims: the runs read what is not there: {'; '.join(problems)}")


def needed_of(planned: Sequence[Job], out: Path) -> list[Job]:
    """Those without a result, and those that they start from, unless their export is there; in their order."""
    needed = {job for job in planned if _missing(job, out)}
    for job in reversed(planned):  # a run stands behind the one that it starts from
        if job in needed and job.after is not None and not job.is_finished:
            needed.add(job.after)
    return [job for job in planned if job in needed]


def _contents(job: Job) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in job.files]


def _lit_distil(arguments: list[str], log: Path) -> None:
    """Run the command line with one thread; what it prints goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lit_distil", *arguments]
    with log.open("a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = run_process(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode != 0:
        *_, last = ["", *log.read_text(encoding="utf-8").splitlines()]
        raise ValueError(f"claims: `lit-distil {' '.join(arguments)}` failed ({last}); {log} has all of it")


def _missing(job: Job, out: Path) -> list[tuple[str, str]]:
    """The claims' arms that a run is, and that have no result yet."""
    return [
        (claim, arm)
        for claim, arm in job.results
        if not _has_result(out, claim, arm, job.seed, job.recipe, job.claims[claim].pairs)
    ]


def _result_file(out: Path, claim: str, arm: str, seed: int) -> Path:
    return out / claim / f"{arm}-seed-{seed}.json"


def _has_result(out: Path, claim: str, arm: str, seed: int, recipe: str, pairs: int) -> bool:
    """Whether the result is there, and current."""
    file = _result_file(out, claim, arm, seed)
    return file.is_file() and is_current(load_result(file), recipe, pairs)


def _made_with() -> dict[str, Any]:
    """The machine, the versions and the commit; a run keeps them from its training for all claims that share it."""
    found: dict[str, Any] = describe_hardware(threads=1, device="cpu", seed=0)
    return {name: value for name, value in found.items() if name not in ("seed", "benchmark_threads")}


def _write_result(
    out: Path, claim: str, arm: str, recipe: str, seed: int, result: dict[str, Any], made_with: dict[str, Any]
) -> None:
    file = _result_file(out, claim, arm, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"claim": claim, "arm": arm, "seed": seed, "recipe": recipe}
    write_json(file, {**about, **result, "made_with": made_with})


run = functools.partial(
    call_command, claims, words="names", help="Claims, by the names of their folders; none for all."
)
