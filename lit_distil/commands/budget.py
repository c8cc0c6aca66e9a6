"""`lit-distil budget`: how many steps one run can do in the time that another took.

A control that is to train for as long as a distilled student needs more steps than it, because it runs no teacher.
"""

from __future__ import annotations

from statistics import median

from jsonargparse import auto_cli

from lit_distil.commands.runs import read_metric

_SPEED = "train/tokens_per_second"


def steps_in_equal_time(reference: str, run: str, steps: int | None = None) -> int:
    """Optimizer steps that `run` can do in the time that `reference` took, both with the same tokens in a step.

    Args:
        reference: Folder of the run that sets the time.
        run: Folder of a run of the kind that is to be as long; a short one is enough.
        steps: Steps of the reference; None takes those in its `metrics.csv`.

    Raises:
        ValueError: A run has no `metrics.csv`, or too few throughputs in it.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if steps is None:
        steps = max((step for step, _ in read_metric(reference, _SPEED)), default=0)
    ratio = _tokens_per_second(run) / _tokens_per_second(reference)
    return max(1, round(steps * ratio))


def budget(reference: str, run: str, steps: int | None = None) -> None:
    """Print how many optimizer steps one run can do in the time that another took, and nothing else.

    The two must have as many tokens in a step. The speed of a run is the median of its logged throughputs, without the
    first, which holds the warm-up.

    Args:
        reference: Folder of the run that sets the time.
        run: Folder of a run of the kind that is to be as long; a short one is enough.
        steps: Steps of the reference; None takes those in its metrics.csv.
    """
    print(steps_in_equal_time(reference, run, steps))


def run(arguments: list[str]) -> None:
    """Parse the arguments and print the number."""
    auto_cli(budget, args=arguments, prog="lit-distil budget", as_positional=False)


def _tokens_per_second(folder: str) -> float:
    speeds = [speed for _, speed in read_metric(folder, _SPEED)][1:]
    if not speeds:
        raise ValueError(
            f"{folder}: metrics.csv holds fewer than two values of {_SPEED}, and the first is the warm-up; train for "
            "at least two intervals of trainer.log_every_n_steps"
        )
    return median(speeds)
