"""`lit-distil report`: compare finished runs in tables, pictures and raw numbers.

Runs are compared by their logs (`runs`), by measuring their exported networks again (`entries`), or both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from lit_distil.commands.benchmark.latency import describe_hardware
from lit_distil.commands.pages import Section, check_pages, write_pages
from lit_distil.commands.report.arms import arms_numbers, beside_table, make_arms
from lit_distil.commands.report.entries import Comparison, Entry, Results, findings, measure_entries
from lit_distil.commands.report.groups import Group, make_groups, put_first
from lit_distil.commands.report.runs import At, Run, open_runs, with_sizes
from lit_distil.console import bullets, markdown_table
from lit_distil.data import TextDataModule
from lit_distil.messages import read_settings
from lit_distil.pieces import call_command

_HOW_TO_READ = (
    "± is half the 95 % interval of the mean (Student's t) or of the difference (Welch's t); a single run has none. "
    "Runs that differ only in their seeds are one arm, and confusion matrices are sums over them. Chance is the "
    "variation between seeds, by this interval."
)
_EQUAL_TIME = (
    "tokens/s: median of the logged throughputs without the first. steps in the first's time: optimizer steps that the "
    "run could do in the time of the first run, for runs with as many tokens in a step."
)


def report(
    runs: list[str] | None = None,
    metrics: list[str] | str | None = None,
    at: At = "end",
    first: str | None = None,
    beside: str | None = None,
    title: str = "Runs side by side",
    out: str | None = None,
    entries: dict[str, Entry] | None = None,
    teacher: str | None = None,
    masked_lm_data: TextDataModule | None = None,
    task_data: TextDataModule | None = None,
    comparisons: list[Comparison] | None = None,
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 60,
    threads: int = 1,
    device: str = "cpu",
    seed: int = 1,
    sizes: bool = False,
    made_by: str | None = None,
    overwrite: bool = False,
) -> None:
    """Compare finished runs by what they logged, or measure their exported networks again on the same test data.

    Writes report.md, report.html (one file), report.json (every number) and pictures to a folder. For runs: runs.png,
    with seeds as bands; confusion.png for classes or tags; sizes.png for results of claims, and with --sizes. Further
    groups of runs, such as another task, have runs-2.png and so on. For entries: curves.png, quality_latency.png and
    test_confusion.png.

    Args:
        runs: Folders of runs or of results (results/claims/soft-targets), or globs in quotes; runs that differ only in
            their seeds count as one arm.
        metrics: Column of metrics.csv, such as val/loss, or a list of columns; None takes the score and the loss.
        at: Compare at the last validation (end), or at the best one (best), whose network was exported.
        first: Part of the name of the runs that the others are compared with, such as teacher; None takes the first
            run of each group.
        beside: YAML file with published figures to put beside the runs, such as configs/finetune/glue/papers.yaml.
        title: Headline.
        out: Folder to write to; without entries it may be left out, which only prints tables and findings.
        entries: Networks to measure, by key, in order.
        teacher: Key of the entry that the others are compared with.
        masked_lm_data: Documents whose test split gives the masked-LM loss of the entries.
        task_data: Rows whose test split gives the scores of fine-tuned entries.
        comparisons: Pairs of entries whose differences to list as findings.
        length: Tokens of a sequence when latency and throughput are measured.
        batch_size: Sequences in a batch when the throughput is measured.
        repeats: Timed calls for the latency; the throughput gets a third as many.
        threads: Torch's threads for these measurements.
        device: Where to measure, such as cpu or cuda.
        seed: Seed for everything random.
        sizes: Time the exported networks of runs, some seconds each, and draw their first metric against size and
            latency.
        made_by: Command to suggest if a run is missing, such as `make demo`; None suggests each run's own command.
        overwrite: Replace files of these names even if no report wrote them; a report may always be replaced.
    """
    if not runs and not entries:
        raise ValueError("runs: give folders of runs, such as runs/*, or entries in a file (--config FILE)")
    chosen = [metrics] if isinstance(metrics, str) else metrics
    benchmark = {"length": length, "batch_size": batch_size, "repeats": repeats, "threads": threads}
    found = open_runs(runs) if runs else []
    if sizes and beside is None:
        found = with_sizes(found, device=device, length=length, repeats=repeats, threads=threads)
    if first is not None and found:
        found = put_first(found, first)
    groups = make_groups(found, chosen, at) if found and beside is None else []
    if out is not None:
        pictures = [name for group in groups for name in group.pictures]
        pictures += ["curves.png", "quality_latency.png", "test_confusion.png"] if entries else []
        check_pages(Path(out, "report.html"), [".md", ".json", *pictures], overwrite=overwrite)
    sections: list[Section] = []
    numbers: dict[str, Any] = {"title": title}
    if runs:
        folder = None if out is None else Path(out)
        more, logged = (
            _compare_runs(groups, folder, length if sizes else 64) if beside is None else _put_beside(found, beside, at)
        )
        sections += more
        numbers |= logged
    if entries:
        for name, value in (("out", out), ("masked_lm_data", masked_lm_data)):
            if value is None:
                raise ValueError(f"{name}: measuring entries needs it; give it as configs/demo/report.yaml does")
        assert out is not None and masked_lm_data is not None
        if teacher is None or teacher not in entries:
            raise ValueError(f"teacher: no entry {teacher!r}; there are {list(entries)}")
        _check_entries(entries, comparisons or [], has_task=task_data is not None)
        _check_exports(entries, made_by)
        seed_everything(seed, verbose=False)
        measured, floors = measure_entries(entries, masked_lm_data, task_data, benchmark, device)
        hardware = describe_hardware(threads=threads, device=device, seed=seed)
        results = Results(teacher, measured, floors, comparisons or [], benchmark, hardware)
        more = results.sections(Path(out))
        print(markdown_table(more[0].table))
        print("\n".join(findings(results)))
        sections += more
        numbers |= results.numbers()
    if out is not None:
        write_pages(Path(out, "report"), title, sections, numbers)


run = functools.partial(call_command, report, words="runs", help="Folders of runs or results, or globs in quotes.")


def _put_beside(found: Sequence[Run], beside: str, at: At) -> tuple[list[Section], dict[str, Any]]:
    """Print the table of runs beside published figures, and return the page's sections and the numbers."""
    published = read_settings(Path(beside))
    for part in ("columns", "rows"):
        if not isinstance(published.get(part), dict):
            raise ValueError(f"beside: {beside} has no {part!r}; see configs/finetune/glue/papers.yaml")
    table, notes = beside_table(make_arms(found), published, at), list(published.get("notes", []))
    print(markdown_table(table), bullets(notes), sep="\n\n")
    return [Section(table=table), Section(lines=notes, small=True)], {"beside": [list(row) for row in table]}


def _compare_runs(groups: Sequence[Group], folder: Path | None, length: int) -> tuple[list[Section], dict[str, Any]]:
    """Print what runs logged, and return the page's sections and the numbers."""
    numbers: dict[str, Any] = {"at": groups[0].at, "arms": [], "runs": []}
    for group in groups:
        print(group.text, end="\n\n" if group is not groups[-1] else "\n")
        measured = arms_numbers(group.arms, group.metrics, group.at)
        numbers["arms"] += measured["arms"]
        numbers["runs"] += measured["runs"]
    sections = [section for group in groups for section in group.sections(folder, length)]
    details = [section for group in groups for section in group.details]
    where = "the last validation" if groups[0].at == "end" else "the best validation, which is the exported one"
    notes = [f"Values are those of {where}. {_HOW_TO_READ}", _EQUAL_TIME]
    return [*sections, *details, Section(lines=notes, small=True)], numbers


def _check_entries(entries: Mapping[str, Entry], comparisons: Sequence[Comparison], *, has_task: bool) -> None:
    for comparison in comparisons:
        for key in (comparison.a, comparison.b):
            if key not in entries:
                raise ValueError(f"comparisons: {comparison.label!r} names no entry {key!r}; there are {list(entries)}")
    for key, entry in entries.items():
        if entry.pretrained is None and entry.finetuned is None:
            raise ValueError(f"entries.{key}: give pretrained, finetuned or both, each the folder of a run")
        if entry.finetuned is not None and not has_task:
            raise ValueError(
                f"entries.{key}.finetuned: scoring it needs task_data, the rows and task it was trained on"
            )


def _check_exports(entries: Mapping[str, Entry], made_by: str | None) -> None:
    """Check that every export exists before spending any time."""
    missing = [
        (f"entries.{key}.{field}", folder)
        for key, entry in entries.items()
        for field, folder in (("pretrained", entry.pretrained), ("finetuned", entry.finetuned))
        if folder is not None and not Path(folder, "export", "config.json").is_file()
    ]
    if missing:
        remedy = f"run `{made_by}` first" if made_by else "run the command beside each first"
        lines = [f"  {field}: {run}" + ("" if made_by else f"  ({_command_for(run)})") for field, run in missing]
        raise ValueError("no export/ in these runs; " + remedy + ":\n" + "\n".join(lines))


def _command_for(run: str) -> str:
    """The command that makes a run, by its config.yaml or by the rule that `configs/a/b.yaml` writes to `runs/a/b`."""
    if Path(run, "config.yaml").is_file():
        return f"lit-distil fit --config {Path(run, 'config.yaml')}"
    parts = Path(run).parts
    parts = parts[parts.index("runs") + 1 :] if "runs" in parts else parts
    return f"lit-distil fit --config {Path('configs', *parts[-2:])}.yaml"
