"""Labelled rows to data sets: the splits of a source, and a validation split where it gives none."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_distil.data.sequences import LabelledSequences, spread
from lit_distil.data.sources.base import RowSource, Split
from lit_distil.data.sources.tables import Row
from lit_distil.tasks import Task

STAND_INS: tuple[Split, ...] = ("predict", "test", "validation")
"""The split that `predict` is about: the first of these that there is."""


def open_rows(
    source: RowSource,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    splits: Iterable[Split],
    *,
    max_length: int,
    labelled: bool,
    max_eval_rows: int | None,
    validation_share: float,
    seed: int,
) -> dict[str, LabelledSequences]:
    """Read and encode splits; the task first learns its labels from the training rows, whatever the splits.

    To predict rows it needs none if it knows its labels: a trained head brings them along.

    Args:
        source: Gives the rows.
        task: Encodes them.
        tokenizer: A fast tokenizer.
        splits: Those that are wanted; where the source gives no rows to predict, `test` stands for it, and where there
            are none either, `validation`.
        max_length: Tokens in a sequence at most, special tokens included.
        labelled: Whether labels are wanted.
        max_eval_rows: Evaluate on so many rows of a split, evenly spread over it; None takes all.
        validation_share: Share of the training rows to hold out where the source has no validation split.
        seed: Which rows are held out.

    Returns:
        A data set for each split that has rows.

    Raises:
        ValueError: A row breaks the task's contract, or none can be trained on.
    """
    train: list[Row] = []
    if labelled or not task.knows_labels:
        train = list(source.rows("train"))
        task.learn_labels(train)
    rows: dict[str, list[Row]] = {}
    for split in splits:
        rows[split] = train if split == "train" else list(source.rows(split))
        for stand_in in STAND_INS[1:] if split == "predict" else ():
            if not any(rows.get(name) for name in STAND_INS):
                rows[stand_in] = list(source.rows(stand_in))
    if "validation" in rows and not rows["validation"] and validation_share:
        train = train or list(source.rows("train"))
        kept, held = hold_out(train, task, share=validation_share, seed=seed)
        rows["validation"] = [train[n] for n in held]
        if "train" in rows:
            rows["train"] = [train[n] for n in kept]
        if held:
            rank_zero_info(
                f"validation: the source gives none, so {len(held):,} of the {len(train):,} training rows are held out "
                f"(data.validation_share {validation_share:g}, seed {seed}; 0 holds out none)"
            )
    datasets: dict[str, LabelledSequences] = {}
    for name, given in rows.items():
        if not given:
            continue
        chosen = np.arange(len(given))
        if name != "train" and max_eval_rows is not None and len(given) > max_eval_rows:
            chosen = spread(max_eval_rows, len(given))
        features = task.encode(
            [given[n] for n in chosen.tolist()],
            tokenizer,
            max_length=max_length,
            labelled=labelled,
            training=name == "train",
        )
        if not features:
            raise ValueError(f"data.source: none of the {len(given):,} rows of the {name} split can be used")
        features = [dataclasses.replace(sample, row=int(chosen[sample.row])) for sample in features]
        datasets[name] = LabelledSequences(features, given, label_kind=task.label_kind)
        windows = f" as {len(features):,} windows" if len(features) > len(chosen) else ""
        num_tokens = int(datasets[name].lengths.sum())
        rank_zero_info(f"{name}: {len(chosen):,} rows{windows}, {num_tokens:,} tokens")
    return datasets


def hold_out(rows: list[Row], task: Task, *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part rows into those to train on and those to validate on, a function of rows, share and seed alone.

    Each stratum of the task (a class) gives its share, so that the whole is as large as asked for; a class keeps at
    least one row to train on. Rows of a group (questions about one context) stay together.

    Args:
        rows: The training rows.
        task: Knows strata and groups.
        share: Share to hold out, between 0 and 1.
        seed: Which rows it are.

    Returns:
        Indices of the rows to train on and of those held out, ascending both.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)  # of each group
    for index, row in enumerate(rows):
        group = task.group(row)
        members[("row", index) if group is None else ("group", group)].append(index)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for together in members.values():
        strata[task.stratum(rows[together[0]])].append(together)

    sizes = np.array([sum(map(len, groups)) for groups in strata.values()], dtype=np.int64)
    quotas = np.floor(share * sizes).astype(np.int64)
    missing = round(share * len(rows)) - int(quotas.sum())
    by_remainder = np.argsort(quotas - share * sizes, kind="stable")  # the most cut off first
    quotas[by_remainder[: max(missing, 0)]] += 1
    held: list[int] = []
    draw = np.random.default_rng([seed, len(rows)])
    for groups, size, quota in zip(strata.values(), sizes.tolist(), quotas.tolist(), strict=True):
        taken = 0
        for number in draw.permutation(len(groups)).tolist():
            if taken < quota and taken + len(groups[number]) < size:
                taken += len(groups[number])
                held += groups[number]
    if rows and not held:
        rank_zero_warn(
            f"data.validation_share: {share:g} of {len(rows):,} training rows are none, so nothing is validated; raise "
            "it, or give validation rows (source.validation)"
        )
    is_held = set(held)
    return [n for n in range(len(rows)) if n not in is_held], sorted(held)
