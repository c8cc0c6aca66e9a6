"""`lit-distil cache`: run a teacher once over the data of a distillation, and keep what its students will ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything as seed_all
from transformers.utils import logging as transformers_logging

from lit_distil.commands.cache_writer import CacheWriter, SplitPlan, plan_split
from lit_distil.data import TextDataModule
from lit_distil.models import MaskedLMNetwork
from lit_distil.modules import DistillationModule, FrozenTeacher
from lit_distil.modules.cache_checks import check_cacheable, check_smaller, check_static_masks, needs_of
from lit_distil.modules.cache_files import CACHE_VERSION, teacher_identity
from lit_distil.modules.preflight import check_length, check_padding_id
from lit_distil.modules.teachers import load_teacher


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
    check_cacheable(model.comparisons, [role])
    torch.set_float32_matmul_precision(matmul_precision)
    network = _load(model, data, model.teacher_names[role])
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
    given = out if len(model.teacher_names) == 1 else f"'{{{role}: {out}}}'"
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
    names = list(model.teacher_names)
    if given is None and len(names) > 1:
        raise ValueError(f"teacher: a cache is of one teacher, and there are {names}; say which: --teacher {names[0]}")
    if given is not None and given not in names:
        raise ValueError(f"teacher: {given!r} is none of {names}, the names in model.teacher")
    return given or names[0]


def _positions(given: str | None, model: DistillationModule, role: str) -> str:
    needed, _, _ = needs_of(model.comparisons, role)
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
    _, temperatures, changing = needs_of(model.comparisons, role)
    if k < vocabulary_size:
        check_smaller(model.comparisons, role, changing, k, vocabulary_size)
    return {
        "version": CACHE_VERSION,
        "teacher": teacher_identity(model.teacher_names[role], model.teacher_revision, model.teacher_dtype),
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
