"""What is known of a network before it has seen a batch: what objectives are checked against before the first step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkFacts:
    """A network as its configuration describes it.

    Attributes:
        model_type: Its architecture.
        num_layers: Its blocks.
        width: Of the hidden states.
        num_heads: Attention heads of a block; None where the configuration does not say.
        num_key_heads: Heads of keys and values, a divisor of `num_heads`.
        head_width: Dimensions of a head.
        windows: Of each block: tokens i and j see each other if |i − j| < window; None means all of a sequence do.
        no_attention: Why it cannot hand over queries, keys and values, and the way out; None if it can.
        has_next_sentence: Whether it has a next-sentence head.
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

    def window(self, block: int) -> int | None:
        """Of a block, counted from 1."""
        return self.windows[block - 1] if self.windows else None

    @property
    def relation_widths(self) -> dict[str, int]:
        """Width of queries, keys and values laid end to end, by relation; empty where the heads are not known."""
        if self.num_heads is None or self.num_key_heads is None or self.head_width is None:
            return {}
        queries, keys = self.num_heads * self.head_width, self.num_key_heads * self.head_width
        return {"qk": queries, "qq": queries, "kk": keys, "vv": keys}
