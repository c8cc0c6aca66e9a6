"""A teacher that was run before: its likeliest tokens and the mass of the others, read from a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_distil.modules.cache_files import SplitArrays, check_sum, differences, read_manifest
from lit_distil.objectives import Objective, RowObjective
from lit_distil.types import Batch, EncoderOutput, TopLogits

_CHECKED_BATCHES = 8


class CachedTeacher:
    """Gives the rows of a teacher that `lit-distil cache` ran, found by sample and static mask.

    Each process maps the files and reads the rows of its own batches.

    Args:
        folder: What `lit-distil cache` wrote.
        teacher: Hashes of the teacher that is meant, see `teacher_identity`.
        data: By split, what its masked sequences depend on, see `TextDataModule.identity`.

    Raises:
        ValueError: It is no cache, or one of another teacher or other data.
    """

    def __init__(self, folder: str | Path, *, teacher: dict[str, Any], data: dict[str, dict[str, Any]]) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if missing := [split for split in data if split not in manifest["splits"]]:
            raise ValueError(
                f"model.teacher_cache: {str(folder)!r} holds {sorted(manifest['splits'])} and not {missing[0]}; for "
                f"{missing[0]}, leave out model.teacher_cache, which takes the teacher itself"
            )
        found = {"teacher": manifest["teacher"], "data": {split: manifest["data"][split] for split in data}}
        if different := differences({"teacher": teacher, "data": data}, found):
            raise ValueError(
                f"model.teacher_cache: {str(folder)!r} was written for something else: {'; '.join(different[:4])}. "
                "Write another with `lit-distil cache`, or train with the settings that it was written for"
            )
        self.k: int = manifest["k"]
        self.positions: str = manifest["positions"]
        self.temperatures: tuple[float, ...] = tuple(manifest["temperatures"])
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self._splits = {split: SplitArrays.open(self.folder / split) for split in data}
        self._to_check = dict.fromkeys(data, _CHECKED_BATCHES)
        for split, arrays in self._splits.items():
            rows = manifest["splits"][split]["rows"]
            if not len(arrays.ids) == len(arrays.scores) == len(arrays.rests) == arrays.offsets[-1] == rows:
                raise ValueError(
                    f"model.teacher_cache: the files of {str(self.folder / split)!r} do not fit together ({rows} rows "
                    "in its manifest): delete the cache and write it anew"
                )

    @property
    def has_all(self) -> bool:
        """Whether it has rows of all tokens, and not of the masked ones only."""
        return self.positions == "all"

    def __call__(self, batch: Batch, split: str, rows: Tensor) -> EncoderOutput:
        """What the teacher made of these positions of the batch, on the batch's device.

        Args:
            batch: Masked, with its `mask_keys`.
            split: Which the batch is of.
            rows: int64, positions in T: the masked ones, or any where the cache has all.

        Raises:
            ValueError: A sequence is not in the cache, or was masked in another way when it was written.
        """
        if batch.mask_keys is None:
            raise ValueError(f"model.teacher_cache: the batch has no static masks; {STATIC_MASKS}")
        arrays = self._splits[split]
        samples, patterns = np.array(batch.mask_keys, dtype=np.int64).T
        numbers = self._numbers(arrays, samples, patterns, split)
        if self._to_check[split] > 0:
            self._to_check[split] -= 1
            self._check(arrays, numbers, batch, split)
        starts, ends = arrays.offsets[numbers].tolist(), arrays.offsets[numbers + 1].tolist()
        expected = batch.num_tokens if self.has_all else len(rows)
        if sum(ends) - sum(starts) != expected:
            raise ValueError(
                f"model.teacher_cache: {str(self.folder)!r} has {sum(ends) - sum(starts)} rows for a batch of the "
                f"{split} split that needs {expected}: the masks are others than when it was written; write it anew"
            )

        def read(array: Any, dtype: Any) -> Tensor:
            parts = [array[start:end] for start, end in zip(starts, ends, strict=True)]
            tensor = torch.from_numpy(np.concatenate(parts).astype(dtype))
            if rows.device.type == "cuda":  # page-locked, so that the copy waits for nothing
                tensor = tensor.pin_memory()
            tensor = tensor.to(rows.device, non_blocking=True)
            return tensor.index_select(0, rows) if self.has_all else tensor

        top = TopLogits(
            ids=read(arrays.ids, np.int64),
            scores=read(arrays.scores, np.float32),
            rests=read(arrays.rests, np.float32),
            temperatures=self.temperatures,
            vocabulary_size=self.vocabulary_size,
        )
        nothing = torch.empty(0, device=rows.device)
        return EncoderOutput(last_hidden_state=nothing, projection=top, rows=rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedTeacher:
        return self

    def _numbers(self, arrays: SplitArrays, samples: Any, patterns: Any, split: str) -> Any:
        size = len(arrays.samples)
        places = np.searchsorted(arrays.samples, samples)
        is_there = arrays.samples[np.minimum(places, size - 1)] == samples
        is_there &= patterns * size + places < arrays.num_sequences
        if not is_there.all():
            sample, pattern = int(samples[~is_there][0]), int(patterns[~is_there][0])
            raise ValueError(
                f"model.teacher_cache: {str(self.folder)!r} has no rows of sample {sample} of the {split} split under "
                f"mask {pattern}; write it anew for this data"
            )
        return patterns * size + places

    def _check(self, arrays: SplitArrays, numbers: Any, batch: Batch, split: str) -> None:
        """Compare the first batches with what was seen when the cache was written, token by token."""
        ids = batch.input_ids[0].cpu().numpy()
        ends = np.cumsum(batch.lengths)
        for number, start, end in zip(numbers, ends - batch.lengths, ends, strict=True):
            if check_sum(ids[start:end]) != arrays.checks[number]:
                raise ValueError(
                    f"model.teacher_cache: sample {int(arrays.samples[number % len(arrays.samples)])} of the {split} "
                    f"split was masked in another way when {str(self.folder)!r} was written; write it anew"
                )


STATIC_MASKS = (
    "a cache holds what the teacher says of each masked sequence, and with dynamic masks none comes twice. Give every "
    "sequence a fixed number of masks: data.masking.init_args.patterns: 4"
)
"""Why dynamic masks cannot be cached, and what to do."""


def check_static_masks(data: Any) -> None:
    """Refuse data whose masks never come again.

    Args:
        data: The data module.

    Raises:
        ValueError: There is no masking, or it is dynamic.
    """
    masking = getattr(data, "masking", None)
    if masking is None:
        raise ValueError("model.teacher_cache: data.masking is not given, and a cache is keyed by masks; give one")
    if masking.patterns is None:
        raise ValueError(f"model.teacher_cache: data.masking.patterns is null: {STATIC_MASKS}")


def check_cacheable(objectives: dict[str, Objective]) -> None:
    """Refuse objectives that the likeliest tokens are not enough for.

    Raises:
        ValueError: There are some; the message names them.
    """
    others = {
        name: one
        for name, one in objectives.items()
        if one.needs_teacher and not (isinstance(one, RowObjective) and one.tail is not None)
    }
    if others:
        listed = ", ".join(f"{name} ({type(one).__name__})" for name, one in others.items())
        raise ValueError(
            f"model.teacher_cache: it has the teacher's likeliest tokens and the mass of the others, and {listed} "
            "needs more of the teacher (hidden states, attention, or every logit); leave out that objective, or the "
            "cache"
        )


def needs_of(objectives: Iterable[Objective]) -> tuple[str, tuple[float, ...], list[str]]:
    """What a cache must hold for these objectives.

    Returns:
        "masked" or "all"; the temperatures, with 1, at which evaluation compares; and the names of classes whose
        temperature changes over the steps, for which only the whole vocabulary will do.
    """
    objectives = list(objectives)
    positions = "masked" if all(one.rows in (None, "masked") for one in objectives) else "all"
    theirs = [one for one in objectives if isinstance(one, RowObjective) and one.needs_teacher]
    temperatures = {1.0, *(float(one.mixing_temperature) for one in theirs)}
    changing = [type(one).__name__ for one in theirs if "temperature" in one.in_force]
    return positions, tuple(sorted(temperatures)), changing


def check_needs(cache: CachedTeacher, objectives: Iterable[Objective]) -> None:
    """Refuse a cache that lacks positions or temperatures.

    Raises:
        ValueError: It does.
    """
    positions, temperatures, changing = needs_of(objectives)
    if positions == "all" and not cache.has_all:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} has the masked positions only, and an objective has positions "
            "all or unmasked; write it anew with --positions all, or set positions: masked"
        )
    if cache.k == cache.vocabulary_size:
        return
    if changing:
        raise ValueError(changing_temperature(changing, cache.k))
    if missing := [temperature for temperature in temperatures if temperature not in cache.temperatures]:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} knows the mass beyond the {cache.k} likeliest tokens at the "
            f"temperatures {list(cache.temperatures)}, and an objective has {missing[0]:g}; take one of these, or "
            "write it anew"
        )


def changing_temperature(names: list[str], k: int) -> str:
    """What to say of temperatures that change, with a cache of k tokens a row."""
    return (
        f"model.teacher_cache: the temperature of {', '.join(names)} changes over the steps, and the mass beyond the "
        f"{k} likeliest tokens is known at few temperatures; give a constant one, or cache the whole vocabulary"
    )
