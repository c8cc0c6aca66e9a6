"""`lit-distil seeds`: one configuration under several seeds, with median and spread of every metric."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lit_distil.commands.jobs import Job, check_more, run_jobs
from lit_distil.commands.report.statistics import scores_or_problem, seeds_table, summarise
from lit_distil.console import markdown_table


def seeds(configs: Sequence[str], *, seeds: Sequence[int], out: str, more: Sequence[str] = ()) -> bool:
    """Run a configuration under each seed, in a process each, and write `seeds.md` and `seeds.json`.

    The metrics of a run are those of its best validation. Runs that are finished are not repeated.

    Args:
        configs: Files, as `lit-distil fit --config` takes them.
        seeds: One run each.
        out: Folder; each run writes to `seed-<n>` in it.
        more: Further arguments of `lit-distil fit`.

    Returns:
        Whether all runs came to their end and were validated.

    Raises:
        ValueError: No seed, or the same twice; an option that would make all runs one; a folder holds another run.
    """
    check_seeds(seeds)
    check_more(more, {})
    folder = Path(out)
    files = [word for config in configs for word in ("--config", config)]
    jobs = [
        Job(f"seed {seed}", folder / f"seed-{seed}", (*files, "--seed_everything", str(seed), *more)) for seed in seeds
    ]
    failed = run_jobs(jobs)
    problems = [job.name for job in failed]
    runs: dict[str, dict[str, float]] = {}
    for seed, job in zip(seeds, jobs, strict=True):
        if job not in failed and (scores := scores_or_problem(job.folder, job.name, problems)) is not None:
            runs[str(seed)] = scores
    summaries = summarise(runs)
    report = markdown_table(seeds_table(summaries, [str(seed) for seed in seeds])) if runs else "no run has scores"
    if problems:
        report += f"\n\nFailed: {'; '.join(problems)}"
    print(report)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seeds.md").write_text(f"# {', '.join(configs)}\n\n{report}\n", encoding="utf-8")
    content = {
        "configs": list(configs),
        "arguments": list(more),
        "failed": problems,
        "metrics": {name: summary.to_json() for name, summary in summaries.items()},
    }
    (folder / "seeds.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {folder / 'seeds.md'}")
    return not problems


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises:
    ValueError: There is none, or one stands twice.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: give one or more, each once, got {list(seeds)}")


def add_seeds(parser: argparse.ArgumentParser, *, default: int) -> None:
    """The two ways to say which seeds; without either they are 1 to `default`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="such as 1 2 3; a run with each")
    group.add_argument(
        "--num_seeds", type=int, metavar="NUMBER", help=f"so many, from 1 on, in place of --seeds; default: {default}"
    )


def chosen_seeds(arguments: argparse.Namespace, *, default: int) -> list[int]:
    """The seeds that were asked for, or 1 to `default`."""
    if arguments.seeds is not None:
        return list(arguments.seeds)
    return list(range(1, (default if arguments.num_seeds is None else arguments.num_seeds) + 1))


def make_parser() -> argparse.ArgumentParser:
    """The options of the command; others are those of `lit-distil fit`."""
    parser = argparse.ArgumentParser(
        prog="lit-distil seeds",
        description="One configuration under several seeds: median, spread, min and max of each metric at the best "
        "validation. Other options, such as --trainer.max_epochs 3, go to `lit-distil fit`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="as of `lit-distil fit`; may be repeated"
    )
    add_seeds(parser, default=3)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to: a folder seed-<n> for each run, and seeds.md and seeds.json; what is finished there is not "
        "repeated; default: runs/seeds/<name of the first config>",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Parse the arguments and run the seeds; what is not known here goes to `lit-distil fit`."""
    known, more = make_parser().parse_known_args(arguments)
    out = known.out or f"runs/seeds/{Path(known.config[0]).stem}"
    if not seeds(known.config, seeds=chosen_seeds(known, default=3), out=out, more=more):
        raise SystemExit(1)
