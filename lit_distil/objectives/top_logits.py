"""The logits of a teacher of which only the most likely tokens were kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TopLogits:
    """A cached teacher's logits: the k largest of each row, and the total mass of the others.

    Attributes:
        ids: int64 `[rows, k]`, the entries with the largest logits, the largest first.
        scores: `[rows, k]`, their logits minus the largest.
        rests: `[rows, temperatures]`, `log Σ exp((z − largest) / T)` over the other entries.
        temperatures: The values of T in `rests`.
        vocabulary_size: Number of entries in a full row.
    """

    ids: Tensor
    scores: Tensor
    rests: Tensor
    temperatures: tuple[float, ...]
    vocabulary_size: int

    @staticmethod
    def of(logits: Tensor, k: int, temperatures: tuple[float, ...]) -> TopLogits:
        """The k largest of logits `[rows, vocabulary]`, and the mass of the others at these temperatures."""
        values, ids = logits.topk(k, dim=-1)
        largest = values[:, :1]
        others = (logits - largest).scatter_(-1, ids, -math.inf)
        rests = [torch.logsumexp(others / temperature, -1) for temperature in temperatures]
        return TopLogits(ids, values - largest, torch.stack(rests, -1), temperatures, logits.shape[-1])

    def logits(self, temperature: float = 1.0, *, rows: slice = slice(None), student: Tensor | None = None) -> Tensor:
        """All logits of some rows, `[rows, vocabulary]`, minus each row's largest, in float32 or wider.

        The other entries share their mass at this temperature evenly or, if the student's logits for these rows are
        given, in the student's proportions. A divergence from the student then treats them as one outcome.

        Raises:
            ValueError: The mass of the others is not known at this temperature.
        """
        ids, scores = self.ids[rows], self.scores[rows]
        scores = scores.to(torch.promote_types(scores.dtype if student is None else student.dtype, torch.float32))
        num_others = self.vocabulary_size - ids.shape[1]
        if num_others == 0:
            return scores.new_empty(len(ids), self.vocabulary_size).scatter_(-1, ids, scores)
        if temperature not in self.temperatures:
            raise ValueError(
                f"temperature {temperature:g}: the mass beyond the {ids.shape[1]} most likely tokens is known at "
                f"{list(self.temperatures)} only; take one of these, or write the cache anew for it"
            )
        rest = self.rests[rows, self.temperatures.index(temperature), None].to(scores.dtype)
        if student is None:
            even = (rest - math.log(num_others)) * temperature
            return even.repeat(1, self.vocabulary_size).scatter_(-1, ids, scores)
        logits = student.detach().to(scores.dtype, copy=True).scatter_(-1, ids, -math.inf)
        mass = torch.logsumexp(logits / temperature, -1, keepdim=True)
        return logits.add_((rest - mass) * temperature).scatter_(-1, ids, scores)
