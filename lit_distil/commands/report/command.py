"""`lit-distil report`: compare finished runs in tables, pictures and raw numbers.

Runs are compared by their logs (`runs`), by measuring their exported networks again (`entries`), or both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import seed_everything

from lit_distil.commands.benchmark.latency import describe_hardware
from lit_distil.commands.pages import Section, check_pages, write_pages
from lit_distil.commands.report.arms import (
    Arm,
    arms_findings,
    arms_numbers,
    arms_table,
    beside_table,
    group_names,
    group_runs,
    half_width,
    main_metrics,
    make_arms,
    others_of,
    others_table,
    runs_table,
)
from lit_distil.commands.report.confusions import confusion_sections
from lit_distil.commands.report.entries import Comparison, Entry, Results, findings, measure_entries
from lit_distil.commands.report.plots import Size, plot_arms, plot_sizes
from lit_distil.commands.report.runs import At, Run, open_runs
from lit_distil.console import bullets, markdown_table
from lit_distil.data import TextDataModule
from lit_distil.messages import read_settings
from lit_distil.pieces import call_command

_HOW_TO_READ = (
    "± is half the 95 % interval of the mean (Student's t) or of the difference (Welch's t); a single run has none. "
    "Runs that differ only in their seeds are one arm. Chance is the variation between seeds, by this interval."
)
_PICTURES = ("runs", "sizes", "confusion")  # of each group of runs
_EQUAL_TIME = (
    "tokens/s: median of the logged throughputs without the first. steps in the first's time: optimizer steps that the "
    "run could do in the time of the first run, for runs with as many tokens in a step."
)


def report(
    runs: list[str] | None = None,
    metrics: list[str] | str | None = None,
    at: At = "end",
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
    made_by: str | None = None,
    overwrite: bool = False,
) -> None:
    """Compare finished runs by what they logged, or measure their exported networks again on the same test data.

    Writes report.md, report.html (one file), report.json (every number) and pictures to a folder. For runs: runs.png,
    with seeds as bands; confusion.png for classes or tags; sizes.png for results of claims, which know the networks'
    sizes; further groups of runs, such as another task, have runs-2.png and so on. For entries: curves.png,
    quality_latency.png and test_confusion.png.

    Args:
        runs: Folders of runs or of results (results/claims/soft-targets), or globs in quotes; runs that differ only in
            their seeds count as one arm.
        metrics: Column of metrics.csv, such as val/loss, or a list of columns; None takes the score and the loss.
        at: Compare at the last validation (end), or at the best one (best), whose network was exported.
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
        made_by: Command to suggest if a run is missing, such as `make demo`; None suggests each run's own command.
        overwrite: Replace files of these names even if no report wrote them; a report may always be replaced.
    """
    if not runs and not entries:
        raise ValueError("runs: give folders of runs, such as runs/*, or entries in a file (--config FILE)")
    chosen = [metrics] if isinstance(metrics, str) else metrics
    found = open_runs(runs) if runs else []
    groups = [found] if chosen or beside is not None else group_runs(found)
    if out is not None:
        pictures = [_picture(of, place) for of in _PICTURES for place in range(1, 1 + len(groups)) if runs]
        pictures += ["curves.png", "quality_latency.png", "test_confusion.png"] if entries else []
        check_pages(Path(out, "report.html"), [".md", ".json", *pictures], overwrite=overwrite)
    sections: list[Section] = []
    numbers: dict[str, Any] = {"title": title}
    if runs:
        folder = None if out is None else Path(out)
        more, logged = _compare_runs(groups, chosen, at, folder) if beside is None else _put_beside(found, beside, at)
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
        benchmark = {"length": length, "batch_size": batch_size, "repeats": repeats, "threads": threads}
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
    table, notes = beside_table(make_arms(found), published, at), list(published.get("notes", []))
    print(markdown_table(table), bullets(notes), sep="\n\n")
    return [Section(table=table), Section(lines=notes, small=True)], {"beside": [list(row) for row in table]}


def _compare_runs(
    groups: Sequence[Sequence[Run]], metrics: Sequence[str] | None, at: At, folder: Path | None
) -> tuple[list[Section], dict[str, Any]]:
    """Print what runs logged, and return the page's sections and the numbers.

    Each group has tables of its own, without `metrics` by what it is judged by.
    """
    sections: list[Section] = []
    details: list[Section] = []
    numbers: dict[str, Any] = {"at": at, "arms": [], "runs": []}
    all_arms = [make_arms(runs) for runs in groups]
    for place, (runs, arms, group) in enumerate(zip(groups, all_arms, group_names(all_arms), strict=True), start=1):
        names = metrics or main_metrics(runs)
        by = f" by {' and '.join(names)}: {group}" if len(groups) > 1 else ""
        changes = [f"{arm.name}: {', '.join(arm.changes)}" for arm in arms[1:] if arm.changes]
        summary, each, lines = arms_table(arms, names, at), runs_table(arms, names, at), arms_findings(arms, names, at)
        heading = f"Runs{by}" if by else ""
        shown = [heading, markdown_table(summary), bullets(lines), bullets(changes), markdown_table(each)]
        print("\n\n".join(part for part in shown if part), end="\n" * (1 + (place < len(groups))))
        sections.append(Section(heading, summary))
        sections += [Section(f"Findings{by}", lines=lines)] if lines else []
        if folder is not None:
            sections += _pictures(arms, names, at, folder, place, by)
        if changes:
            sections.append(Section(f"What each arm changes of {arms[0].name}", lines=changes))
        details.append(Section(f"Each run{by}", each))
        others = others_table(arms, names, at)
        details += [Section(f"Loss terms and what else was measured{by}", others)] if len(others) > 1 else []
        measured = arms_numbers(arms, names, at)
        numbers["arms"] += measured["arms"]
        numbers["runs"] += measured["runs"]
    where = "the last validation" if at == "end" else "the best validation, which is the exported one"
    notes = [f"Values are those of {where}. {_HOW_TO_READ}", _EQUAL_TIME]
    return [*sections, *details, Section(lines=notes, small=True)], numbers


def _pictures(arms: Sequence[Arm], metrics: Sequence[str], at: At, folder: Path, place: int, by: str) -> list[Section]:
    """Draw what a group of runs has: its curves, its first metric against size and latency, and its mistakes."""
    found: list[Section] = []
    curves, sizes, confusion = (folder / _picture(of, place) for of in _PICTURES)
    of_metrics = {name: {arm.name: curve for arm in arms if len(curve := arm.curve(name)) > 1} for name in metrics}
    if drawn := {metric: of_arms for metric, of_arms in of_metrics.items() if of_arms}:
        plot_arms(curves, drawn)
        band = ["Lines are means over the seeds; a band reaches from the lowest run to the highest."]
        found.append(Section(f"Over the steps{by}", lines=band, pictures=[curves]))
    points = {arm.name: [size] for arm in arms if (size := _size(arm, metrics[0], at))}
    if len(points) > 1:
        plot_sizes(sizes, [(metrics[0], points)])
        found.append(Section(f"Size and latency{by}", pictures=[sizes]))
    mistakes = [(arm.name, arm.confusion(at)) for arm in arms]
    return [*found, *confusion_sections(f"What is mistaken for what{by}", mistakes, confusion)]


def _size(arm: Arm, metric: str, at: At) -> Size | None:
    """The point of an arm whose runs tell their size, as results of claims do.

    The least time counts, since what else the machine does can only add to it.
    """
    others, values = others_of(arm, [], at), arm.values(metric, at)
    known = [min(others[name]) for name in ("size/parameters", "size/milliseconds") if name in others]
    return (known[0], known[1], fmean(values), half_width(values) or 0.0) if len(known) == 2 else None


def _picture(of: str, place: int) -> str:
    """The file of a group of runs: each task and the language models have their own."""
    return f"{of}.png" if place == 1 else f"{of}-{place}.png"


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
