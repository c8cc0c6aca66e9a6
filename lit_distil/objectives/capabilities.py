"""What objectives know about networks before the first step: their sizes, and which of their layers are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkCapabilities:
    """What a network's configuration tells the objectives.

    Attributes:
        model_type: Its architecture.
        num_layers: Number of blocks.
        width: Width of the hidden states.
        num_heads: Attention heads per block; None if the configuration does not say.
        num_key_heads: Heads of keys and values, a divisor of `num_heads`.
        head_width: Dimensions of a head.
        windows: For each block: tokens i and j see each other if |i − j| < window; None means all tokens do.
        no_attention: Why it cannot return queries, keys and values, and what to do; None if it can.
        has_next_sentence: Whether it has a next-sentence head.
        name: Folder, or name on the Hub, that it was loaded from; empty if there is none.
        revision: Its commit on the Hub, if it came from there.
    """

    model_type: str
    num_layers: int
    width: int
    num_heads: int | None = None
    num_key_heads: int | None = None
    head_width: int | None = None
    windows: tuple[int | None, ...] = ()
    no_attention: str | None = None
    has_next_sentence: bool = False
    name: str = ""
    revision: str | None = None

    def check_for(self, objective: str, *, next_sentence: bool, attention: bool) -> None:
        """Refuse the network if it lacks a next-sentence head or attention states that an objective needs."""
        if next_sentence and not self.has_next_sentence:
            raise ValueError(
                f"{objective} needs a network with a next-sentence head, and {self.model_type} has none here; take an "
                "architecture that has one (BERT), pretrained on a data format that draws pairs, or leave it out"
            )
        if attention and self.no_attention is not None:
            raise ValueError(f"{objective} needs queries, keys and values, {self.no_attention}")

    def window(self, block: int) -> int | None:
        """The window of a block, counted from 1."""
        return self.windows[block - 1] if self.windows else None

    @property
    def relation_widths(self) -> dict[str, int]:
        """Width of all heads of queries, keys or values together, by relation; empty if the heads are unknown."""
        if self.num_heads is None or self.num_key_heads is None or self.head_width is None:
            return {}
        queries, keys = self.num_heads * self.head_width, self.num_key_heads * self.head_width
        return {"qk": queries, "qq": queries, "kk": keys, "vv": keys}


def check_equal_widths(student: NetworkCapabilities, teacher: NetworkCapabilities | None, instead: str) -> None:
    """Refuse cosines between hidden states of different widths; `instead` names an objective that allows them."""
    if teacher is not None and student.width != teacher.width:
        raise ValueError(
            f"the cosine needs equal widths, the student's is {student.width} and the teacher's {teacher.width}; "
            f"give the student the teacher's width, or use {instead}"
        )


def check_layer_map(layer_map: list[list[int]] | None) -> None:
    """Refuse a layer map that is not a list of pairs."""
    if layer_map is not None and (not layer_map or any(len(pair) != 2 for pair in layer_map)):
        raise ValueError(
            f"layer_map must be a list of pairs [student layer, teacher layer], got {layer_map}; "
            "leave it out for the uniform map"
        )


def mapped_layers(
    layer_map: list[list[int]] | None, student_depth: int, teacher_depth: int, *, first: int
) -> list[tuple[int, int]]:
    """Return the pairs of layers to compare, counted from the start; layers out of range are refused.

    Args:
        layer_map: Pairs `[student layer, teacher layer]`; None is TinyBERT's uniform map, student layer i with teacher
            layer i · L_t / L_s.
        student_depth: Blocks of the student.
        teacher_depth: Blocks of the teacher; a multiple of the student's for the uniform map.
        first: The first layer: 0, the embeddings' output, or 1, the first block.
    """
    if layer_map is None:
        if teacher_depth % student_depth:
            raise ValueError(
                f"there is no uniform map from {student_depth} student layers to {teacher_depth} teacher layers; "
                "write layer_map as pairs [student layer, teacher layer]"
            )
        return [(layer, layer * (teacher_depth // student_depth)) for layer in range(first, student_depth + 1)]
    return [
        (
            layer_number(f"layer_map pair {pair}: student", pair[0], student_depth, first=first),
            layer_number(f"layer_map pair {pair}: teacher", pair[1], teacher_depth, first=first),
        )
        for pair in layer_map
    ]


def layer_number(whose: str, number: int, depth: int, *, first: int) -> int:
    """Return a layer's number counted from the start, if it exists; negative numbers count from the end."""
    if not (first <= number <= depth or first - depth - 1 <= number <= -1):
        lowest, note = ("0 (embeddings)", "") if first == 0 else ("1", "; the embeddings (0) do not attend")
        raise ValueError(
            f"{whose} layer {number} is out of range; it has layers {lowest} to {depth}, or -1 down to "
            f"{first - depth - 1} from the end{note}"
        )
    return number if number >= 0 else depth + 1 + number
