"""A teacher's stored predictions, read from a folder: its most likely tokens and the probability mass of all others.

A cache has a `manifest.json` and one folder per split. In a split, the rows of all sequences under mask pattern 0 come
first, then those under pattern 1, and so on: sequence i of N under pattern p is masked sequence p · N + i.
`offsets.npy` says where the rows of each masked sequence start. Everything is memory-mapped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import cached_file

from lit_distil.files import differences, hash_file, hash_of
from lit_distil.objectives.top_logits import TopLogits
from lit_distil.types import Batch, EncoderOutput

CACHE_VERSION = 2
MANIFEST = "manifest.json"
CACHE_FILES = (MANIFEST, "train/", "validation/")
STATIC_MASKS = (
    "a cache holds what the teacher says of each masked sequence, and with dynamic masks none comes twice. Give every "
    "sequence a fixed number of masks: data.masking.init_args.patterns: 4"
)
"""Why dynamic masks cannot be cached, and what to do."""
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SETTINGS = ("teacher", "data", "k", "positions", "temperatures", "scores", "vocabulary_size", "splits")
_CHECKED_BATCHES = 8


@dataclass(frozen=True, eq=False)
class SplitArrays:
    """The files of a split: R rows, of N sequences under P mask patterns each.

    Attributes:
        samples: int64 `[N]`, the sequences' sample ids, ascending.
        offsets: int64 `[P · N + 1]`; the rows of masked sequence i go from `offsets[i]` to `offsets[i + 1]`.
        checks: uint32 `[P · N]`, a checksum of each masked sequence's ids.
        sums: uint32 `[P · N]`, a checksum of each masked sequence's rows, see `sum_of_rows`.
        ids: uint16 or uint32 `[R, k]`, the most likely tokens, the most likely first.
        scores: float16 or float32 `[R, k]`, their logits minus the largest one.
        rests: float32 `[R, temperatures]`, see `TopLogits.rests`.
    """

    samples: NDArray[np.int64]
    offsets: NDArray[np.int64]
    checks: NDArray[np.uint32]
    sums: NDArray[np.uint32]
    ids: NDArray[np.unsignedinteger]
    scores: NDArray[np.floating]
    rests: NDArray[np.float32]

    @staticmethod
    def create(folder: Path, manifest: dict[str, Any], split: str) -> SplitArrays:
        """Create the files of a split in a new folder, all zero and writable."""
        folder.mkdir(parents=True)
        types = array_types(manifest, split)
        return SplitArrays(
            **{
                name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
                for name, (dtype, shape) in types.items()
            }
        )

    @staticmethod
    def open(folder: Path, manifest: dict[str, Any], split: str, *, writable: bool = False) -> SplitArrays:
        """Map the files of a split into memory; a missing or damaged file is a ValueError."""
        arrays = {}
        for name, (dtype, shape) in array_types(manifest, split).items():
            path = folder / f"{name}.npy"
            try:
                mapped = np.load(path, mmap_mode="r+" if writable else "r")
            except Exception as error:  # the header is parsed as Python, so a damaged one raises anything
                raise _damaged(path, error) from error
            if mapped.shape != shape:
                raise _damaged(path, f"its shape is {list(mapped.shape)}, and the manifest says {list(shape)}")
            if mapped.dtype != dtype:
                raise _damaged(path, f"it holds {mapped.dtype}, and the manifest says {dtype}")
            # a plain view of the map, unless it will be flushed: slicing np.memmap itself is slow
            arrays[name] = mapped if writable else np.asarray(mapped)
        offsets, num_rows = arrays["offsets"], len(arrays["ids"])
        if offsets[0] != 0 or offsets[-1] != num_rows or (np.diff(offsets) < 0).any():
            raise _damaged(folder / "offsets.npy", f"it does not lead through {num_rows} rows")
        return SplitArrays(**arrays)

    def flush(self) -> None:
        """Write all changes to disk."""
        for array in vars(self).values():
            assert isinstance(array, np.memmap)
            array.flush()


def array_types(manifest: dict[str, Any], split: str) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of each array of a split."""
    sizes, k = manifest["splits"][split], manifest["k"]
    num_masked, num_rows = sizes["sequences"] * sizes["patterns"], sizes["rows"]
    ids = np.uint16 if manifest["vocabulary_size"] <= 1 << 16 else np.uint32
    return {
        "samples": (np.dtype(np.int64), (sizes["sequences"],)),
        "offsets": (np.dtype(np.int64), (num_masked + 1,)),
        "checks": (np.dtype(np.uint32), (num_masked,)),
        "sums": (np.dtype(np.uint32), (num_masked,)),
        "ids": (np.dtype(ids), (num_rows, k)),
        "scores": (np.dtype(manifest["scores"]), (num_rows, k)),
        "rests": (np.dtype(np.float32), (num_rows, len(manifest["temperatures"]))),
    }


def _damaged(path: Path, what: object) -> ValueError:
    return ValueError(f"model.teacher_cache: {path} is damaged ({what}): delete the cache and write it again")


def check_sum(ids: NDArray[np.int64]) -> int:
    """Return the checksum of a masked sequence's ids, as the networks see them."""
    return zlib.crc32(np.ascontiguousarray(ids, dtype="<i8").tobytes())


def sum_of_rows(ids: NDArray[Any], scores: NDArray[Any], rests: NDArray[Any]) -> int:
    """Return the checksum of a sequence's stored rows, so that damage is noticed when they are read."""
    total = 0
    for part in (ids, scores, rests):
        total = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).data, total)
    return total


def unfinished_folder(folder: Path) -> Path:
    """Return the folder that a cache is written to until it is finished."""
    return folder.with_name(f"{folder.name}.partial")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished cache; a missing, unfinished or damaged one, or another version, is refused."""
    path = folder / MANIFEST
    if not path.is_file():
        part = unfinished_folder(folder)
        more = f"; {str(part)!r} is an unfinished one: run the same command again" if part.is_dir() else ""
        raise ValueError(
            f"model.teacher_cache: {str(folder)!r} holds no cache (no {MANIFEST}){more}. `lit-distil cache --config "
            f"CONFIG --out {folder}` writes it"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error
    if (version := manifest.get("version")) != CACHE_VERSION:
        raise ValueError(
            f"model.teacher_cache: {str(folder)!r} has version {version}, this is version {CACHE_VERSION}: delete it "
            "and write it again"
        )
    if missing := [name for name in _SETTINGS if name not in manifest]:
        raise _damaged(path, f"it has no {missing[0]}")
    return manifest


def teacher_identity(name: str, revision: str | None, dtype: str | None) -> dict[str, Any]:
    """Hash the files of a teacher, named by folder or Hub name, without loading it; it must have weights.

    `dtype` is the type that the teacher runs in, if that is not the type of its files.
    """

    def find(file: str) -> Path | None:
        try:
            found = cached_file(name, file, revision=revision)
        except OSError:  # no such file, folder or name, or no connection
            return None
        return None if found is None else Path(found)

    config = find("config.json")
    weights = next((path for candidate in _WEIGHTS if (path := find(candidate)) is not None), None)
    if config is None or weights is None:
        raise ValueError(
            f"model.teacher: {name!r} has no {'config.json' if config is None else 'weights'}, so its files cannot be "
            "compared with those of an earlier run; give the folder of a whole network, or its name on the Hub"
        )
    parts = [weights]
    if weights.name.endswith(".index.json"):
        shards = sorted(set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [path for shard in shards if (path := find(shard)) is not None]

    def hash_all(files: list[Path]) -> str:
        return hash_of(b"".join(bytes.fromhex(hash_file(path)) for path in files))

    return {"config": hash_all([config]), "weights": hash_all(parts), "dtype": dtype}


class CachedTeacher:
    """Returns the predictions that `lit-distil cache` stored for a teacher, looked up by sample and static mask.

    Each process maps the files and reads the rows of its own batches.

    Args:
        folder: The folder that `lit-distil cache` wrote.
        teacher: The hashes that the teacher must have, see `teacher_identity`.
        data: What the masked sequences of each split depend on, see `TextDataModule.identity`.

    Raises:
        ValueError: The folder holds no cache, a damaged one, or one for another teacher or other data.
    """

    def __init__(self, folder: str | Path, *, teacher: dict[str, Any], data: dict[str, dict[str, Any]]) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if missing := [split for split in data if split not in manifest["splits"]]:
            raise ValueError(
                f"model.teacher_cache: {str(folder)!r} holds {sorted(manifest['splits'])} and not {missing[0]}; for "
                f"{missing[0]}, leave out model.teacher_cache, which takes the teacher itself"
            )
        written_for = {"teacher": manifest["teacher"], "data": {split: manifest["data"][split] for split in data}}
        if different := differences({"teacher": teacher, "data": data}, written_for):
            first = [(one.name, *one.shown(60)) for one in different[:4]]
            changes = [f"{name} is {here} here and {there} there" for name, here, there in first]
            raise ValueError(
                f"model.teacher_cache: {str(folder)!r} was written for something else: {'; '.join(changes)}. "
                "Write another with `lit-distil cache`, or train with the settings that it was written for"
            )
        self.k: int = manifest["k"]
        self.temperatures: tuple[float, ...] = tuple(manifest["temperatures"])
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.has_all = manifest["positions"] == "all"
        """Whether it has rows for all tokens, not only for the masked ones."""
        self._splits = {split: SplitArrays.open(self.folder / split, manifest, split) for split in data}
        self._batches_to_check = dict.fromkeys(data, _CHECKED_BATCHES)

    def __call__(self, batch: Batch, split: str, rows: Tensor) -> EncoderOutput:
        """Return the teacher's output at some positions of the batch, on the batch's device.

        Args:
            batch: A masked batch with `mask_keys`.
            split: The split that the batch comes from.
            rows: int64, positions in T: masked ones, or any if the cache has rows for all tokens.

        Raises:
            ValueError: A sequence is not in the cache, was masked differently when it was written, or its rows are
                damaged.
        """
        if batch.mask_keys is None:
            raise ValueError(f"model.teacher_cache: the batch has no static masks; {STATIC_MASKS}")
        arrays = self._splits[split]
        indices = self._find(batch.mask_keys, split)
        if self._batches_to_check[split] > 0:
            self._batches_to_check[split] -= 1
            self._check_ids(indices, batch, split)
        pieces: list[tuple[Any, Any, Any]] = []
        starts, ends = arrays.offsets[indices].tolist(), arrays.offsets[indices + 1].tolist()
        for index, start, end in zip(indices.tolist(), starts, ends, strict=True):
            pieces.append((arrays.ids[start:end], arrays.scores[start:end], arrays.rests[start:end]))
            if sum_of_rows(*pieces[-1]) != arrays.sums[index]:
                raise _damaged(self.folder / split, f"rows {start} to {end} do not have their check sum")

        def read(part: int, dtype: Any) -> Tensor:
            tensor = torch.from_numpy(np.concatenate([piece[part] for piece in pieces]).astype(dtype))
            if rows.device.type == "cuda":  # page-locked, so that the copy does not block
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
        return EncoderOutput(last_hidden_state=torch.empty(0, device=rows.device), projection=top, rows=rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedTeacher:
        return self

    def _find(self, mask_keys: Sequence[tuple[int, int]], split: str) -> NDArray[np.int64]:
        """Look up the masked sequences with these sample ids and patterns."""
        arrays = self._splits[split]
        samples, patterns = np.array(mask_keys, dtype=np.int64).T
        size = len(arrays.samples)
        places = np.searchsorted(arrays.samples, samples)
        is_there = arrays.samples[np.minimum(places, size - 1)] == samples
        is_there &= patterns * size + places < len(arrays.checks)
        if not is_there.all():
            sample, pattern = int(samples[~is_there][0]), int(patterns[~is_there][0])
            raise ValueError(
                f"model.teacher_cache: {str(self.folder)!r} has no rows of sample {sample} of the {split} split under "
                f"mask {pattern}; write it again for this data"
            )
        return patterns * size + places

    def _check_ids(self, indices: NDArray[np.int64], batch: Batch, split: str) -> None:
        """Compare the batch's token ids with those that the teacher saw when the cache was written."""
        arrays, ids = self._splits[split], batch.input_ids[0].cpu().numpy()
        ends = np.cumsum(batch.lengths)
        for index, start, end in zip(indices, ends - batch.lengths, ends, strict=True):
            if check_sum(ids[start:end]) != arrays.checks[index]:
                raise ValueError(
                    f"model.teacher_cache: sample {int(arrays.samples[index % len(arrays.samples)])} of the {split} "
                    f"split was masked in another way when {str(self.folder)!r} was written; write it again"
                )
