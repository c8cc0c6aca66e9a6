"""Pseudo-log-likelihoods: what a masked language model gives a sentence, every token masked in its turn.

`PLL(w) = Σ_t log p(w_t | w without t)` (Salazar et al. 2020, arXiv 1910.14659, section 2). With `within_word`, the
tokens to the right of t in the same word are masked too, so that a word of many pieces is not scored by giving most of
it away (Kauf and Ivanova 2023, arXiv 2305.10588, section 3: PLL-word-l2r).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_distil.commands.networks import MaskedLM, flat_batch
from lit_distil.console import progress_bar
from lit_distil.data.encoding import TextEncoder
from lit_distil.tasks import Features

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PseudoLikelihoods:
    """Of N texts.

    Attributes:
        totals: float64 `[N]`, the sum over the tokens of a text, in nats.
        num_tokens: int64 `[N]`, tokens that were scored; special tokens are not.
    """

    totals: NDArray[np.float64]
    num_tokens: Ints

    @property
    def perplexities(self) -> NDArray[np.float64]:
        """float64 `[N]`: pseudo-perplexity of each text, `exp(-PLL / tokens)`."""
        return np.exp(-self.totals / self.num_tokens)

    @property
    def corpus_perplexity(self) -> float:
        """Pseudo-perplexity of all texts, every token with the same weight (Salazar et al., section 2.3)."""
        return float(np.exp(-self.totals.sum() / self.num_tokens.sum()))


@torch.inference_mode()
def pseudo_likelihoods(
    model: MaskedLM,
    texts: Sequence[str],
    *,
    places: Sequence[str],
    within_word: bool = False,
    tokens_per_batch: int = 4096,
) -> PseudoLikelihoods:
    """Score texts, each of them one sequence.

    Args:
        model: What scores them.
        texts: One or more.
        places: What a message calls each text.
        within_word: Mask also what follows in the same word.
        tokens_per_batch: Most tokens of a flat batch, the copies of a text counted one by one; at least one copy.

    Raises:
        ValueError: A text is too long or has no tokens, or `tokens_per_batch` is not positive.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    features = model.encode(texts, places=places)
    scored = [_scored_positions(model, feature) for feature in features]
    word_starts = _word_starts(model, texts, scored, places) if within_word else None
    totals = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda i: -len(features[i].input_ids))
    num_copies = sum(len(positions) for positions in scored)
    with progress_bar(total=num_copies, desc="scoring", unit="token") as bar:
        for chunk in _chunks(features, scored, order, tokens_per_batch):
            owners = np.concatenate([np.full(len(positions), text) for text, positions in chunk])
            values = _log_probabilities(model, features, word_starts, chunk)
            np.add.at(totals, owners, values)
            bar.update(len(owners))
    return PseudoLikelihoods(totals, np.array([len(positions) for positions in scored], dtype=np.int64))


def _chunks(
    features: Sequence[Features], scored: Sequence[Ints], order: Sequence[int], tokens_per_batch: int
) -> Iterator[list[tuple[int, Ints]]]:
    """Batches of (text, positions to mask one at a time), the longest texts first so that like lengths meet."""
    chunk: list[tuple[int, Ints]] = []
    room = tokens_per_batch
    for text in order:
        length, left = len(features[text].input_ids), scored[text]
        while len(left):
            if chunk and room < length:
                yield chunk
                chunk, room = [], tokens_per_batch
            taken = left[: max(1, room // length)]
            chunk.append((text, taken))
            room -= len(taken) * length
            left = left[len(taken) :]
    if chunk:
        yield chunk


def _log_probabilities(
    model: MaskedLM,
    features: Sequence[Features],
    word_starts: Sequence[NDArray[np.bool_]] | None,
    chunk: Sequence[tuple[int, Ints]],
) -> NDArray[np.float64]:
    """float64 `[copies]`: log-probability of the token that each copy hides."""
    copies, labels, rows = [], [], []
    start = 0
    for text, positions in chunk:
        feature = features[text]
        for position in positions.tolist():
            ids = feature.input_ids.copy()
            labels.append(ids[position])
            rows.append(start + position)
            end = position + 1
            if word_starts is not None:
                following = np.flatnonzero(word_starts[text][end:])
                end += int(following[0])  # a special token ends the last word
            ids[position:end] = model.tokenizer.mask_token_id
            copies.append(Features(input_ids=ids, token_type_ids=feature.token_type_ids, label=None))
            start += len(ids)
    batch = flat_batch(copies, device=model.device)
    logits: Any = model.network(batch, rows=torch.tensor(rows, device=model.device)).logits
    return _at_labels(logits, torch.tensor(labels, device=model.device)).cpu().numpy()


def _at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 `[rows]`, the log-softmax at the labels."""
    chosen = logits.float().log_softmax(-1).gather(1, labels[:, None])
    return chosen[:, 0].to(torch.float64) if logits.device.type != "mps" else chosen[:, 0]


def _scored_positions(model: MaskedLM, feature: Features) -> Ints:
    """Every token but those that the tokenizer put around the text."""
    around = {getattr(model.tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos")}
    return np.flatnonzero(~np.isin(feature.input_ids, [index for index in around if index is not None]))


def _word_starts(
    model: MaskedLM, texts: Sequence[str], scored: Sequence[Ints], places: Sequence[str]
) -> list[NDArray[np.bool_]]:
    """For each text bool `[length]`, whether a token begins a word; special tokens do."""
    _, starts, lengths = TextEncoder(model.tokenizer)(list(texts))
    found = []
    for place, of_text, positions in zip(places, np.split(starts, np.cumsum(lengths)[:-1]), scored, strict=True):
        if len(of_text) != len(positions):
            raise ValueError(f"{place}: it holds a special token, so its words are not known; leave within_word out")
        whole = np.ones(int(positions[-1]) + 2, dtype=bool)
        whole[positions] = of_text
        found.append(whole)
    return found
