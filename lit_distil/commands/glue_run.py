"""What `lit-distil glue` is asked to run: the arguments of every process that it takes, and its predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_distil.commands.glue_data import is_saved, table_file, table_files, train_work
from lit_distil.commands.glue_tasks import DIAGNOSTIC, TASKS
from lit_distil.commands.jobs import Job, check_more
from lit_distil.commands.processes import call, ending
from lit_distil.commands.seeds import check_seeds

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GlueRun:
    """What is to be run.

    Attributes:
        model: Exported folder or name on the Hub, with its tokenizer.
        tasks: Names in `glue_tasks.TASKS`.
        seeds: A run of each task with each.
        out: Folder; a run writes to `<task>/seed-<n>` in it.
        data: Folder with a folder for each task, of files or of what `save_to_disk` wrote; None reads the Hub.
        overlays: Configurations after the task's own, such as `configs/trainer/cpu.yaml`.
        recipes: Folder of the tasks' configurations.
        more: Further arguments of `lit-distil fit`.
    """

    model: str
    tasks: Sequence[str]
    seeds: Sequence[int]
    out: Path
    data: Path | None = None
    overlays: Sequence[str] = ()
    recipes: Path = field(default=_REPOSITORY / "configs" / "finetune" / "glue")
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_more(self.more, {"--model.network.name_or_path": "give the network with --model"})
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks: no task {unknown[:1] or self.tasks} in GLUE; there are {list(TASKS)}")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: give each once, got {list(self.tasks)}")
        for task in self.tasks:
            if not (self.recipes / f"{task}.yaml").is_file():
                raise ValueError(
                    f"recipes: no {self.recipes / f'{task}.yaml'}; give the folder of configs/finetune/glue (--recipes)"
                )

    def folder(self, task: str, seed: int) -> Path:
        """The folder of a run."""
        return self.out / task / f"seed-{seed}"

    def name(self, task: str, seed: int) -> str:
        """A run as it is called on the screen."""
        return f"{TASKS[task].title}, seed {seed}"

    def job(self, task: str, seed: int) -> Job:
        """The training of a task with a seed."""
        own = ("--model.network.name_or_path", self.model, "--seed_everything", str(seed))
        arguments = (*self.arguments(task), *own, *self.more)
        return Job(self.name(task, seed), self.folder(task, seed), arguments, train_work(self.data, task))

    def arguments(self, task: str) -> list[str]:
        """Of every command on a task: the recipe, the data, the overlays; the network is not among them."""
        words = ["--config", str(self.recipes / f"{task}.yaml")]
        if self.data is not None and not is_saved(self.data / task):
            files = {split: file for split, file in table_files(self.data, task).items() if "_second" not in split}
            source = {"class_path": "lit_distil.data.TableFiles", "init_args": files}
            file = self.out / task / "data.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump({"data": {"init_args": {"source": source}}}), encoding="utf-8")
            words += ["--config", str(file)]
        for overlay in self.overlays:
            words += ["--config", overlay]
        if self.data is not None and is_saved(self.data / task):
            words += ["--data.source.name", str(self.data / task)]
        return [*words, "--data.tokenizer", self.model]

    def recipe(self, task: str) -> dict[str, Any]:
        """The task's configuration."""
        return yaml.safe_load((self.recipes / f"{task}.yaml").read_text(encoding="utf-8"))

    def split(self, task: str, split: str, *, second: bool = False) -> list[str]:
        """Arguments that make a split the one to predict; none where the local files lack it."""
        kind = TASKS[task].second
        if self.data is not None and not is_saved(self.data / task):
            file = table_files(self.data, task).get(f"{split}_second" if second else split)
            return ["--data.source.predict", file] if file else []
        suffix = "" if kind is None else f"_{kind[0]}" if second else "_matched"
        return ["--data.source.splits", json.dumps({"predict": f"{split}{suffix}"})]

    def diagnostic(self) -> list[str]:
        """The same for the diagnostic rows, which MNLI's network predicts."""
        as_test = ["--data.source.splits", json.dumps({"predict": "test"})]
        if self.data is None:
            return ["--data.source.config", DIAGNOSTIC, *as_test]
        folder = self.data / DIAGNOSTIC
        if is_saved(folder):
            return ["--data.source", "lit_distil.data.HubDataset", "--data.source.name", str(folder), *as_test]
        file = table_file(folder, "test")
        return ["--data.source", "lit_distil.data.TableFiles", "--data.source.predict", file] if file else []

    def predict(self, task: str, seed: int, name: str, source: Sequence[str]) -> list[dict[str, Any]] | None:
        """The predictions of a run's exported network, made once; None if that failed."""
        folder = self.folder(task, seed)
        target, log = folder / name, folder / "output.log"
        if not (target / "predictions.jsonl").is_file():
            print(f"{self.name(task, seed)}: predicting {name}", flush=True)
            network = ["--model.network.name_or_path", str(folder / "export")]
            words = ["predict", *self.arguments(task), *self.more, *network, *source]
            code = call([*words, "--trainer.default_root_dir", str(target)], log)
            if code != 0:
                print(f"{self.name(task, seed)}: predicting {name} failed ({ending(code)}); see {log}", flush=True)
                return None
        with (target / "predictions.jsonl").open(encoding="utf-8") as rows:  # a text may hold U+2028, which ends no row
            return [json.loads(row) for row in rows]
