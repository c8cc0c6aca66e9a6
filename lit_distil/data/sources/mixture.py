"""Several sources as one, interleaved by weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.files import hash_values

Measure = Literal["characters", "documents"]
AtTheEnd = Literal["go_on", "stop", "repeat", "first"]


class Mixture(DocumentSource):
    """Several sources, interleaved document by document in an order that never changes and needs no memory.

    The next document comes from the source that has given the least so far, relative to its weight; in a tie, from the
    one named first. So at any point the shares match the weights to within a document.

    Weights, shares, caps and the end of a source apply to the `train` split. The other splits have every document of
    every source once, source after source, so that runs with different mixtures are evaluated on the same text.

    Args:
        sources: Sources by name.
        weights: How much a source gives relative to the others; they need not sum to 1. The default is 1.
        measure: What the weights count: `characters` or `documents`.
        shares: Share of a source's documents to take, by source name, in (0, 1]; evenly spread over the source.
        max_documents: Most documents of a source, by source name.
        max_characters: Most characters of a source, by source name; the first document that would exceed them, and all
            after it, are left out.
        at_the_end: What happens when a source, or the part that its cap allows, ends. `go_on`: the others continue
            without it, and every document is given once. `stop`: the mixture ends there, so the weights hold
            throughout. `repeat`: the source starts again, until each source has ended once. `first`: the mixture ends
            with the source named first; until then the others start again.
    """

    def __init__(
        self,
        sources: dict[str, DocumentSource],
        *,
        weights: dict[str, float] | None = None,
        measure: Measure = "characters",
        shares: dict[str, float] | None = None,
        max_documents: dict[str, int] | None = None,
        max_characters: dict[str, int] | None = None,
        at_the_end: AtTheEnd = "go_on",
    ) -> None:
        if not sources:
            raise ValueError("source.sources: give at least one source, under a name of your choice")
        for name, source in sources.items():
            if not isinstance(source, DocumentSource):
                raise ValueError(f"source.sources.{name}: {type(source).__name__} gives no documents")
        if measure not in get_args(Measure):
            raise ValueError(f"source.measure must be one of {list(get_args(Measure))}, got {measure!r}")
        if at_the_end not in get_args(AtTheEnd):
            raise ValueError(f"source.at_the_end must be one of {list(get_args(AtTheEnd))}, got {at_the_end!r}")
        self.sources, self.measure, self.at_the_end = sources, measure, at_the_end
        self.shares, self.max_documents, self.max_characters = shares or {}, max_documents or {}, max_characters or {}
        self._check("weights", weights or {})
        self._check("shares", self.shares)
        self._check("max_documents", self.max_documents)
        self._check("max_characters", self.max_characters)
        self.has_weights = bool(weights)
        self.weights = {name: float((weights or {}).get(name, 1)) for name in sources}

    def _check(self, field: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self.sources:
                raise ValueError(f"source.{field}: no source {name!r}; there are {list(self.sources)}")
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(
                    f"source.{field}.{name} must be above 0, got {value}; to use none of a source, remove it"
                )
            if field == "shares" and value > 1:
                raise ValueError(f"source.shares.{name} must lie in (0, 1], got {value}")

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The documents of all sources, unchanged."""
        if split != "train":
            for source in self.sources.values():
                yield from source.documents(split)
            return
        parts = [_Part(name, self._capped(name), self.weights[name]) for name in self.sources]
        first, everything = parts[0], [*parts]
        while parts:
            part = min(parts, key=lambda part: part.given / part.weight)
            document = next(part.documents, None)
            if document is not None:
                part.is_empty = False
                part.given += 1 if self.measure == "documents" else sum(map(len, document))
                yield document
                continue
            if part.is_empty:
                warnings.warn(f"source.sources.{part.name}: its train split has no documents", stacklevel=2)
                parts.remove(part)
                if part is first and self.at_the_end == "first":
                    return
                continue
            part.has_ended = True
            ends_here = part is first if self.at_the_end == "first" else all(other.has_ended for other in parts)
            if self.at_the_end == "stop" or (self.at_the_end != "go_on" and ends_here):
                return
            if self.at_the_end == "go_on":
                parts.remove(part)
            else:
                part.documents = self._capped(part.name)
        self._compare_shares(everything)

    def _compare_shares(self, parts: list[_Part]) -> None:
        """Report sources that ended early and so left the others a larger share than their weights."""
        given, weights = sum(part.given for part in parts), sum(part.weight for part in parts)
        shares = {part.name: (part.given / max(given, 1), part.weight / weights) for part in parts}
        if self.has_weights and any(abs(found - wanted) > 0.05 for found, wanted in shares.values()):
            told = ", ".join(f"{name} {found:.0%} ({wanted:.0%})" for name, (found, wanted) in shares.items())
            warnings.warn(
                f"source.weights: sources ended early and the others went on, so the shares, and those of the weights, "
                f"are {told}; at_the_end: first, stop or repeat keeps the weights",
                stacklevel=3,
            )

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        for source in self.sources.values():
            source.check(split)

    def fingerprint(self, split: Split) -> str:
        """Hash of the sources' fingerprints and of the settings."""
        parts = [[name, source.fingerprint(split)] for name, source in self.sources.items()]
        settings = [self.weights, self.measure, self.shares, self.max_documents, self.max_characters, self.at_the_end]
        return hash_values([parts, settings if split == "train" else None])

    def _capped(self, name: str) -> Iterator[list[str]]:
        """The documents of a source up to its cap."""
        share = self.shares.get(name, 1)
        documents, characters = self.max_documents.get(name, math.inf), self.max_characters.get(name, math.inf)
        for index, document in enumerate(self.sources[name].documents("train")):
            if math.floor((index + 1) * share) == math.floor(index * share):
                continue
            documents -= 1
            characters -= sum(map(len, document))
            if documents < 0 or characters < 0:
                return
            yield document


@dataclass
class _Part:
    """A source, and how far it has been read."""

    name: str
    documents: Iterator[list[str]]
    weight: float
    given: float = 0
    is_empty: bool = True
    has_ended: bool = False
