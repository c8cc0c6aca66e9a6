"""Files about a task's validations: what was mistaken for what, and how much the metrics depend on the rows."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_distil.files import write_file, write_json
from lit_distil.messages import check_at_least
from lit_distil.objectives.metrics import Confusion
from lit_distil.tasks import Prediction, Task
from lit_distil.tasks.base import Row

CONFUSION, JACKKNIFE = "confusion.json", "jackknife.json"
NUM_GROUPS = 20
_MOST_CLASSES = 200  # of a matrix that can be looked at; one of 5,000 classes would take 200 MB


def confusion_of(task: Task, predictions: list[Prediction], rows: list[Row]) -> Confusion | None:
    """What was predicted for each class; None for a task without classes, or with more than 200."""
    return None if len(task.label_names) > _MOST_CLASSES else task.confusion(predictions, rows)


class ConfusionWriter(Callback):
    """Writes `confusion.json` in the run's folder: the confusion matrix of each validation, by optimizer steps done.

    A task has one if each sample (or word) has one class, of 200 at most. A resumed run keeps the validations up to its
    checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, Confusion] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Read what the run found before the checkpoint that it continues from."""
        self._found, file = {}, Path(trainer.default_root_dir, CONFUSION)
        if trainer.global_step and trainer.is_global_zero and file.is_file():
            with suppress(ValueError):  # training is worth more than a damaged file
                self._found = {step: one for step, one in read_confusions(file).items() if step <= trainer.global_step}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Add the validation's matrix to the file."""
        if not (predictions := _predictions(trainer, pl_module)):
            return
        confusion = confusion_of(pl_module.task, predictions, pl_module.data.datasets["validation"].rows)
        if confusion is None:
            return
        classes = [*confusion.classes]
        self._found = {step: one for step, one in self._found.items() if [*one.classes] == classes}
        self._found[trainer.global_step] = confusion
        by_step = {str(step): one.to_plain()["counts"] for step, one in self._found.items()}
        content = {"classes": classes, "validations": by_step}
        write_file(Path(trainer.default_root_dir, CONFUSION), json.dumps(content))


def read_confusions(file: Path) -> dict[int, Confusion]:
    """The confusion matrices that a run wrote, by optimizer steps done.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        classes, by_step = content["classes"], content["validations"]
        return {int(step): Confusion.from_plain(classes, counts) for step, counts in by_step.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: damaged ({error!r}); delete it, and the run counts as one without it") from None


def scores_without_groups(
    task: Task, predictions: list[Prediction], rows: list[Row], *, num_groups: int = NUM_GROUPS
) -> dict[str, list[float]]:
    """A task's metrics on all rows but those of one group, for each group in turn (the delete-a-group jackknife).

    Row n is in group n modulo `num_groups`, so two networks that are evaluated on the same rows have the same groups,
    and the interval of a difference between them can be taken in pairs.

    Returns:
        A list of `num_groups` values for each metric; empty if there are fewer rows than groups.
    """
    if len({sample.row for sample, _ in predictions}) < num_groups:
        return {}
    found: dict[str, list[float]] = {}
    for group in range(num_groups):
        kept = [one for one in predictions if one[0].row % num_groups != group]
        for name, value in task.score(kept, rows).items():
            found.setdefault(name, []).append(float(value))
    return found


class JackknifeWriter(Callback):
    """Writes `jackknife.json` in the run's folder at each validation: `scores_without_groups` of its task.

    The standard error of a metric over the rows follows from the G values: the root of (G - 1) / G times the sum of
    their squared distances from their mean.

    Args:
        num_groups: How many groups of rows, G.
    """

    def __init__(self, num_groups: int = NUM_GROUPS) -> None:
        super().__init__()
        check_at_least(2, {"JackknifeWriter.num_groups": num_groups})
        self.num_groups = num_groups

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the file, if the module has a task."""
        if predictions := _predictions(trainer, pl_module):
            rows = pl_module.data.datasets["validation"].rows
            found = scores_without_groups(pl_module.task, predictions, rows, num_groups=self.num_groups)
            values = {f"val/{name}": [round(value, 6) for value in each] for name, each in found.items()}
            write_json(Path(trainer.default_root_dir, JACKKNIFE), values)


def _predictions(trainer: Trainer, module: Any) -> list[Prediction]:
    """The predictions of a validation that belongs to a training, on the rank that writes; without a task, none."""
    is_trial = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
    if is_trial or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
        return []
    return list(getattr(module, "predictions", {}).get("val", ()))
