"""The splits of a row source: read, divided if there is no validation split, and encoded."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_distil.data.sequences import LabelledSequences, spread
from lit_distil.data.sources.base import RowSource, Split
from lit_distil.files import short_hash
from lit_distil.tasks.base import Row, Task, place_of

STAND_INS: tuple[Split, ...] = ("predict", "test", "validation")
"""`predict` uses the first of these splits that exists."""


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
    """Read and encode splits, after the task has learnt its labels from the training rows; empty splits are left out.

    The settings are those of `TextDataModule`; `labelled` says whether labels are needed. If they are not, and the task
    knows them already (from a trained head), the training rows are not read. If there are no rows to predict, `test` is
    opened instead, or else `validation`.

    Raises:
        ValueError: A row breaks the task's contract, or no row of a split can be used.
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
                f"the source has no validation split; holding out {len(held):,} of {len(train):,} training rows "
                f"(data.validation_share {validation_share:g}, seed {seed}; 0 holds out none)"
            )
    datasets: dict[str, LabelledSequences] = {}
    for name, given in rows.items():
        if not given:
            continue
        size = len(given) if name == "train" or max_eval_rows is None else min(len(given), max_eval_rows)
        chosen = spread(size, len(given)).tolist()
        features = task.encode(
            [given[n] for n in chosen], tokenizer, max_length=max_length, labelled=labelled, training=name == "train"
        )
        if not features:
            raise ValueError(f"data.source: none of the {len(given):,} rows of the {name} split can be used")
        features = [dataclasses.replace(sample, row=chosen[sample.row]) for sample in features]
        datasets[name] = LabelledSequences(features, given, label_kind=task.label_kind)
        windows = f" as {len(features):,} windows" if len(features) > len(chosen) else ""
        rank_zero_info(f"{name}: {len(chosen):,} rows{windows}, {int(datasets[name].lengths.sum()):,} tokens")
    if "train" in datasets:
        for name in ("validation", "test"):
            if name in datasets:
                _warn_of_shared_rows(datasets["train"], datasets[name], name)
    return datasets


def _warn_of_shared_rows(train: LabelledSequences, other: LabelledSequences, split: str) -> None:
    """Warn about rows that are both evaluated and trained on; only their tokens are compared."""
    rows: dict[bytes, set[int]] = defaultdict(set)
    for sample in other.features:
        rows[short_hash(sample.input_ids.tobytes(), 16)].add(sample.row)
    seen = {short_hash(sample.input_ids.tobytes(), 16) for sample in train.features} & rows.keys()
    if seen:
        shared, first = set().union(*(rows[key] for key in seen)), min(min(rows[key]) for key in seen)
        rank_zero_warn(
            f"data.source: {len(shared):,} of {len({sample.row for sample in other.features}):,} rows of the {split} "
            f"split are training rows too, the first at {place_of(other.rows[first])}; scores on them say little"
        )


def hold_out(rows: list[Row], task: Task, *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide rows into those to train on and those to validate on, as a function of rows, share and seed alone.

    Each stratum of the task (a class) gives its share, so that the total is as large as requested, and keeps at least
    one row to train on. Rows of a group (questions about one context) stay together.

    Returns:
        Indices of the rows to train on and of those held out, each ascending.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)  # by group
    for index, row in enumerate(rows):
        group = task.group(row)
        members[("row", index) if group is None else ("group", group)].append(index)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for together in members.values():
        strata[task.stratum(rows[together[0]])].append(together)

    sizes = np.array([sum(map(len, groups)) for groups in strata.values()], dtype=np.int64)
    quotas = np.floor(share * sizes).astype(np.int64)
    missing = round(share * len(rows)) - int(quotas.sum())
    by_remainder = np.argsort(quotas - share * sizes, kind="stable")  # the largest remainder first
    quotas[by_remainder[: max(missing, 0)]] += 1
    held: list[int] = []
    rng = np.random.default_rng([seed, len(rows)])
    for groups, size, quota in zip(strata.values(), sizes.tolist(), quotas.tolist(), strict=True):
        taken = 0
        for number in rng.permutation(len(groups)).tolist():
            if taken < quota and taken + len(groups[number]) < size:
                taken += len(groups[number])
                held += groups[number]
    if rows and not held:
        rank_zero_warn(
            f"data.validation_share: {share:g} of {len(rows):,} training rows is less than one row, so nothing is "
            "validated; raise it, or give validation rows (source.validation)"
        )
    is_held = set(held)
    return [n for n in range(len(rows)) if n not in is_held], sorted(held)
