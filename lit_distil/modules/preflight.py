"""What is checked of a teacher, a student and their data before the first step, as it would go wrong in silence."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_distil.models import FlatNetwork, MaskedLMNetwork
from lit_distil.modules.pairing import Comparisons
from lit_distil.objectives import NetworkFacts
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
