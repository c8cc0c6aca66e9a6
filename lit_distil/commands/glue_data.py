"""Local data of the tasks of GLUE: tables, or what `save_to_disk` wrote, in a folder for each task."""

from __future__ import annotations

from pathlib import Path

from lit_distil.commands.glue_tasks import TASKS

_KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")


def is_saved(folder: Path) -> bool:
    """Whether `DatasetDict.save_to_disk` wrote it."""
    return (folder / "dataset_dict.json").is_file()


def table_files(folder: Path, task: str) -> dict[str, str]:
    """Local files of a task, our split to file: `<folder>/<task>/train.jsonl` and the like, as the Hub names splits.

    Raises:
        ValueError: There are no training or no validation rows.
    """
    names = {split: [split] for split in ("train", "validation", "test")}
    if second := TASKS[task].second:
        for split in ("validation", "test"):
            names[split] = [split, f"{split}_matched"]
            names[f"{split}_second"] = [f"{split}_{second[0]}"]
    found: dict[str, str] = {}
    for ours, theirs in names.items():
        for file in filter(None, (table_file(folder / task, name) for name in theirs)):
            found[ours] = file
    missing = [split for split in ("train", "validation") if split not in found]
    if missing:
        raise ValueError(
            f"data: {folder / task} has no file {missing[0]}.jsonl (or .json, .csv, .tsv, .parquet), nor is it what "
            "save_to_disk wrote; name the splits as the Hub does, name the tasks that are there (--tasks), or leave "
            "--data out to read the Hub"
        )
    return found


def table_file(folder: Path, split: str) -> str | None:
    """The file of a split; JSON lines before others where there are several."""
    files = (folder / f"{split}.{kind}{packed}" for kind in _KINDS for packed in ("", ".gz", ".zst"))
    return next((str(file) for file in files if file.is_file()), None)


def train_work(folder: Path | None, task: str) -> float:
    """How long training takes beside the other tasks: bytes of the training rows, or their number on the Hub."""
    if folder is None:
        return TASKS[task].num_train
    files = (folder / task / "train").glob("*") if is_saved(folder / task) else [table_files(folder, task)["train"]]
    return float(sum(Path(file).stat().st_size for file in files))
