"""`lit-distil cache`: run a teacher once over the data of a distillation, and keep what its students will ask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything as seed_all
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from lit_distil.console import progress_bar
from lit_distil.data import SequenceDataset, TextDataModule
from lit_distil.files import place_folder, write_json
from lit_distil.models import MaskedLMNetwork
from lit_distil.modules import DistillationModule, FrozenTeacher
from lit_distil.modules.cached_teacher import (
    CACHE_VERSION,
    MANIFEST,
    SplitArrays,
    bytes_per_row,
    check_sum,
    sum_of_rows,
    teacher_identity,
)
from lit_distil.modules.checks import (
    check_cacheable,
    check_length,
    check_padding_id,
    check_smaller,
    check_static_masks,
    needs_of,
)
from lit_distil.modules.teachers import load_teacher
from lit_distil.objectives.vocabulary import CHUNK_BYTES
from lit_distil.types import Batch, Projection, TopLogits

_PROGRESS = "progress.json"
_SECONDS_BETWEEN_SAVES = 20.0
_TIMED_BATCHES = 4


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """What there is to do for a split.

    Attributes:
        dataset: Its sequences.
        patterns: Masks of each.
        samples: int64 `[N]`, their sample ids.
        counts: int64 `[patterns · N]`, rows of each masked sequence.
        checks: uint32 `[patterns · N]`, check sums of their ids.
    """

    dataset: SequenceDataset
    patterns: int
    samples: NDArray[np.int64]
    counts: NDArray[np.int64]
    checks: NDArray[np.uint32]

    @property
    def num_rows(self) -> int:
        """R, the rows of all its sequences under all their masks."""
        return int(self.counts.sum())

    def batches(self, size: int, first: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """Masked sequences in the order of the files from number `first` on, with the numbers that each batch has."""
        num_samples = len(self.samples)
        while first < len(self.counts):
            pattern, start = divmod(first, num_samples)
            end = min(start + size, num_samples)
            yield first, first + end - start, masked_batch(self.dataset, start, end, pattern)
            first += end - start


def masked_batch(dataset: SequenceDataset, start: int, end: int, pattern: int) -> Batch:
    """Sequences of a data set under one of their masks."""
    local = np.arange(start, end, dtype=np.int64)
    return dataset.collate(local, np.full_like(local, pattern))


def plan_split(dataset: SequenceDataset, patterns: int, *, positions: str, name: str, batch_size: int) -> SplitPlan:
    """Go through the masks of a split once: how many rows each sequence has, and what its ids add up to."""
    samples, counts, checks = [], [], []
    total = patterns * len(dataset)
    with progress_bar(total=total, desc=f"masking the {name} split", unit=" sequences") as bar:
        for pattern in range(patterns):
            for start in range(0, len(dataset), batch_size):
                batch = masked_batch(dataset, start, min(start + batch_size, len(dataset)), pattern)
                assert batch.masked_positions is not None
                ids, bounds = batch.input_ids[0].numpy(), batch.cu_seq_lens.numpy()
                checks += [check_sum(ids[a:b]) for a, b in pairwise(bounds)]
                if positions == "all":
                    counts.append(np.diff(bounds))
                else:
                    counts.append(np.diff(np.searchsorted(batch.masked_positions.numpy(), bounds)))
                if pattern == 0:
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
    """Runs a teacher over masked sequences and keeps what it says.

    Args:
        teacher: Who is asked.
        manifest: Everything that the cache depends on, and its settings.
        plans: By split.
        batch_size: Masked sequences at a time.
        device: Where the teacher runs.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        manifest: dict[str, Any],
        plans: dict[str, SplitPlan],
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.teacher, self.manifest, self.plans = teacher, manifest, plans
        self.batch_size, self.device = batch_size, device

    @property
    def row_bytes(self) -> int:
        """What a row takes on the disk."""
        settings = self.manifest
        return bytes_per_row(
            settings["k"], settings["vocabulary_size"], settings["scores"], len(settings["temperatures"])
        )

    @property
    def num_bytes(self) -> int:
        """What all the files take on the disk."""
        sequences = sum(16 * len(plan.counts) + 8 * len(plan.samples) for plan in self.plans.values())
        return sequences + self.row_bytes * sum(plan.num_rows for plan in self.plans.values())

    def trial(self) -> tuple[float, list[float]]:
        """The first batches: by them, the seconds that all will take, and the share that is kept at each temperature.

        The very first warms up, and its time does not count.
        """
        plan = next(iter(self.plans.values()))
        done, elapsed, kept = 0, 0.0, []
        for number, (first, end, batch) in enumerate(plan.batches(self.batch_size)):
            begin = perf_counter()
            _, scores, rests = self._rows(batch)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            kept.append(kept_shares(scores, rests, self.manifest["temperatures"]))
            if number > 0 or len(plan.counts) <= self.batch_size:
                done, elapsed = done + end - first, elapsed + perf_counter() - begin
            if number == _TIMED_BATCHES:
                break
        seconds = elapsed / done * sum(len(one.counts) for one in self.plans.values())
        return seconds, np.concatenate(kept).mean(axis=0).tolist()

    def check_room(self, out: Path) -> None:
        """Refuse to begin what the disk has no room for; what an earlier start has written counts as room.

        Raises:
            ValueError: There is too little.
        """
        parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        work = workplace(out)
        written = sum(path.stat().st_blocks * 512 for path in work.rglob("*.npy")) if work.is_dir() else 0
        room = shutil.disk_usage(parent).free + written
        if self.num_bytes > room:
            raise ValueError(
                f"out: {str(out)!r} needs {self.num_bytes / 1e9:,.2f} GB and the disk has {room / 1e9:,.2f} GB free; "
                "take a smaller --k, fewer data.masking patterns, --positions masked, or another disk"
            )

    def write(self, out: Path) -> None:
        """Write the folder beside its place and rename it; an earlier start that was stopped is gone on with.

        Raises:
            ValueError: The earlier start was with other settings.
        """
        work = workplace(out)
        done = self._earlier(work)
        if done is None:
            shutil.rmtree(work, ignore_errors=True)
            done = dict.fromkeys(self.plans, 0)
            for split, plan in self.plans.items():
                SplitArrays.create(
                    work / split,
                    plan.samples,
                    plan.counts,
                    plan.checks,
                    k=self.manifest["k"],
                    vocabulary_size=self.manifest["vocabulary_size"],
                    scores=self.manifest["scores"],
                    num_temperatures=len(self.manifest["temperatures"]),
                )
            write_json(work / _PROGRESS, {"manifest": self.manifest, "done": done})
        total = sum(len(plan.counts) for plan in self.plans.values())
        with progress_bar(total=total, initial=sum(done.values()), desc="asking the teacher", unit=" sequences") as bar:
            for split, plan in self.plans.items():
                self._write_split(work, split, plan, done, bar)
        write_json(work / MANIFEST, self.manifest)
        (work / _PROGRESS).unlink()
        place_folder(work, out)

    def _write_split(self, work: Path, split: str, plan: SplitPlan, done: dict[str, int], bar: Any) -> None:
        arrays = SplitArrays.open(work / split, writable=True)
        saved = perf_counter()
        for first, end, batch in plan.batches(self.batch_size, done[split]):
            rows = slice(int(arrays.offsets[first]), int(arrays.offsets[end]))
            ids, scores, rests = self._rows(batch)
            arrays.ids[rows], arrays.scores[rows], arrays.rests[rows] = ids, scores, rests
            for number in range(first, end):
                own = slice(int(arrays.offsets[number]), int(arrays.offsets[number + 1]))
                arrays.sums[number] = sum_of_rows(arrays.ids[own], arrays.scores[own], arrays.rests[own])
            done[split] = end
            bar.update(end - first)
            if perf_counter() - saved > _SECONDS_BETWEEN_SAVES or end == len(plan.counts):
                arrays.flush()  # before it is said to be done
                write_json(work / _PROGRESS, {"manifest": self.manifest, "done": done})
                saved = perf_counter()

    def _earlier(self, work: Path) -> dict[str, int] | None:
        """How far an earlier start came; None if there is none, or it did not come to its first row."""
        if not (work / _PROGRESS).is_file():
            return None
        try:
            earlier = json.loads((work / _PROGRESS).read_text(encoding="utf-8"))
        except ValueError:  # damaged: how far it came is not known, and all is asked again
            return None
        if earlier["manifest"] != self.manifest:
            raise ValueError(
                f"out: {str(work)!r} is an unfinished cache of other settings; delete it, or name another folder"
            )
        return earlier["done"]

    @torch.no_grad()
    def _rows(self, batch: Batch) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The rows of a batch, sequence by sequence: ids, scores and the masses of the others."""
        batch = batch.to(self.device)
        rows = "all" if self.manifest["positions"] == "all" else batch.masked_positions
        output = self.teacher(batch, rows=rows, project=False)
        k, temperatures = self.manifest["k"], tuple(self.manifest["temperatures"])
        parts = [TopLogits.of(logits, k, temperatures) for logits in _pieces(output.projection or output.logits)]
        return (
            np.concatenate([part.ids.cpu().numpy() for part in parts]),
            np.concatenate([part.scores.cpu().numpy() for part in parts]),
            np.concatenate([part.rests.cpu().numpy() for part in parts]),
        )


def kept_shares(scores: NDArray[Any], rests: NDArray[Any], temperatures: list[float]) -> NDArray[np.float64]:
    """`[rows, temperatures]`: which share of the teacher's distribution lies in the tokens kept."""
    kept = np.stack([np.exp(scores.astype(np.float64) / each).sum(axis=-1) for each in temperatures], axis=-1)
    return kept / (kept + np.exp(rests.astype(np.float64)))


def workplace(out: Path) -> Path:
    """Where a cache stands until it is finished."""
    return out.with_name(f"{out.name}.partial")


def _pieces(given: Any) -> Iterator[torch.Tensor]:
    """Logits in float32, a few rows at a time; one piece without rows where there are none."""
    features = given.features if isinstance(given, Projection) else given
    width = len(given.weight) if isinstance(given, Projection) else given.shape[-1]
    step = max(1, CHUNK_BYTES // (4 * width))
    for start in range(0, max(len(features), 1), step):
        few = features[start : start + step]
        if isinstance(given, Projection):
            few = Projection(few, given.weight, given.bias).logits()
        yield few.float()


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
    trainer: dict[str, Any] | None = None,
    matmul_precision: str = "medium",
    ckpt_path: str | None = None,
) -> None:
    """Run the teacher of a distillation once over its data, and keep its likeliest tokens and the mass of the others.

    Give the configuration of the distillation itself (--config); afterwards, train with --model.teacher_cache FOLDER
    and no teacher runs. Masks must be static (data.masking.init_args.patterns), and the objectives SoftTargetLoss,
    ReverseKLLoss, JensenShannonLoss, TeacherLabelLoss, or such as need no teacher. Of several teachers each has a cache
    of its own (--teacher NAME) or is run. The folder holds the train split under every mask
    and the validation split under its one.

    A row takes 4 k bytes, and 4 for each temperature (6 k for a vocabulary above 65,536; 2 k more in float32): 264
    bytes with k = 64. There is a row for each masked token, or with positions "all" for every token: a million
    sequences of 128 tokens under 4 masks at a rate of 0.15 are 77 million rows, 20 GB. Size and time are printed before
    anything is written, and which share of the teacher's distribution the k tokens hold: of the others a student
    learns how likely they are together, and not which of them. What was stopped goes on when the same command is given
    again.

    Args:
        model: The distillation; its teacher is run, and its objectives say at which temperatures and positions.
        data: Its data.
        out: Folder to write to; must not exist yet.
        k: Tokens kept in a row; the size of the vocabulary keeps all, for float32 scores exactly.
        positions: "masked" keeps rows of the masked tokens, "all" of every token; None takes what the objectives need.
        scores: Of the kept logits, as differences to the largest; float16 changes them by 0.05 % at most.
        batch_size: Sequences that the teacher sees at a time.
        device: Where it runs, such as cpu or cuda; None takes a GPU where there is one.
        estimate: Print size and time, and write nothing.
        teacher: Name of the one to run, where model.teacher has several; train with
            --model.teacher_cache '{NAME: FOLDER}', and those that are not named there are run.
        seed_everything: As for fit, whose masks follow from it.
        trainer: Taken from the configuration and left aside.
        matmul_precision: As for fit.
        ckpt_path: Taken from the configuration and left aside.
    """
    if Path(out).exists():
        raise ValueError(f"out: {out!r} is there already; delete it, or name another folder")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_static_masks(data)
    role = _which(teacher, model)
    check_cacheable(model.terms, [role])
    torch.set_float32_matmul_precision(matmul_precision)
    network = _load(model, data, str(model.teacher_sources[role]))
    plans = _plan(data, network, wanted := _positions(positions, model, role), batch_size)
    writer = CacheWriter(
        FrozenTeacher(network),
        _manifest(model, data, role, network, plans, k=k, positions=wanted, scores=scores),
        plans,
        batch_size=batch_size,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
    print(_summary(writer), flush=True)
    writer.check_room(Path(out))
    if estimate:
        return
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    writer.write(Path(out))
    given = out if len(model.teacher_sources) == 1 else f"'{{{role}: {out}}}'"
    print(f"written: {out}; train with --model.teacher_cache {given}")


def run(arguments: list[str]) -> None:
    """Parse the arguments and write the cache."""
    transformers_logging.disable_progress_bar()
    parser = ArgumentParser(prog="lit-distil cache", description=(cache.__doc__ or "").split("Args:")[0])
    parser.add_argument("--config", action="config", help="Configuration of a distillation, as fit takes it.")
    parser.add_function_arguments(cache, as_group=False, as_positional=False, sub_configs=True)
    parsed = parser.parse_args(arguments)
    if parsed.seed_everything is not False:  # before the data is made, as fit does it
        seed_all(None if parsed.seed_everything is True else parsed.seed_everything, verbose=False)
    settings = parser.instantiate_classes(parsed)
    settings.pop("config", None)
    cache(**settings.as_dict())


def _load(model: DistillationModule, data: TextDataModule, name: str) -> MaskedLMNetwork:
    data.check_same_vocabulary(name, model.teacher_revision)
    loaded = load_teacher(name, model.teacher_revision, data.vocabulary, model.head)
    if model.teacher_dtype is not None:
        loaded = loaded.to(getattr(torch, model.teacher_dtype))
    return MaskedLMNetwork(loaded)


def _which(given: str | None, model: DistillationModule) -> str:
    """The name of the teacher that is run."""
    names = list(model.teacher_sources)
    if given is None and len(names) > 1:
        raise ValueError(f"teacher: a cache is of one teacher, and there are {names}; say which: --teacher {names[0]}")
    if given is not None and given not in names:
        raise ValueError(f"teacher: {given!r} is none of {names}, the names in model.teacher")
    return given or names[0]


def _positions(given: str | None, model: DistillationModule, role: str) -> str:
    needed, _, _ = needs_of(model.terms, role)
    if given == "masked" and needed == "all":
        raise ValueError("positions: an objective has positions all or unmasked; take --positions all")
    return given or needed


def _plan(data: TextDataModule, network: MaskedLMNetwork, positions: str, batch_size: int) -> dict[str, SplitPlan]:
    """Open the data and go through its masks."""
    data.prepare_data()
    data.setup("fit")
    assert data.masking is not None and data.masking.patterns is not None
    check_padding_id("teacher", network, data.vocabulary)
    check_length("teacher", network, data)
    return {
        split: plan_split(
            data.datasets[split],
            data.masking.patterns if split == "train" else 1,  # evaluation has the masks of epoch 0
            positions=positions,
            name=split,
            batch_size=batch_size,
        )
        for split in ("train", "validation")
        if split in data.datasets
    }


def _manifest(
    model: DistillationModule,
    data: TextDataModule,
    role: str,
    network: MaskedLMNetwork,
    plans: dict[str, SplitPlan],
    *,
    k: int,
    positions: str,
    scores: str,
) -> dict[str, Any]:
    """All that the cache depends on, and its settings."""
    head: Any = network.model.get_output_embeddings()
    vocabulary_size = head.weight.shape[0] if head is not None else network.config.vocab_size
    if not 1 <= k <= vocabulary_size:
        raise ValueError(f"k must lie between 1 and the {vocabulary_size} logits of the teacher, got {k}")
    _, temperatures, changing = needs_of(model.terms, role)
    if k < vocabulary_size:
        check_smaller(model.terms, role, changing, k, vocabulary_size)
    return {
        "version": CACHE_VERSION,
        "teacher": teacher_identity(str(model.teacher_sources[role]), model.teacher_revision, model.teacher_dtype),
        "data": {split: data.identity(split) for split in plans},  # type: ignore[arg-type]
        "k": k,
        "positions": positions,
        "temperatures": list(temperatures),
        "scores": scores,
        "vocabulary_size": vocabulary_size,
        "splits": {
            split: {"sequences": len(plan.samples), "patterns": plan.patterns, "rows": plan.num_rows}
            for split, plan in plans.items()
        },
    }


def _summary(writer: CacheWriter) -> str:
    """Size and time, before they are spent."""
    lines = [
        f"{split:<11}{len(plan.samples):>13,} sequences × {plan.patterns} masks = {plan.num_rows:,} rows"
        for split, plan in writer.plans.items()
    ]
    seconds, kept = writer.trial()
    time = f"{seconds:,.0f} seconds" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
    settings = writer.manifest
    lines += [
        f"a row      {settings['k']} of {settings['vocabulary_size']:,} tokens, temperatures "
        f"{settings['temperatures']}: {writer.row_bytes:,} bytes",
        "kept       "
        + ", ".join(
            f"{share:.1%} of the mass at T = {each:g}"
            for share, each in zip(kept, settings["temperatures"], strict=True)
        ),
        f"on disk    {writer.num_bytes / 1e6:,.1f} MB",
        f"time       about {time} on {writer.device}",
    ]
    return "\n".join(lines)
