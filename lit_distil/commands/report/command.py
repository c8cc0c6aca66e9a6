"""`lit-distil report`: measure the networks of finished runs in one process; write a table, pictures, raw numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from lightning.pytorch import seed_everything
from transformers.utils import logging as transformers_logging

from lit_distil.commands.benchmark.command import measure_networks
from lit_distil.commands.machine import describe_hardware
from lit_distil.commands.report.measure import Floors, measure_floors, measure_masked_lm, measure_task, open_data
from lit_distil.commands.report.page import (
    Comparison,
    EntryResult,
    Results,
    findings,
    main_table,
    to_html,
    to_markdown,
)
from lit_distil.commands.report.plots import Point, plot_curves, plot_quality
from lit_distil.commands.runs import command_for, has_export, read_metric
from lit_distil.console import markdown_table, progress_bar
from lit_distil.data import TextDataModule


@dataclass(frozen=True)
class Entry:
    """One network of a report.

    Attributes:
        label: Its name in table and pictures.
        pretrained: Folder of the run that pretrained or distilled it; None where there was none.
        finetuned: Folder of the run that fine-tuned it; None where there was none.
    """

    label: str
    pretrained: str | None = None
    finetuned: str | None = None


def report(
    title: str,
    out: str,
    entries: dict[str, Entry],
    teacher: str,
    masked_lm_data: TextDataModule,
    task_data: TextDataModule | None = None,
    comparisons: list[Comparison] | None = None,
    length: int = 64,
    batch_size: int = 32,
    repeats: int = 60,
    threads: int = 1,
    device: str = "cpu",
    seed: int = 1,
    made_by: str | None = None,
) -> None:
    """Measure the networks of finished runs on the same test data, and write what was measured.

    Writes report.md, report.html (one file), report.json (every raw number), curves.png and quality_latency.png.

    Args:
        title: Headline.
        out: Folder to write to.
        entries: The networks in their order, each under a key.
        teacher: Key of the entry that the others are compared with.
        masked_lm_data: Documents whose test split the masked-LM loss is taken on.
        task_data: Rows whose test split fine-tuned networks are scored on; needed if an entry has one.
        comparisons: Pairs of entries whose differences are the findings.
        length: Tokens of a sequence when latency and throughput are measured.
        batch_size: Sequences in a batch when the throughput is measured.
        repeats: Rounds of the latency; the throughput gets a third as many.
        threads: Threads of torch when they are measured.
        device: Where to measure, such as cpu or cuda.
        seed: Of whatever is random.
        made_by: What to run where a run is missing, such as `make demo`; None names each run's own command.
    """
    comparisons = comparisons or []
    _check(entries, teacher, comparisons, has_task_data=task_data is not None)
    _check_runs(entries, made_by)
    seed_everything(seed, verbose=False)
    open_data(masked_lm_data)
    if task_data is not None:
        open_data(task_data)
    results = Results(
        title=title,
        teacher=teacher,
        entries=_measure(
            entries,
            masked_lm_data,
            task_data,
            device=device,
            benchmark={
                "length": length,
                "batch_size": batch_size,
                "repeats": repeats,
                "threads": threads,
                "device": device,
            },
        ),
        floors=measure_floors(masked_lm_data, task_data),
        comparisons=comparisons,
        settings={"length": length, "batch_size": batch_size, "repeats": repeats, "threads": threads},
        hardware=describe_hardware(threads=threads, device=device, seed=seed),
    )
    write_report(results, Path(out))
    print(markdown_table(main_table(results)))
    for line in findings(results):
        print(line)
    print(f"written: {Path(out, 'report.html')}")


def write_report(results: Results, folder: Path) -> None:
    """Write Markdown, HTML, JSON and both pictures to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw(results, folder)
    folder.joinpath("report.json").write_text(json.dumps(raw_numbers(results), indent=2, ensure_ascii=False) + "\n")
    folder.joinpath("report.md").write_text(to_markdown(results, pictures), encoding="utf-8")
    folder.joinpath("report.html").write_text(to_html(results, pictures), encoding="utf-8")


def raw_numbers(results: Results) -> dict[str, Any]:
    """Everything that was measured, and what is derived from it, as plain types."""
    numbers = asdict(results)
    for key, entry in numbers["entries"].items():
        entry["share_of_teacher_accuracy"] = results.share_kept(key)
        entry["loss_difference_to_teacher"] = results.loss_difference(key, results.teacher)
    for comparison in numbers["comparisons"]:
        a, b = comparison["a"], comparison["b"]
        accuracies = results.accuracy_difference(a, b)
        comparison["loss_difference"] = results.loss_difference(a, b)
        comparison["accuracy_difference"] = accuracies[0] if accuracies else None
        comparison["accuracy_difference_error"] = accuracies[1] if accuracies else None
    numbers["findings"] = findings(results)
    return numbers


def run(arguments: list[str]) -> None:
    """Parse the arguments and write the report."""
    transformers_logging.disable_progress_bar()
    auto_cli(report, args=arguments, prog="lit-distil report", as_positional=False)


def _check(
    entries: Mapping[str, Entry], teacher: str, comparisons: Sequence[Comparison], *, has_task_data: bool
) -> None:
    if teacher not in entries:
        raise ValueError(f"teacher: no entry {teacher!r}; there are {list(entries)}")
    for comparison in comparisons:
        for key in (comparison.a, comparison.b):
            if key not in entries:
                raise ValueError(f"comparisons: {comparison.label!r} names no entry {key!r}; there are {list(entries)}")
    for key, entry in entries.items():
        if entry.pretrained is None and entry.finetuned is None:
            raise ValueError(f"entries.{key}: give pretrained, finetuned or both, each the folder of a run")
        if entry.finetuned is not None and not has_task_data:
            raise ValueError(
                f"entries.{key}.finetuned: scoring it needs task_data, the rows and task it was trained on"
            )


def _check_runs(entries: Mapping[str, Entry], made_by: str | None) -> None:
    """Every export must be there before the first minute is spent."""
    missing = [
        (f"entries.{key}.{field}", folder)
        for key, entry in entries.items()
        for field, folder in (("pretrained", entry.pretrained), ("finetuned", entry.finetuned))
        if folder is not None and not has_export(folder)
    ]
    if not missing:
        return
    lines = [f"  {field}: {folder}" + ("" if made_by else f"  ({command_for(folder)})") for field, folder in missing]
    remedy = f"run `{made_by}` first" if made_by else "run the command beside each first"
    raise ValueError("no export/ in these runs; " + remedy + ":\n" + "\n".join(lines))


def _measure(
    entries: Mapping[str, Entry],
    masked_lm_data: TextDataModule,
    task_data: TextDataModule | None,
    *,
    device: str,
    benchmark: dict[str, Any],
) -> dict[str, EntryResult]:
    masked, task = {}, {}
    num_tests = sum((entry.pretrained is not None) + (entry.finetuned is not None) for entry in entries.values())
    with progress_bar(total=num_tests, desc="testing", unit="network") as bar:
        for key, entry in entries.items():
            if entry.pretrained is not None:
                masked[key] = measure_masked_lm(f"{entry.pretrained}/export", masked_lm_data, device=device)
                bar.update()
            if entry.finetuned is not None and task_data is not None:
                task[key] = measure_task(f"{entry.finetuned}/export", task_data, device=device)
                bar.update()
    exports = [f"{entry.pretrained or entry.finetuned}/export" for entry in entries.values()]
    networks = measure_networks(exports, **benchmark)
    return {
        key: EntryResult(
            label=entry.label,
            masked_lm=masked.get(key),
            task=task.get(key),
            network=network,
            curve=_curve(entry.pretrained),
        )
        for (key, entry), network in zip(entries.items(), networks, strict=True)
    }


def _curve(folder: str | None) -> list[tuple[int, float]]:
    """Validation loss by step; none where the run kept no metrics, as with an export that came from elsewhere."""
    if folder is None or not Path(folder, "metrics.csv").is_file():
        return []
    # a resumed run may have logged a step twice: the later value stands
    return sorted(dict(read_metric(folder, "val/loss/masked_lm")).items())


def _draw(results: Results, folder: Path) -> list[Path]:
    curves, quality = folder / "curves.png", folder / "quality_latency.png"
    indexed = list(enumerate(results.entries.values()))
    pictures = []
    drawn = [(index, entry.label, entry.curve) for index, entry in indexed if entry.curve]
    if drawn:
        plot_curves(curves, drawn, floor=results.floors.unigram_loss)
        pictures.append(curves)
    has_task = sum(entry.task is not None for _, entry in indexed) >= 2
    points = [point for index, entry in indexed if (point := _point(index, entry, has_task=has_task)) is not None]
    name, floor = _quality_axis(results.floors, has_task=has_task)
    plot_quality(quality, points, quality=name, floor=floor)
    return [*pictures, quality]


def _point(index: int, entry: EntryResult, *, has_task: bool) -> Point | None:
    time = entry.network.latency_ms
    latency = (time.median, time.lower, time.upper)
    if has_task:
        if entry.task is None:
            return None
        value, error = 100 * entry.task.accuracy, 100 * entry.task.accuracy_error
        return Point(entry.label, index, latency, value, error)
    return None if entry.masked_lm is None else Point(entry.label, index, latency, entry.masked_lm.loss)


def _quality_axis(floors: Floors, *, has_task: bool) -> tuple[str, tuple[float, str]]:
    if has_task and floors.majority_accuracy is not None:
        return "task accuracy (%)", (100 * floors.majority_accuracy, "commonest class")
    return "masked-LM loss (nats)", (floors.unigram_loss, "token frequencies alone (unigram)")
