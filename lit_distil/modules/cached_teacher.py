"""A teacher that was run before: its likeliest tokens and the mass of the others, read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_distil.modules.cache_checks import STATIC_MASKS
from lit_distil.modules.cache_files import SplitArrays, check_sum, differences, read_manifest, sum_of_rows
from lit_distil.types import Batch, EncoderOutput, TopLogits

_CHECKED_BATCHES = 8
_SETTINGS = ("teacher", "data", "k", "positions", "temperatures", "vocabulary_size", "splits")


class CachedTeacher:
    """Gives the rows of a teacher that `lit-distil cache` ran, found by sample and static mask.

    Each process maps the files and reads the rows of its own batches.

    Args:
        folder: What `lit-distil cache` wrote.
        teacher: Hashes of the teacher that is meant, see `teacher_identity`.
        data: By split, what its masked sequences depend on, see `TextDataModule.identity`.

    Raises:
        ValueError: It is no cache, a damaged one, or one of another teacher or other data.
    """

    def __init__(self, folder: str | Path, *, teacher: dict[str, Any], data: dict[str, dict[str, Any]]) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if absent := [name for name in _SETTINGS if name not in manifest]:
            raise ValueError(
                f"model.teacher_cache: the manifest of {str(folder)!r} is damaged (it has no {absent[0]}): delete the "
                "cache and write it anew"
            )
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
            arrays.check_shapes(
                self.folder / split, **manifest["splits"][split], k=self.k, num_temperatures=len(self.temperatures)
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
            ValueError: A sequence is not in the cache, was masked in another way when it was written, or its rows are
                damaged.
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

        pieces: list[tuple[Any, Any, Any]] = []
        for number, start, end in zip(numbers.tolist(), starts, ends, strict=True):
            pieces.append((arrays.ids[start:end], arrays.scores[start:end], arrays.rests[start:end]))
            if sum_of_rows(*pieces[-1]) != arrays.sums[number]:
                raise ValueError(
                    f"model.teacher_cache: the rows {start} to {end} in {str(self.folder / split)!r} (ids.npy, "
                    "scores.npy, rests.npy or sums.npy) are damaged: delete the cache and write it anew"
                )

        def read(part: int, dtype: Any) -> Tensor:
            tensor = torch.from_numpy(np.concatenate([piece[part] for piece in pieces]).astype(dtype))
            if rows.device.type == "cuda":  # page-locked, so that the copy waits for nothing
                tensor = tensor.pin_memory()
            tensor = tensor.to(rows.device, non_blocking=True)
            return tensor.index_select(0, rows) if self.has_all else tensor

        top = TopLogits(
            ids=read(0, np.int64),
            scores=read(1, np.float32),
            rests=read(2, np.float32),
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
