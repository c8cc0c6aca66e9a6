"""Masks as their definitions say, in plain Python and one token at a time."""

import math
import zlib
from itertools import accumulate

import numpy as np

from lit_distil.data.masking import (
    FrequencyMasking,
    MaskingStrategy,
    MixedMasking,
    NgramMasking,
    SpanMasking,
    TokenMasking,
    TokenView,
)
from lit_distil.data.randomness import hash_words

LOW = 0xFFFFFFFF


def mix(word: int) -> int:
    """lowbias32 (Wellons 2018)."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & LOW
    word = ((word ^ (word >> 15)) * 0x846CA68B) & LOW
    return word ^ (word >> 16)


class Sequence:
    """One sequence of a view, and its draws."""

    def __init__(self, view: TokenView, number: int, seed: int, pattern: int) -> None:
        here = slice(view.starts[number], view.starts[number] + view.lengths[number])
        self.vocabulary = view.vocabulary
        self.ids, self.maskable = view.ids[here].tolist(), view.maskable[here].tolist()
        self.length, self.key = len(self.ids), hash_words(seed, int(view.sample_ids[number]), pattern)
        self.words: list[list[int]] = []
        for index, begins in enumerate(view.word_starts[here].tolist()):
            is_joined = index > 0 and not begins and self.maskable[index] and self.maskable[index - 1]
            if is_joined:
                self.words[-1].append(index)
            else:
                self.words.append([index])

    def draw(self, stream: str, index: int) -> int:
        begin = int(hash_words(self.key ^ np.uint64(zlib.crc32(stream.encode())))[0]) >> 32
        return mix((begin + index * 0x9E3779B9) & LOW)

    def budget(self, strategy: MaskingStrategy) -> int:
        count = {
            "exact": lambda: round(strategy.rate * self.length),
            "stochastic": lambda: math.floor(strategy.rate * self.length + self.draw("count", 0) / 2**32),
            "independent": lambda: sum(
                self.draw("count", index) / 2**32 < strategy.rate
                for index in range(self.length)
                if self.maskable[index]
            ),
        }[strategy.count]()
        return min(max(count, 1), strategy.max_predictions or self.length, sum(self.maskable))

    def choose(self, strategy: MaskingStrategy, counts: np.ndarray) -> dict[int, int]:
        """The chosen tokens, each with its leader."""
        budget, text = self.budget(strategy), [word for word in self.words if self.maskable[word[0]]]
        tokens = [index for index in range(self.length) if self.maskable[index]]
        chosen: dict[int, int] = {}
        if isinstance(strategy, TokenMasking):
            return {index: index for index in sorted(tokens, key=lambda index: self.draw("order", index))[:budget]}
        if isinstance(strategy, FrequencyMasking):
            slowness = np.maximum(counts, 1).astype(np.float64) ** strategy.smoothing
            times = {i: -math.log1p(-self.draw("order", i) / 2**32) * slowness[self.ids[i]] for i in tokens}
            return {index: index for index in sorted(tokens, key=lambda index: np.float32(times[index]))[:budget]}
        if isinstance(strategy, SpanMasking):
            for span in self.spans(strategy, text, budget):
                fitting = [word for n, word in enumerate(span) if len(chosen) + sum(map(len, span[: n + 1])) <= budget]
                chosen |= {index: span[0][0] for word in fitting for index in word}
                if len(fitting) < len(span):
                    break
        else:
            numbers = sorted(range(len(self.words)), key=lambda number: self.draw("order", number))
            for word in (self.words[number] for number in numbers if self.words[number] in text):
                if len(chosen) + len(word) <= budget:
                    chosen |= {index: index for index in word}
        if not chosen and text:
            shortest = min(text, key=len)[: strategy.max_predictions]
            chosen = {index: index for index in shortest}
        return chosen

    def spans(self, strategy: SpanMasking, text: list[list[int]], budget: int) -> list[list[list[int]]]:
        """The words of each span, in the order of drawing."""
        bounds, sizes = list(accumulate(strategy.length_probabilities.tolist()[:-1])), []
        while sum(sizes) < min(budget, len(text)):
            u = self.draw("length", len(sizes)) / 2**32
            sizes.append(min(1 + sum(u >= bound for bound in bounds), len(text) - sum(sizes)))
        slots = sorted(range(len(text) - sum(sizes) + len(sizes)), key=lambda slot: self.draw("place", slot))
        found = []
        for slot, size in zip(slots, sizes, strict=False):
            before = [sizes[other] - 1 for other in range(len(sizes)) if slots[other] < slot]
            words = text[slot + sum(before) :][:size]
            joined = [words[0]]
            for word in words[1:]:
                if word[0] != joined[-1][-1] + 1:
                    break
                joined.append(word)
            found.append(joined)
        return found

    def masked(self, strategy: MaskingStrategy, counts: np.ndarray) -> tuple[list[int], list[int]]:
        """The ids that the network sees, and where they are to be predicted."""
        if isinstance(strategy, MixedMasking):
            bounds = list(accumulate(strategy.weights[:-1]))
            u = self.draw("strategy", 0) / 2**32
            inner = strategy.strategies[sum(u >= bound / sum(strategy.weights) for bound in bounds)]
            return self.masked(inner, counts)
        special = set() if strategy.random_from_special else set(self.vocabulary.special_ids.values())
        ordinary = [token for token in range(self.vocabulary.size) if token not in special]
        is_shared = isinstance(strategy, SpanMasking) and not isinstance(strategy, NgramMasking)
        ids, chosen = list(self.ids), self.choose(strategy, counts)
        for index, leader in chosen.items():
            fate = self.draw("span", leader) if is_shared else self.draw("action", index)
            if fate / 2**32 < strategy.mask_share:
                ids[index] = self.vocabulary.special_ids["mask_token_id"]
            elif fate / 2**32 < strategy.mask_share + strategy.random_share:
                ids[index] = ordinary[mix(self.draw("action", index)) * len(ordinary) >> 32]
        return ids, sorted(chosen)
