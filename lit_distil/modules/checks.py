"""What can be learnt from cached teachers, and what cannot: refused with the reason before the first step."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_distil.models import FlatNetwork, MaskedLMNetwork
from lit_distil.modules.pairing import Comparisons
from lit_distil.modules.terms import shares_the_pass
from lit_distil.objectives import NetworkFacts, Objective, RowObjective, TaskSoftTargetLoss
from lit_distil.types import Vocabulary


def check_pair(student: MaskedLMNetwork, teacher: MaskedLMNetwork, data: Any) -> None:
    """Refuse a student and a teacher that cannot be trained together on this data.

    Args:
        student: the network that trains.
        teacher: the one that it learns from.
        data: the data module: `vocabulary`, and `datasets` of the splits that are open.

    Raises:
        ValueError: if the padding ids differ, the logits have different widths, or a sequence is longer than a position
            table.
    """
    for role, network in (("student", student), ("teacher", teacher)):
        check_padding_id(role, network, data.vocabulary)
        check_length(role, network, data)
    _check_logits(student, _num_logits(teacher))
    segments = {role: _num_segments(network) for role, network in (("student", student), ("teacher", teacher))}
    has_segments = any(getattr(dataset, "has_segments", False) for dataset in data.datasets.values())
    if has_segments and segments["teacher"] > 1 >= segments["student"]:
        rank_zero_warn(
            "data.format tells segments apart, as the teacher does, and the student does not: it has "
            f"type_vocab_size={segments['student']} and sees every token in the first segment"
        )


def check_beside_cache(student: MaskedLMNetwork, vocabulary_size: int, data: Any) -> None:
    """The same of a student whose teacher is a cache; what that was run on was checked when it was written.

    Args:
        student: the network that trains.
        vocabulary_size: logits of the teacher.
        data: the data module.

    Raises:
        ValueError: see `check_pair`.
    """
    check_padding_id("student", student, data.vocabulary)
    check_length("student", student, data)
    _check_logits(student, vocabulary_size)


def check_networks(
    comparisons: Comparisons, student: FlatNetwork, teachers: dict[str, FlatNetwork], data: Any = None
) -> None:
    """Let every objective refuse networks and data that it can make nothing of; see `Objective.check`.

    Args:
        comparisons: The objectives, and which teacher each compares with.
        student: the network that trains.
        teachers: those that run, by name; what was kept of others was checked when it was opened.
        data: the data module; None where its masks play no part.

    Raises:
        ValueError: if one does; the message names the objective by its key.
    """
    ours = facts_of(student)
    facts = {name: facts_of(network) for name, network in teachers.items()}
    for name, objective in comparisons.objectives.items():
        theirs: list[NetworkFacts | None] = [None]
        if objective.needs_teacher and comparisons.teachers:
            theirs = [facts[teacher] for teacher in comparisons.teachers_of(name) if teacher in facts]
        try:
            for each in theirs:
                objective.check(ours, each)
        except ValueError as error:
            raise ValueError(f"model.objectives.{name}: {error}") from error
        looks_at = {objective.rows, objective.counts} & {"masked", "unmasked"}
        if looks_at and data is not None and data.masking is None:
            raise ValueError(
                f"data.masking: model.objectives.{name} ({type(objective).__name__}) looks at {looks_at.pop()} tokens, "
                "and nothing is masked; give the data a masking strategy, such as lit_distil.data.TokenMasking"
            )


def facts_of(network: FlatNetwork) -> NetworkFacts:
    """What objectives are checked against, from the network's configuration."""
    config: Any = network.config
    num_heads = getattr(config, "num_attention_heads", None)
    head_width = getattr(config, "head_dim", None) or (None if num_heads is None else config.hidden_size // num_heads)
    kinds = getattr(config, "layer_types", None) or []
    # ModernBERT's blocks of local attention see as many tokens to either side as `sliding_window` says
    windows = tuple(config.sliding_window + 1 if kind == "sliding_attention" else None for kind in kinds)
    return NetworkFacts(
        model_type=config.model_type,
        num_layers=network.num_layers,
        width=config.hidden_size,
        num_heads=num_heads,
        num_key_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_width=head_width,
        windows=windows,
        no_attention=network.no_attention,
        has_next_sentence=any(name.endswith("seq_relationship") for name, _ in network.named_modules()),
    )


def check_padding_id(role: str, network: FlatNetwork, vocabulary: Vocabulary) -> None:
    """The configuration's padding id is the tokenizer's: RoBERTa-likes count their positions from it.

    Raises:
        ValueError: if they differ.
    """
    ours, theirs = vocabulary.special_ids.get("pad_token_id"), getattr(network.config, "pad_token_id", None)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"model.{role}: its config has pad_token_id={theirs} and the tokenizer pads with {ours}; take the "
            "tokenizer that the network was trained with, or correct its config.json"
        )


def check_length(role: str, network: FlatNetwork, data: Any) -> None:
    """Every sequence fits into the position table.

    Raises:
        ValueError: if one does not; said before training and not in the step that meets it.
    """
    if network.max_length is None:
        return
    for split, dataset in data.datasets.items():
        longest = dataset.longest
        if longest > network.max_length:
            raise ValueError(
                f"data.max_length: the {split} split has a sequence of {longest} tokens and the position table of the "
                f"{role} ({network.config.model_type}) room for {network.max_length}; set data.max_length to "
                f"{network.max_length}, or give the network a larger max_position_embeddings"
            )


def _check_logits(student: MaskedLMNetwork, theirs: int) -> None:
    ours = _num_logits(student)
    if ours != theirs:
        raise ValueError(
            f"model.student: it has {ours} logits and the teacher {theirs}, so their distributions cannot be compared; "
            f"give the student's config vocab_size: {theirs}, or the teacher one whose embedding is as long as the "
            "tokenizer"
        )


def _num_logits(network: MaskedLMNetwork) -> int:
    head: Any = network.model.get_output_embeddings()
    return head.weight.shape[0] if head is not None else network.config.vocab_size


def _num_segments(network: MaskedLMNetwork) -> int:
    return getattr(network.config, "type_vocab_size", 0) or 0


def check_objectives(
    objectives: dict[str, Objective], objective_teachers: dict[str, str], teachers: dict[str, str]
) -> None:
    """Refuse objectives that train nothing, names that are none of theirs or of the teachers', and unnamed teachers.

    A teacher that no objective compares with gets a warning: the student may be made of its layers.

    Raises:
        ValueError: It is so.
    """
    if not objectives:
        raise ValueError("model.objectives: distillation needs at least one, such as {soft: SoftTargetLoss}")
    if not any(objective.heaviest > 0 for objective in objectives.values()):
        raise ValueError("model.objectives: every weight is 0, so there is nothing to train; give one a weight")
    for name, teacher in objective_teachers.items():
        if name not in objectives or teacher not in teachers:
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - the objectives are {sorted(objectives)} and the "
                f"teachers {sorted(teachers)}"
            )
        if not objectives[name].needs_teacher:
            kind = type(objectives[name]).__name__
            raise ValueError(
                f"model.objective_teachers: {name}: {teacher} - {name} ({kind}) compares with no teacher; leave it out"
            )
    for name, objective in objectives.items():
        takes_mean = isinstance(objective, TaskSoftTargetLoss) or (
            isinstance(objective, RowObjective) and shares_the_pass(objective)
        )
        if len(teachers) > 1 and objective.needs_teacher and name not in objective_teachers and not takes_mean:
            raise ValueError(
                f"model.objective_teachers: {name} ({type(objective).__name__}) compares with one teacher, and there "
                f"are {sorted(teachers)}; say which: {{{name}: {next(iter(teachers))}}}"
            )
    comparing = {name for name, objective in objectives.items() if objective.needs_teacher}
    idle = teachers.keys() - objective_teachers.values()
    if comparing and idle and comparing <= objective_teachers.keys():
        rank_zero_warn(
            f"model.teacher: no objective compares with {', '.join(sorted(idle))}, which runs in every step all the "
            "same, and counts in the agreement with the teacher; leave it out, or leave out some of "
            "model.objective_teachers"
        )


def check_settings(teacher_dtype: str | None, gradient_shares_every: int) -> None:
    """Refuse a type that torch does not have or weights cannot have, and a negative number of steps.

    Raises:
        ValueError: It is so.
    """
    if teacher_dtype is not None:
        dtype = getattr(torch, teacher_dtype, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"model.teacher_dtype: no dtype {teacher_dtype!r} of floating point in torch; use bfloat16, float16 or "
                "float32"
            )
    if gradient_shares_every < 0:
        raise ValueError(f"model.gradient_shares_every must not be negative, got {gradient_shares_every}")


def check_for_text(name: str, objective: Objective) -> None:
    """Refuse an objective on a task's labels: text has none.

    Args:
        name: Of the objective.
        objective: One of the terms of a distillation on text.

    Raises:
        ValueError: It is one.
    """
    if objective.counts == "labels":
        raise ValueError(
            f"model.objectives: {name}: {type(objective).__name__} is on a task's labels, and text has none; use "
            "MaskedLMLoss and SoftTargetLoss, or distil on the task with lit_distil.modules.TaskDistillationModule"
        )


def check_for_task(name: str, objective: Objective) -> None:
    """Refuse an objective on the vocabulary or on masked tokens: a task has neither.

    Args:
        name: Of the objective.
        objective: One of the terms of a distillation on a task.

    Raises:
        ValueError: It is one.
    """
    kind = type(objective).__name__
    if isinstance(objective, RowObjective):
        raise ValueError(
            f"model.objectives: {name}: {kind} compares distributions over the vocabulary, and a task's head has none; "
            "use TaskSoftTargetLoss for the teacher's answers and TaskLoss for the labels"
        )
    if objective.counts in ("masked", "unmasked"):
        raise ValueError(
            f"model.objectives: {name}: {kind} looks at {objective.counts} tokens, and a task masks none; "
            "set positions: all"
        )


STATIC_MASKS = (
    "a cache holds what the teacher says of each masked sequence, and with dynamic masks none comes twice. Give every "
    "sequence a fixed number of masks: data.masking.init_args.patterns: 4"
)
"""Why dynamic masks cannot be cached, and what to do."""


class Kept(Protocol):
    """A cache, as far as it is asked here."""

    folder: Any
    k: int
    temperatures: tuple[float, ...]
    vocabulary_size: int

    @property
    def has_all(self) -> bool:
        """Whether it has rows of all tokens."""


def cache_folders(given: str | dict[str, str] | None, teachers: Collection[str]) -> dict[str, str]:
    """The folder of each cached teacher, by the teacher's name.

    Raises:
        ValueError: One folder for several teachers, or a name that no teacher has.
    """
    if given is None:
        return {}
    if isinstance(given, str):
        if len(teachers) > 1:
            raise ValueError(
                f"model.teacher_cache: a cache is of one teacher, and there are {sorted(teachers)}; say which: "
                f"{{{sorted(teachers)[0]}: {given}}}. Those without a cache are run"
            )
        return {next(iter(teachers)): given}
    if unknown := [name for name in given if name not in teachers]:
        raise ValueError(f"model.teacher_cache: {unknown[0]}: no such teacher; there are {sorted(teachers)}")
    return dict(given)


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


def check_cacheable(comparisons: Comparisons, cached: Iterable[str]) -> None:
    """Refuse objectives that the likeliest tokens are not enough for.

    Args:
        comparisons: Who compares with whom.
        cached: Names of the teachers that have a cache.

    Raises:
        ValueError: There are some; the message names them, and what each needs.
    """
    cached = tuple(cached)
    others = {
        name: one
        for teacher in cached
        for name, one in comparisons.with_teacher(teacher).items()
        if not (isinstance(one, RowObjective) and one.tail is not None)
    }
    if not others:
        return
    listed = ", ".join(f"{name} ({type(one).__name__}) {_what_it_needs(one)}" for name, one in others.items())
    raise ValueError(
        "model.teacher_cache: it has the differences of the teacher's k largest logits and the mass of the others, and "
        f"{listed}; leave out that objective, give it a teacher that is run (model.objective_teachers), or leave out "
        "the cache"
    )


def _what_it_needs(objective: Objective) -> str:
    if isinstance(objective, RowObjective):
        return (
            "needs every logit itself, with the constant that no probability tells (the limit of soft targets at a "
            "high temperature is the same without it)"
        )
    return "needs the teacher's hidden states or attention"


def needs_of(comparisons: Comparisons, teacher: str) -> tuple[str, tuple[float, ...], list[str]]:
    """What a cache of a teacher must hold.

    Returns:
        "masked" or "all"; the temperatures, with 1, at which evaluation compares; and the names of classes whose
        temperature changes over the steps, for which only the whole vocabulary will do.
    """
    every = comparisons.objectives.values()
    positions = "masked" if all(one.rows in (None, "masked") for one in every) else "all"
    theirs = [one for one in comparisons.with_teacher(teacher).values() if isinstance(one, RowObjective)]
    temperatures = {1.0, *(float(one.mixing_temperature) for one in theirs)}
    changing = [type(one).__name__ for one in theirs if "temperature" in one.in_force]
    return positions, tuple(sorted(temperatures)), changing


def check_needs(cache: Kept, comparisons: Comparisons, teacher: str) -> None:
    """Refuse a cache that lacks positions, temperatures, or what a mean over teachers takes.

    Raises:
        ValueError: It does.
    """
    positions, temperatures, changing = needs_of(comparisons, teacher)
    if positions == "all" and not cache.has_all:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} has the masked positions only, and an objective has positions "
            "all or unmasked; write it anew with --positions all, or set positions: masked"
        )
    if cache.k == cache.vocabulary_size:
        return
    check_smaller(comparisons, teacher, changing, cache.k, cache.vocabulary_size)
    if missing := [temperature for temperature in temperatures if temperature not in cache.temperatures]:
        raise ValueError(
            f"model.teacher_cache: {str(cache.folder)!r} knows the mass beyond the {cache.k} likeliest tokens at the "
            f"temperatures {list(cache.temperatures)}, and an objective has {missing[0]:g}; take one of these, or "
            "write it anew"
        )


def check_smaller(comparisons: Comparisons, teacher: str, changing: list[str], k: int, vocabulary_size: int) -> None:
    """Refuse what only a cache of the whole vocabulary is enough for.

    Raises:
        ValueError: A temperature changes, or an objective compares with a mean of teachers.
    """
    if changing:
        raise ValueError(
            f"model.teacher_cache: the temperature of {', '.join(changing)} changes over the steps, and the mass "
            f"beyond the {k} likeliest tokens is known at few temperatures; give a constant one, or cache the whole "
            f"vocabulary (--k {vocabulary_size})"
        )
    if mixing := comparisons.mixing(teacher):
        raise ValueError(
            f"model.teacher_cache: {mixing[0]} compares with the mean of {list(comparisons.teachers)}, and a cache of "
            f"{teacher} with {k} of {vocabulary_size} tokens does not tell which of the others is how likely, so "
            f"neither is their mean known; give it one teacher (model.objective_teachers: {{{mixing[0]}: {teacher}}}), "
            f"or cache the whole vocabulary (--k {vocabulary_size})"
        )
