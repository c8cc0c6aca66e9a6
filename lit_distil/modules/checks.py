"""Checks before the first step: refuse networks, objectives, data, caches and checkpoints that do not fit."""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_distil.messages import check_at_least, one_line
from lit_distil.models import FlatNetwork, Head, MaskedLMNetwork
from lit_distil.modules.cached_teacher import STATIC_MASKS, CachedTeacher
from lit_distil.objectives import NetworkCapabilities, Objective, RowObjective
from lit_distil.objectives.base import Positions
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import COUNTABLES, Compiling, DataModule, Vocabulary

_MOST_PADDING = 128
"""Most rows that a padded embedding has beyond its tokenizer's entries (or 1 % of the entries, if that is more)."""


def datamodule_of(trainer: Any) -> DataModule:
    """A trainer's data module; it must have one."""
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise ValueError(
            "the trainer has no data module, which knows the vocabulary: give it a lit_distil.data.TextDataModule, as "
            "in trainer.fit(module, datamodule=data)"
        )
    return cast(DataModule, data)


def check_graphs(compiling: Compiling, accumulate: int) -> None:
    """Refuse CUDA graphs with accumulation: a graph overwrites the gradients of the micro-batch before."""
    if compiling == "graphs" and accumulate > 1:
        raise ValueError(
            "model.compile: graphs cannot accumulate gradients; set trainer.accumulate_grad_batches to 1, or take true"
        )


def check_every(activation_checkpointing: int) -> int:
    """Return the interval in blocks, unless it is negative."""
    if activation_checkpointing < 0:
        raise ValueError(f"model.activation_checkpointing must be 0 or more, got {activation_checkpointing}")
    return activation_checkpointing


def check_pair(
    student: MaskedLMNetwork, teacher: MaskedLMNetwork, data: DataModule, vocabulary: Vocabulary | None = None
) -> None:
    """Refuse a student and a teacher with different padding ids, or with too few positions for this data.

    `vocabulary` is that of the teacher's own tokenizer, if the teacher does not read the data's tokens.
    """
    check_network("student", student, data)
    check_network("teacher", teacher, data, vocabulary)
    ours, theirs = (getattr(network.config, "type_vocab_size", 0) or 0 for network in (student, teacher))
    has_segments = any(getattr(dataset, "has_segments", False) for dataset in data.datasets.values())
    if has_segments and theirs > 1 >= ours:
        rank_zero_warn(
            "data.format tells segments apart, and so does the teacher, but not the student: it has "
            f"type_vocab_size={ours} and sees every token in the first segment"
        )


def compared_entries(
    student: int,
    teachers: Mapping[str, int],
    vocabulary: Vocabulary,
    *,
    unnamed: Collection[str] = (),
    cached: Collection[str] = (),
) -> int | None:
    """How many vocabulary entries the distributions of student and teachers cover; None for all logits.

    Networks with the same tokenizer may have extra rows that pad the embedding to a multiple of 8 or 64. If their
    numbers of logits differ, all are cut to the tokenizer's entries.

    Args:
        student: Number of logits of the student.
        teachers: Number of logits of each teacher, by name.
        vocabulary: The tokenizer's.
        unnamed: Teachers in memory; their tokenizers are not known, so they were not compared.
        cached: Teachers with a cache, which cannot be cut afterwards.

    Raises:
        ValueError: A network has fewer logits than the tokenizer has entries, a teacher in memory has so many more that
            it must belong to another tokenizer, or a cache holds more than the entries.
    """
    sizes = [("student", student), *(("teacher", size) for size in teachers.values())]
    if len({size for _, size in sizes}) == 1:
        return None
    for role, size in sizes:
        if size < vocabulary.size:
            raise ValueError(
                f"model.{role}: it has {size} logits and the tokenizer {vocabulary.size} entries; take the tokenizer "
                f"that the {role} was trained with, or leave vocab_size out of its config"
            )
    for name in unnamed:
        if teachers[name] - vocabulary.size > max(_MOST_PADDING, vocabulary.size // 100):
            raise ValueError(
                f"model.teacher: {name} has {teachers[name]} logits and the tokenizer {vocabulary.size} entries, which "
                "is more than padding explains; give the data the tokenizer that it was trained with, or give its "
                "folder in place of the model, so that the tokenizers are compared"
            )
    for name in cached:
        if teachers[name] > vocabulary.size:
            raise ValueError(
                f"model.teacher_cache: that of {name} holds {teachers[name]} logits, with the rows beyond the "
                f"tokenizer's {vocabulary.size} entries, and the student has {student}; delete it and write it again, "
                "and it holds the entries alone"
            )
    return vocabulary.size


def needs_head(terms: LossTerms) -> bool:
    """Whether any objective uses the logits of the student's masked-LM or next-sentence head, and so trains it."""
    return any(one.rows is not None or one.needs_next_sentence for one in terms.objectives.values())


def check_headless(terms: LossTerms, name: str, teacher: Any) -> None:
    """Refuse a teacher whose masked-LM head is new, if an objective compares with its logits."""
    asking = [
        f"model.objectives.{key} ({type(one).__name__})"
        for key, one in terms.comparing_with(name).items()
        if one.rows is not None or one.needs_next_sentence
    ]
    if asking:
        network, compare = called(teacher), "compares" if len(asking) == 1 else "compare"
        raise ValueError(
            f"model.teacher: {network} has no trained masked-LM (or next-sentence) head, and {', '.join(asking)} "
            f"{compare} with its predictions. Train a head first (`lit-distil pretrain TEXT --network {network} --out "
            "runs/adapted`) and give that run's export as the teacher, or take objectives that need no head: "
            "EmbeddingCosineLoss, RelationLoss, AttentionLoss, HiddenMSELoss, HiddenCosineLoss. To distil a fine-tuned "
            "teacher on its task, see `lit-distil fit --config recipe:own-files-task`"
        )


def compare_tokenizers(
    terms: LossTerms,
    name: str,
    teacher: tuple[Any, str | None],
    data: DataModule,
    head: Head,
    is_origin: bool,
) -> Sequence[int] | Vocabulary | None:
    """Compare the data's tokenizer with a teacher's; refuse a difference if an objective or the task needs the same.

    Args:
        terms: The objectives.
        name: The teacher's name.
        teacher: The teacher and its revision; for a model in memory only the sizes are known.
        data: The data.
        head: The networks' kind of head.
        is_origin: Whether the student is made from this teacher and so reads the same tokens.

    Returns:
        None if the tokenizers are the same. The teacher's id of each of the data's entries, if these are a subset of
        the teacher's. The teacher's vocabulary if it differs; the teacher then reads the texts with its own tokenizer.
    """
    source, revision = teacher
    if not isinstance(source, str):
        return None
    try:
        return data.shared_entries(source, revision)
    except ValueError as error:
        asking = [
            f"model.objectives.{key} ({type(one).__name__})"
            for key, one in terms.comparing_with(name).items()
            if not one.across_tokenizers
        ]
        if head in ("token_classification", "question_answering"):
            asking.append("data.task")
        if asking:
            raise ValueError(
                f"{error}; {', '.join(asking)} {'compares' if len(asking) == 1 else 'compare'} the two networks token "
                "by token, and another tokenizer cuts a text elsewhere and has other entries; each network may read "
                "the text with its own tokenizer where sentence embeddings are distilled (EmbeddingCosineLoss, "
                'kind="embedding" in Python) and the logits of a task on whole texts (TaskDistillationModule)'
            ) from error
        if is_origin:
            raise
    vocabulary = data.read_also(name, source, revision)
    rank_zero_info(f"{name}: it reads the same texts with the tokenizer of {source}, of {vocabulary.size:,} entries")
    return vocabulary


def called(network: Any) -> str:
    """How messages name a network: its folder or name, or the class of a model in memory."""
    return network if isinstance(network, str) else type(network).__name__


def check_networks(
    terms: LossTerms, student: FlatNetwork, teachers: Mapping[str, FlatNetwork], data: DataModule | None = None
) -> None:
    """Let every objective refuse networks and data that it cannot use (`Objective.check`); errors name it by its key.

    `teachers` are those that run; cached ones were checked when they were opened. Without `data`, masks do not matter.
    """
    ours = capabilities_of(student)
    theirs = {name: capabilities_of(network) for name, network in teachers.items()}
    for name, objective in terms.objectives.items():
        compared = terms.teachers_of(name)
        check_attributes(name, objective)
        try:
            for each in [theirs[teacher] for teacher in compared if teacher in theirs] if compared else [None]:
                objective.check(ours, each)
        except ValueError as error:
            raise ValueError(f"model.objectives.{name}: {error}") from error
        needs_masks = {objective.rows, objective.counts} & {"masked", "unmasked"}
        if needs_masks and data is not None and data.masking is None:
            raise ValueError(
                f"data.masking: model.objectives.{name} ({type(objective).__name__}) looks at {needs_masks.pop()} "
                "tokens, and nothing is masked; give the data a masking strategy, such as lit_distil.data.TokenMasking"
            )


def check_attributes(name: str, objective: Objective) -> None:
    """Refuse an objective whose `counts` (what its sum is over) or `rows` (where it needs logits) is unknown."""
    field, counts = f"model.objectives.{name}: {type(objective).__name__}", getattr(objective, "counts", None)
    if counts not in COUNTABLES:
        raise ValueError(f"{field}.counts must be one of {list(COUNTABLES)}, what its sum is over, got {counts!r}")
    if objective.rows not in (None, *get_args(Positions)):
        raise ValueError(f"{field}.rows must be None or one of {list(get_args(Positions))}, got {objective.rows!r}")


def capabilities_of(network: FlatNetwork) -> NetworkCapabilities:
    """What objectives need to know about a network, taken from its configuration."""
    config: Any = network.config
    num_heads = getattr(config, "num_attention_heads", None)
    head_width = getattr(config, "head_dim", None) or (None if num_heads is None else config.hidden_size // num_heads)
    kinds = getattr(config, "layer_types", None) or []
    # ModernBERT's local blocks attend to `sliding_window` tokens on either side
    windows = tuple(config.sliding_window + 1 if kind == "sliding_attention" else None for kind in kinds)
    return NetworkCapabilities(
        model_type=config.model_type,
        num_layers=network.num_layers,
        width=config.hidden_size,
        num_heads=num_heads,
        num_key_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_width=head_width,
        windows=windows,
        no_attention=network.no_attention,
        has_next_sentence=any(name.endswith("seq_relationship") for name, _ in network.named_modules()),
        name=str(getattr(config, "_name_or_path", "") or ""),
        revision=getattr(config, "_commit_hash", None),
    )


def check_network(role: str, network: FlatNetwork, data: DataModule, vocabulary: Vocabulary | None = None) -> None:
    """Refuse a network whose padding id is not its tokenizer's (by default the data's) or with too few positions."""
    check_padding_id(role, network, vocabulary or data.vocabulary)
    check_length(role, network, data)


def check_padding_id(role: str, network: FlatNetwork, vocabulary: Vocabulary) -> None:
    """Refuse a network whose padding id is not the tokenizer's: models like RoBERTa count their positions from it."""
    ours, theirs = vocabulary.special_ids.get("pad_token_id"), getattr(network.config, "pad_token_id", None)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"model.{role}: its config has pad_token_id={theirs} and the tokenizer pads with {ours}; take the "
            "tokenizer that the network was trained with, or correct its config.json"
        )


def check_length(role: str, network: FlatNetwork, data: DataModule) -> None:
    """Refuse data whose sequences may be longer than the network's position table."""
    if network.max_length is not None and data.max_length > network.max_length:
        raise ValueError(
            f"data.max_length: {data.max_length} tokens are more than the position table of the {role} "
            f"({network.config.model_type}) has room for, which are {network.max_length}; set data.max_length to "
            f"{network.max_length}, or give the network a larger max_position_embeddings"
        )


def check_comparisons(terms: LossTerms) -> None:
    """Refuse objectives that train nothing, unknown names in `objective_teachers`, and terms with too many teachers.

    A teacher that no objective compares with only gets a warning: the student may still be made from its layers.
    """
    objectives, teachers, own_teacher = terms.objectives, sorted(terms.shares), terms.own_teacher
    if not objectives:
        raise ValueError("model.objectives: distillation needs at least one, such as {soft: SoftTargetLoss}")
    if not any(objective.heaviest > 0 for objective in objectives.values()):
        raise ValueError("model.objectives: every weight is 0, so there is nothing to train; give one a weight")
    for name, objective in objectives.items():
        check_attributes(name, objective)
    for name, teacher in own_teacher.items():
        if name not in objectives or teacher not in teachers:
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - the objectives are {sorted(objectives)} and the "
                f"teachers {teachers}"
            )
        if not objectives[name].needs_teacher:
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - {name} ({type(objectives[name]).__name__}) compares "
                "with no teacher; leave it out"
            )
    for name, objective in objectives.items():
        if len(terms.teachers_of(name)) > 1 and not objective.mixes_teachers:
            raise ValueError(
                f"model.objective_teachers: {name} ({type(objective).__name__}) compares with one teacher, and there "
                f"are {teachers}; say which: {{{name}: {next(iter(terms.shares))}}}"
            )
    idle = [teacher for teacher in teachers if not terms.comparing_with(teacher)]
    if idle and terms.need_teachers:
        rank_zero_warn(
            f"model.teacher: no objective compares with {', '.join(idle)}, but it runs in every step and counts in the "
            "agreement with the teacher; leave it out, or leave out some of model.objective_teachers"
        )


def teacher_shares(teachers: Collection[str], weights: dict[str, float] | None) -> dict[str, float]:
    """Each teacher's share in the mean of their distributions; weights must be positive, and the shares sum to 1."""
    if not teachers:
        raise ValueError("model.teacher: no teacher is named; give a folder, or {name: folder, ...}")
    weights = weights if weights is not None else dict.fromkeys(teachers, 1.0)
    if weights.keys() != set(teachers):
        raise ValueError(f"model.teacher_weights names {sorted(weights)}, and the teachers are {sorted(teachers)}")
    if wrong := {name: weight for name, weight in weights.items() if not (weight > 0 and math.isfinite(weight))}:
        raise ValueError(f"model.teacher_weights must be positive, got {wrong}; leave out the teacher instead")
    return {name: weights[name] / sum(weights.values()) for name in teachers}


def check_settings(terms: LossTerms, teacher_dtype: str | None, gradient_shares_every: int) -> None:
    """Refuse what `check_comparisons` refuses, a dtype that is not floating point, and a negative number of steps."""
    check_comparisons(terms)
    if teacher_dtype is not None:
        dtype = getattr(torch, teacher_dtype, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"model.teacher_dtype: torch has no dtype {teacher_dtype!r} of floating point; use bfloat16, float16 "
                "or float32"
            )
    check_at_least(0, {"model.gradient_shares_every": gradient_shares_every})


def check_for_text(objectives: Mapping[str, Objective]) -> None:
    """Refuse objectives on a task's labels when distilling on text, which has none."""
    for name, objective in objectives.items():
        if objective.counts == "labels":
            raise ValueError(
                f"model.objectives: {name}: {type(objective).__name__} is on a task's labels, and text has none; use "
                "MaskedLMLoss and SoftTargetLoss, or distil on the task with lit_distil.modules.TaskDistillationModule"
            )


def check_for_task(objectives: Mapping[str, Objective]) -> None:
    """Refuse objectives on the vocabulary or on masked tokens when distilling on a task, which has neither."""
    for name, objective in objectives.items():
        kind = type(objective).__name__
        if isinstance(objective, RowObjective):
            raise ValueError(
                f"model.objectives: {name}: {kind} compares distributions over the vocabulary, and a task's head has "
                "none; use TaskSoftTargetLoss for the teacher's answers and TaskLoss for the labels"
            )
        if objective.counts in ("masked", "unmasked"):
            raise ValueError(
                f"model.objectives: {name}: {kind} looks at {objective.counts} tokens, and a task masks none; "
                "set positions: all"
            )


def cache_folders(
    requested: str | dict[str, str] | None, teachers: Mapping[str, Any], terms: LossTerms
) -> dict[str, str]:
    """The cache folder of each cached teacher, by name; every objective that compares with it must work from a cache.

    A single folder is for a single teacher, and a model in memory cannot have a cache.
    """
    if requested is None:
        return {}
    if isinstance(requested, str):
        if len(teachers) > 1:
            raise ValueError(
                f"model.teacher_cache: a cache is of one teacher, and there are {sorted(teachers)}; say which: "
                f"{{{sorted(teachers)[0]}: {requested}}}. Those without a cache run"
            )
        requested = {next(iter(teachers)): requested}
    for name in requested:
        if name not in teachers:
            raise ValueError(f"model.teacher_cache: {name}: no such teacher; there are {sorted(teachers)}")
        if not isinstance(teachers[name], str):
            raise ValueError(
                f"model.teacher_cache: a cache is known by the files of its teacher; give model.teacher ({name}) the "
                "folder or name that the cache was written from, not a model in memory"
            )
    check_cacheable(terms, requested)
    return dict(requested)


def check_static_masks(data: DataModule) -> None:
    """Refuse data without static masks: a cached teacher has predictions for only a few masks of each sequence."""
    if data.masking is None:
        raise ValueError("model.teacher_cache: data.masking is not given, and a cache is keyed by masks; give one")
    if data.masking.patterns is None:
        raise ValueError(f"model.teacher_cache: data.masking.patterns is null: {STATIC_MASKS}")


def check_cacheable(terms: LossTerms, cached: Iterable[str]) -> None:
    """Refuse objectives that need more of a cached teacher than its most likely tokens."""
    needs = []
    for name, one in {name: one for teacher in cached for name, one in terms.comparing_with(teacher).items()}.items():
        if not isinstance(one, RowObjective):
            needs.append(f"{name} ({type(one).__name__}) needs the teacher's hidden states or attention")
        elif one.tail is None:
            needs.append(
                f"{name} ({type(one).__name__}) needs every logit itself, with the constant that no probability tells "
                "(the limit of soft targets at a high temperature is the same without it)"
            )
    if needs:
        raise ValueError(
            "model.teacher_cache: it has the differences of the teacher's k largest logits and the mass of the others, "
            f"and {', '.join(needs)}; leave out that objective or the cache, or give the objective a teacher that runs "
            "(model.objective_teachers)"
        )


def needs_of(terms: LossTerms, teacher: str) -> tuple[str, tuple[float, ...]]:
    """What a teacher's cache must hold: rows for "masked" or "all" tokens, and the temperatures compared at, with 1."""
    positions = "masked" if all(one.rows in (None, "masked") for one in terms.objectives.values()) else "all"
    temperatures = {1.0, *(float(one.mixing_temperature) for one in _of_rows(terms, teacher))}
    return positions, tuple(sorted(temperatures))


def _of_rows(terms: LossTerms, teacher: str) -> list[RowObjective]:
    return [one for one in terms.comparing_with(teacher).values() if isinstance(one, RowObjective)]


def open_cache(
    folder: str, teacher: str, identity: dict[str, Any], data: DataModule, terms: LossTerms
) -> CachedTeacher:
    """Open a teacher's cache if it fits the teacher (its name and `teacher_identity`), the data and the terms."""
    check_static_masks(data)
    cached = CachedTeacher(folder, teacher=identity, data={split: data.identity(split) for split in data.datasets})
    check_needs(cached, terms, teacher)
    return cached


def check_needs(cache: CachedTeacher, terms: LossTerms, teacher: str) -> None:
    """Refuse a cache that lacks positions or temperatures, or what a mean over teachers needs."""
    positions, temperatures = needs_of(terms, teacher)
    if positions == "all" and not cache.has_all:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} has the masked positions only, and an objective has positions "
            "all or unmasked; write it anew with --positions all, or set positions: masked"
        )
    if cache.k == cache.vocabulary_size:
        return
    check_smaller(terms, teacher, cache.k, cache.vocabulary_size)
    if missing := [temperature for temperature in temperatures if temperature not in cache.temperatures]:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} knows the mass beyond the {cache.k} most likely tokens at the "
            f"temperatures {list(cache.temperatures)}, and an objective has {missing[0]:g}; take one of these, or "
            "write it anew"
        )


def check_smaller(terms: LossTerms, teacher: str, k: int, vocabulary_size: int) -> None:
    """Refuse a changing temperature and a mean of teachers: both need a cache of the whole vocabulary."""
    changing = [type(one).__name__ for one in _of_rows(terms, teacher) if "temperature" in one.current_values]
    if changing:
        raise ValueError(
            f"model.teacher_cache: the temperature of {', '.join(changing)} changes over the steps, and the mass "
            f"beyond the {k} most likely tokens is known at few temperatures; give a constant one, or cache the whole "
            f"vocabulary (--k {vocabulary_size})"
        )
    if mixing := [name for name in terms.comparing_with(teacher) if len(terms.teachers_of(name)) > 1]:
        raise ValueError(
            f"model.teacher_cache: {mixing[0]} compares with the mean of {list(terms.shares)}, and a cache of "
            f"{teacher} with {k} of {vocabulary_size} tokens does not tell how the others divide their mass, so "
            f"their mean is not known; give it one teacher (model.objective_teachers: {{{mixing[0]}: {teacher}}}), "
            f"or cache the whole vocabulary (--k {vocabulary_size})"
        )


@contextmanager
def reading_checkpoint(path: str | Path, *, field: str = "ckpt_path") -> Iterator[None]:
    """Say in one sentence why a checkpoint cannot be read within the block; `field` is the argument that names it."""
    give = "give the one that a run keeps in <run>/checkpoints/last.ckpt"
    if Path(path).suffix in (".safetensors", ".bin"):
        raise ValueError(
            f"{field}: {str(path)!r} is not a checkpoint of a run, it holds weights alone: name its folder as the "
            "network (lit_distil.models.Pretrained)"
        )
    try:
        if Path(path).is_dir():
            raise IsADirectoryError("it is a folder")
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{field}: {str(path)!r} is not a checkpoint of lit_distil, or it holds Python objects, which could run "
            f"code when they are read; {give}"
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{field}: {str(path)!r} could not be read as a checkpoint ({one_line(error)}); {give}"
        ) from error
