"""How much a task's metrics depend on which rows they are of: each metric without one group of rows after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from lit_distil.files import write_json
from lit_distil.messages import check_at_least
from lit_distil.tasks import Prediction, Task
from lit_distil.tasks.base import Row

NUM_GROUPS = 20
JACKKNIFE = "jackknife.json"


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
        predictions = getattr(pl_module, "predictions", {}).get("val")
        if trainer.sanity_checking or not trainer.is_global_zero or not predictions:
            return
        rows = pl_module.data.datasets["validation"].rows
        found = scores_without_groups(pl_module.task, predictions, rows, num_groups=self.num_groups)
        values = {f"val/{name}": [round(value, 6) for value in each] for name, each in found.items()}
        write_json(Path(trainer.default_root_dir, JACKKNIFE), values)
