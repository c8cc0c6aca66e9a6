"""`lit-distil cache`: run a teacher once over a distillation's data, and keep the outputs that students need."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import Namespace
from lightning.pytorch import seed_everything as seed_all
from numpy.typing import NDArray
from torch import Tensor

from lit_distil.console import progress_bar
from lit_distil.data import SequenceDataset, TextDataModule
from lit_distil.data.sources.base import Split
from lit_distil.files import check_output, only_process, place_folder, write_json
from lit_distil.messages import check_at_least
from lit_distil.models import MaskedLMNetwork
from lit_distil.models.teacher_sources import load_teacher
from lit_distil.modules import DistillationModule, FrozenTeacher
from lit_distil.modules.cached_teacher import (
    CACHE_FILES,
    CACHE_VERSION,
    MANIFEST,
    SplitArrays,
    array_types,
    check_sum,
    sum_of_rows,
    teacher_identity,
    unfinished_folder,
)
from lit_distil.modules.checks import (
    check_cacheable,
    check_headless,
    check_network,
    check_smaller,
    check_static_masks,
    needs_of,
)
from lit_distil.objectives.top_logits import TopLogits
from lit_distil.objectives.vocabulary import CHUNK_BYTES
from lit_distil.pieces import call_command
from lit_distil.trust import import_modules
from lit_distil.types import Batch, EncoderOutput, Projection

_PROGRESS = "progress.json"
_SECONDS_BETWEEN_SAVES = 20.0
_TIMED_BATCHES = 4


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """What to cache of a split.

    Attributes:
        dataset: Its N sequences.
        patterns: Masks per sequence.
        samples: int64 `[N]`, the sequences' sample ids.
        counts: int64 `[patterns · N]`, the number of rows of each masked sequence.
        checks: uint32 `[patterns · N]`, the checksums of their ids.
    """

    dataset: SequenceDataset
    patterns: int
    samples: NDArray[np.int64]
    counts: NDArray[np.int64]
    checks: NDArray[np.uint32]


def masked_batches(
    dataset: SequenceDataset, patterns: int, batch_size: int, first: int = 0
) -> Iterator[tuple[int, int, Batch]]:
    """Yield (first, end, batch) over the masked sequences from number `first` on, in the order of the cache's files."""
    size = len(dataset)
    while first < patterns * size:
        pattern, start = divmod(first, size)
        local = np.arange(start, min(start + batch_size, size), dtype=np.int64)
        yield first, first + len(local), dataset.collate(local, np.full_like(local, pattern))
        first += len(local)


def plan_split(dataset: SequenceDataset, patterns: int, *, positions: str, name: str, batch_size: int) -> SplitPlan:
    """Mask a split once to count the rows of each sequence and compute the checksums of its ids."""
    samples, counts, checks = [], [], []
    with progress_bar(total=patterns * len(dataset), desc=f"masking the {name} split", unit=" sequences") as bar:
        for first, _, batch in masked_batches(dataset, patterns, batch_size):
            assert batch.masked_positions is not None
            ids, bounds = batch.input_ids[0].numpy(), batch.cu_seq_lens.numpy()
            checks += [check_sum(ids[start:end]) for start, end in pairwise(bounds)]
            row_bounds = bounds if positions == "all" else np.searchsorted(batch.masked_positions.numpy(), bounds)
            counts.append(np.diff(row_bounds))
            if first < len(dataset):
                samples.append(batch.sample_ids.numpy())
            bar.update(batch.num_sequences)
    return SplitPlan(
        dataset,
        patterns,
        np.concatenate(samples),
        np.concatenate(counts).astype(np.int64),
        np.array(checks, dtype=np.uint32),
    )


class CacheWriter:
    """Runs a teacher over masked sequences and writes its top logits."""

    def __init__(
        self,
        teacher: FrozenTeacher,
        manifest: dict[str, Any],
        plans: dict[Split, SplitPlan],
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.teacher, self.manifest, self.plans = teacher, manifest, plans
        self.batch_size, self.device = batch_size, device
        self.k: int = manifest["k"]
        self.temperatures: tuple[float, ...] = tuple(manifest["temperatures"])
        arrays = [array for split in plans for array in array_types(manifest, split).values()]
        self.num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in arrays)
        """The size of all files on disk."""

    def trial(self) -> tuple[float, list[float]]:
        """Time a few batches after a warm-up batch.

        Returns:
            The seconds that all batches will take, and the share of the distribution that is kept at each temperature.
        """
        plan = next(iter(self.plans.values()))
        done, elapsed, kept = 0, 0.0, []
        batches = masked_batches(plan.dataset, plan.patterns, self.batch_size)
        for number, (first, end, batch) in zip(range(_TIMED_BATCHES + 1), batches, strict=False):
            begin = perf_counter()
            _, scores, rests = self._rows(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            kept.append(kept_shares(scores, rests, self.temperatures))
            if number > 0 or len(plan.counts) <= self.batch_size:
                done, elapsed = done + end - first, elapsed + perf_counter() - begin
        seconds = elapsed / done * sum(len(one.counts) for one in self.plans.values())
        return seconds, np.concatenate(kept).mean(axis=0).tolist()

    def check_room(self, out: Path) -> None:
        """Check that the disk has room, counting an unfinished cache of an earlier start as free.

        Raises:
            ValueError: There is too little.
        """
        parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        written = sum(path.stat().st_blocks * 512 for path in unfinished_folder(out).rglob("*.npy"))
        room = shutil.disk_usage(parent).free + written
        if self.num_bytes > room:
            raise ValueError(
                f"out: {str(out)!r} needs {self.num_bytes / 1e9:,.2f} GB and the disk has {room / 1e9:,.2f} GB free; "
                "take a smaller --k, fewer data.masking patterns, --positions masked, or another disk"
            )

    def write(self, out: Path, *, overwrite: bool = False) -> None:
        """Write to a folder beside `out` and rename it at the end; continue an interrupted earlier start.

        Args:
            out: Where the cache goes.
            overwrite: Replace an existing cache, and discard an unfinished one that had other settings.

        Raises:
            ValueError: The unfinished cache had other settings.
        """
        work = unfinished_folder(out)
        done = self._earlier_progress(work, overwrite=overwrite)
        if done is None:
            shutil.rmtree(work, ignore_errors=True)
            done = dict.fromkeys(map(str, self.plans), 0)
            for split, plan in self.plans.items():
                arrays = SplitArrays.create(work / split, self.manifest, split)
                arrays.samples[:], arrays.checks[:] = plan.samples, plan.checks
                arrays.offsets[1:] = np.cumsum(plan.counts)
                arrays.flush()
            write_json(work / _PROGRESS, {"manifest": self.manifest, "done": done})
        total = sum(len(plan.counts) for plan in self.plans.values())
        with progress_bar(total=total, initial=sum(done.values()), desc="asking the teacher", unit=" sequences") as bar:
            for split, plan in self.plans.items():
                self._write_split(work, split, plan, done, bar)
        write_json(work / MANIFEST, self.manifest)
        (work / _PROGRESS).unlink()
        place_folder(work, out, CACHE_FILES if overwrite else None)

    def _write_split(self, work: Path, split: str, plan: SplitPlan, done: dict[str, int], bar: Any) -> None:
        arrays = SplitArrays.open(work / split, self.manifest, split, writable=True)
        saved = perf_counter()
        for first, end, batch in masked_batches(plan.dataset, plan.patterns, self.batch_size, done[split]):
            rows = slice(int(arrays.offsets[first]), int(arrays.offsets[end]))
            arrays.ids[rows], arrays.scores[rows], arrays.rests[rows] = self._rows(batch)
            for number in range(first, end):
                own = slice(int(arrays.offsets[number]), int(arrays.offsets[number + 1]))
                arrays.sums[number] = sum_of_rows(arrays.ids[own], arrays.scores[own], arrays.rests[own])
            done[split] = end
            bar.update(end - first)
            if perf_counter() - saved > _SECONDS_BETWEEN_SAVES or end == len(plan.counts):
                arrays.flush()  # before the progress file records it as done
                write_json(work / _PROGRESS, {"manifest": self.manifest, "done": done})
                saved = perf_counter()

    def _earlier_progress(self, work: Path, *, overwrite: bool) -> dict[str, int] | None:
        """Number of sequences of each split that an earlier start finished; None if there was none."""
        if not (work / _PROGRESS).is_file():
            return None
        try:
            earlier = json.loads((work / _PROGRESS).read_text(encoding="utf-8"))
        except ValueError:  # damaged: start again
            return None
        if earlier["manifest"] != self.manifest:
            if overwrite:
                return None
            raise ValueError(
                f"out: {str(work)!r} is an unfinished cache of other settings; name another folder, or replace it with "
                "--overwrite (in Python: overwrite=True)"
            )
        return earlier["done"]

    @torch.no_grad()
    def _rows(self, batch: Batch) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Ids and scores of the kept tokens, and the mass of the others, for a batch's rows, sequence by sequence."""
        batch = batch.to(self.device)
        rows = "all" if self.manifest["positions"] == "all" else batch.masked_positions
        output = self.teacher(batch, rows=rows, project=False).over(self.manifest["vocabulary_size"])
        parts = [TopLogits.of(logits, self.k, self.temperatures) for logits in _pieces_of_logits(output)]
        ids, scores, rests = (
            np.concatenate([getattr(part, name).cpu().numpy() for part in parts]) for name in ("ids", "scores", "rests")
        )
        return ids, scores, rests


def _pieces_of_logits(output: EncoderOutput) -> Iterator[Tensor]:
    """Logits in float32, a few rows at a time; yields at least one piece, even without rows."""
    head = output.projection
    assert head is None or isinstance(head, Projection)
    inputs = output.logits if head is None else head.features[: head.num_rows]
    assert inputs is not None
    width = inputs.shape[-1] if head is None else len(head.weight)
    step = max(1, CHUNK_BYTES // (4 * width))
    for start in range(0, max(len(inputs), 1), step):
        piece = inputs[start : start + step]
        yield (piece if head is None else dataclasses.replace(head, features=piece, num_rows=None).logits()).float()


def kept_shares(scores: NDArray[Any], rests: NDArray[Any], temperatures: Sequence[float]) -> NDArray[np.float64]:
    """`[rows, temperatures]`: the share of the teacher's distribution that the kept tokens cover."""
    kept = np.stack([np.exp(scores.astype(np.float64) / each).sum(axis=-1) for each in temperatures], axis=-1)
    return kept / (kept + np.exp(rests.astype(np.float64)))


def cache(
    model: DistillationModule,
    data: TextDataModule,
    out: str,
    k: int = 64,
    positions: Literal["masked", "all"] | None = None,
    scores: Literal["float16", "float32"] = "float16",
    batch_size: int = 32,
    device: str | None = None,
    estimate: bool = False,
    teacher: str | None = None,
    seed_everything: bool | int = 42,
    matmul_precision: str = "medium",
    overwrite: bool = False,
) -> None:
    """Run a distillation's teacher once over the data, and keep its most likely tokens and the mass of the others.

    Give the configuration of the distillation itself (--config). Then train with --model.teacher_cache FOLDER, which
    runs no teacher. Masks must be static (data.masking.init_args.patterns). The objectives must be SoftTargetLoss,
    ReverseKLLoss, JensenShannonLoss, TeacherLabelLoss, or need no teacher. With several teachers, each either has a
    cache of its own (--teacher NAME) or runs. The folder holds the train split under every mask and the validation
    split under its only one.

    A row takes 4 k bytes (6 k for a vocabulary above 65,536; 2 k more in float32) plus 4 for each temperature: 264
    bytes with k = 64. There is a row for each masked token, or with positions "all" for every token: a million
    sequences of 128 tokens under 4 masks at a rate of 0.15 are 77 million rows, 20 GB. Before anything is written, the
    command prints the size, the time, and the share of the teacher's distribution that the k tokens cover. Of the other
    tokens, a student only learns the total probability. After an interruption, run the same command to continue.

    Args:
        model: The distillation; its teacher runs, and its objectives determine the temperatures and positions.
        data: The data of the distillation.
        out: Folder to write to.
        k: Tokens kept in a row; the tokenizer's size keeps all, exactly if scores are float32. Logits beyond the
            tokenizer's entries, which come from a padded embedding, are left out.
        positions: "masked" keeps rows of the masked tokens, "all" of every token; None takes what the objectives need.
        scores: Type of the kept logits, stored as differences from the largest; float16 changes them by at most 0.05 %.
        batch_size: Sequences that the teacher sees at a time.
        device: Where the teacher runs, such as cpu or cuda; None takes a GPU if there is one.
        estimate: Print size and time, and write nothing.
        teacher: Name of the teacher to run, if model.teacher has several. Then train with
            --model.teacher_cache '{NAME: FOLDER}'; teachers without a cache run.
        seed_everything: As for fit; it determines the masks.
        matmul_precision: As for fit.
        overwrite: Replace a cache in the folder, and nothing else.
    """
    check_output(Path(out), overwrite=overwrite, replaces=CACHE_FILES)
    check_at_least(1, {"batch_size": batch_size})
    check_static_masks(data)
    role = _choose_teacher(teacher, list(model.teacher_sources))
    check_cacheable(model.terms, [role])
    needed_positions, temperatures = needs_of(model.terms, role)
    if positions == "masked" and needed_positions == "all":
        raise ValueError("positions: an objective has positions all or unmasked; take --positions all")
    torch.set_float32_matmul_precision(matmul_precision)

    name = str(model.teacher_sources[role])
    data.check_before_work("fit")
    model.check_before_work(data)
    network = _load_teacher(model, data, role)
    # without the padding rows of the teacher's embedding, so that the cache serves students with any padding
    vocabulary_size = min(network.num_logits, data.vocabulary.size)
    if not 1 <= k <= vocabulary_size:
        raise ValueError(f"k must lie between 1 and the {vocabulary_size} entries of the vocabulary, got {k}")
    if k < vocabulary_size:
        check_smaller(model.terms, role, k, vocabulary_size)

    plans = _plan(data, network, positions or needed_positions, batch_size)
    manifest = {
        "version": CACHE_VERSION,
        "teacher": teacher_identity(name, model.teacher_revision, model.teacher_dtype),
        "data": {split: data.identity(split) for split in plans},
        "k": k,
        "positions": positions or needed_positions,
        "temperatures": list(temperatures),
        "scores": scores,
        "vocabulary_size": vocabulary_size,
        "splits": {
            split: {"sequences": len(plan.samples), "patterns": plan.patterns, "rows": int(plan.counts.sum())}
            for split, plan in plans.items()
        },
    }
    run_on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    writer = CacheWriter(FrozenTeacher(network), manifest, plans, batch_size=batch_size, device=run_on)
    print(_summary(writer), flush=True)
    writer.check_room(Path(out))
    if estimate:
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with only_process(Path(out), f"out: another process is writing {out}; wait for it, or give another folder"):
        writer.write(Path(out), overwrite=overwrite)
    given = out if len(model.teacher_sources) == 1 else f"'{{{role}: {out}}}'"
    print(f"written: {out}; train with --model.teacher_cache {given}")


def _choose_teacher(requested: str | None, names: list[str]) -> str:
    if requested is None and len(names) > 1:
        raise ValueError(f"teacher: a cache holds one teacher, and there are {names}; say which: --teacher {names[0]}")
    if requested is not None and requested not in names:
        raise ValueError(f"teacher: {requested!r} is not in model.teacher, which has {names}")
    return requested or names[0]


def _load_teacher(model: DistillationModule, data: TextDataModule, role: str) -> MaskedLMNetwork:
    name = model.teacher_sources[role]
    shared = model.shared_entries.get(role)
    loaded, has_head = load_teacher(name, model.teacher_revision, data.vocabulary, model.head, shared=shared)
    if not has_head:
        check_headless(model.terms, role, name)
        raise ValueError(f"model.teacher: {name!r} has no trained masked-LM head, so there is nothing to cache")
    if model.teacher_dtype is not None:
        loaded = loaded.to(getattr(torch, model.teacher_dtype))
    return MaskedLMNetwork(loaded)


def _plan(data: TextDataModule, network: MaskedLMNetwork, positions: str, batch_size: int) -> dict[Split, SplitPlan]:
    """Open the data, check the network against it, and mask it once."""
    data.prepare_data()
    data.setup("fit")
    assert data.masking is not None and data.masking.patterns is not None
    check_network("teacher", network, data)
    patterns: dict[Split, int] = {"train": data.masking.patterns, "validation": 1}  # evaluation uses epoch 0's masks
    return {
        split: plan_split(data.datasets[split], number, positions=positions, name=split, batch_size=batch_size)
        for split, number in patterns.items()
        if split in data.datasets
    }


def _summary(writer: CacheWriter) -> str:
    """What the cache will hold, its size, and the time it will take."""
    seconds, kept = writer.trial()
    time = f"{seconds:,.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    settings = writer.manifest
    arrays = array_types(settings, "train").values()
    row_bytes = sum(dtype.itemsize * shape[1] for dtype, shape in arrays if len(shape) == 2)
    shares = [f"{share:.1%} of the mass at T = {each:g}" for share, each in zip(kept, writer.temperatures, strict=True)]
    lines = [
        f"{split:<11}{sizes['sequences']:>13,} sequences × {sizes['patterns']} masks = {sizes['rows']:,} rows"
        for split, sizes in settings["splits"].items()
    ]
    lines += [
        f"a row      {writer.k} of {settings['vocabulary_size']:,} tokens, temperatures "
        f"{settings['temperatures']}: {row_bytes:,} bytes",
        f"kept       {', '.join(shares)}",
        f"on disk    {writer.num_bytes / 1e6:,.1f} MB",
        f"time       about {time} on {writer.device}",
    ]
    return "\n".join(lines)


def _begin(settings: Namespace) -> None:
    """Import modules and seed as `fit` does, before the data module is built."""
    import_modules(settings.imports or [])
    if settings.seed_everything is not False:
        seed_all(None if settings.seed_everything is True else settings.seed_everything, verbose=False)


run = functools.partial(
    call_command,
    cache,
    config_help="Configuration of a distillation, as fit takes it.",
    unused=("trainer", "ckpt_path", "weights_only", "imports", "allow_changes"),
    before=_begin,
)
