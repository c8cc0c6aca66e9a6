"""What can be learnt from cached teachers, and what cannot: refused with the reason before the first step."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from lit_distil.modules.pairing import Comparisons
from lit_distil.objectives import Objective, RowObjective

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
