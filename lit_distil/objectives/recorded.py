"""What the objectives on attention share: blocks by number, and what was recorded of them."""

from __future__ import annotations

from lit_distil.objectives.base import Objective
from lit_distil.objectives.relations_functional import Relation
from lit_distil.types import AttentionStates, EncoderOutput, RecordedAttention


def block_number(what: str, layer: int, depth: int) -> int:
    """A block's number from 1 to `depth`; negative numbers count from the end.

    Raises:
        ValueError: There is no such block.
    """
    if layer == 0 or not -depth <= layer <= depth:
        raise ValueError(
            f"{what} block {layer} is out of range; blocks are counted from 1 to {depth}, or -1 down to {-depth} from "
            "the end, and the embeddings (0) do not attend"
        )
    return layer if layer > 0 else depth + 1 + layer


def recorded_attention(objective: Objective, who: str, output: EncoderOutput) -> RecordedAttention:
    """What was recorded of a network's attention, or an error that names who recorded nothing."""
    if output.attention is None:
        raise ValueError(
            f"{type(objective).__name__} needs queries, keys and values of the {who}; ask it for `attention_layers`"
        )
    return output.attention


def query_key(states: AttentionStates) -> Relation:
    """Attention itself, with one key for each query head."""
    query, key = states.query, states.key
    if key.shape[1] != query.shape[1]:  # grouped-query attention
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return Relation(query, key, states.scaling)


def same_window(objective: Objective, student: tuple[int, int | None], teacher: tuple[int, int | None]) -> int | None:
    """The window of both blocks; distributions over different tokens cannot be compared.

    Args:
        objective: Who compares.
        student: Number of the student's block, and its window.
        teacher: Likewise the teacher's.

    Raises:
        ValueError: One of them sees further than the other.
    """
    (student_block, ours), (teacher_block, theirs) = student, teacher
    if ours != theirs:
        sight = ["all tokens" if window is None else f"tokens less than {window} away" for window in (ours, theirs)]
        raise ValueError(
            f"{type(objective).__name__}: the student's block {student_block} sees {sight[0]}, the teacher's block "
            f"{teacher_block} {sight[1]}; pair blocks with the same (local or global) attention, or use RelationLoss "
            "with relations among qq, kk, vv, which know no window"
        )
    return ours
