"""Units that are sentences: text whose units are paragraphs, cut by pysbd's rules."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from lit_distil.data.corpus.sentence_rules import WINDOW, SentenceCutter
from lit_distil.data.corpus.worker_pool import WorkerPool, results_in_order
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.files import hash_values

_BATCH_CHARACTERS = 50_000  # a fraction of a second

_Units = tuple[list[str], list[bool]]
"""Texts of units, and whether each is the last of its document."""
_Cut = tuple[list[list[str]], int]
"""Sentences of each unit, and how many pieces could not be cut."""


class Sentences(DocumentSource):
    """Another source's documents with every unit cut into sentences, for text that is not cut yet.

    `SegmentPair`, `SentencePair`, `FullSentences` and `DocSentences` take a unit for a sentence. The rules are pysbd's
    (Sadvilkar and Neumann 2020, "PySBD: Pragmatic Sentence Boundary Disambiguation"), which know abbreviations,
    numbers, lists and quotations of each language. No character but white space between sentences is lost. A sentence
    never goes on in the next unit, so units should be paragraphs and not lines of a fixed width.

    About 0.4 MB of English text a second and core (on a two-core AMD EPYC server), whatever the length of the units;
    text that needs no cutting is prepared at ten times that rate. `prepare` and `fit` cut in as many processes as they
    tokenise in (`num_processes`), and the sentences are the same for any number of them.

    Args:
        source: Where the documents come from.
        language: ISO 639-1 code of the text's language, one that pysbd knows: `en`, `de`, `fr`, ...
    """

    def __init__(self, source: DocumentSource, *, language: str) -> None:
        if language not in (known := _languages()):
            raise ValueError(f"source.language: pysbd has no rules for {language!r}; it has {sorted(known)}")
        if not isinstance(source, DocumentSource):
            raise ValueError(f"source.source: {type(source).__name__} gives no documents")
        self.source, self.language, self.num_processes = source, language, 1

    def use_processes(self, number: int) -> None:
        """See `DocumentSource.use_processes`."""
        self.num_processes = number
        self.source.use_processes(number)

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The same documents, with sentences for units."""
        num_failures = 0
        sentences: list[str] = []
        for (_, ends), (cut, failures) in self._cut_in_order(_batches(self.source.documents(split))):
            num_failures += failures
            for found, ends_document in zip(cut, ends, strict=True):
                sentences += found
                if ends_document:
                    yield sentences
                    sentences = []
        if num_failures:
            warnings.warn(
                f"source.language: pysbd could not cut {num_failures} pieces of text, which stand uncut", stacklevel=2
            )

    def _cut_in_order(self, batches: Iterator[_Units]) -> Iterator[tuple[_Units, _Cut]]:
        """Batches of units with their sentences, in order, from this process or from several others."""
        first = list(itertools.islice(batches, 2))
        if self.num_processes == 1 or len(first) < 2:  # one is done before a process has started
            for batch in itertools.chain(first, batches):
                yield batch, self._cutter(batch[0])
            return
        with WorkerPool({"language": self.language}, self.num_processes) as pool:
            ahead = 4 * self.num_processes  # units differ in how long they take
            yield from results_in_order(itertools.chain(first, batches), lambda batch: pool.submit(batch[0]), ahead)

    def fingerprint(self, split: Split) -> str:
        """Of the source's own, the language and pysbd's version."""
        import importlib.metadata

        settings = [self.source.fingerprint(split), self.language, importlib.metadata.version("pysbd"), WINDOW]
        return hash_values(settings)

    @cached_property
    def _cutter(self) -> SentenceCutter:
        return SentenceCutter(self.language)


def _batches(documents: Iterable[list[str]]) -> Iterator[_Units]:
    """Units to cut together, of several documents or of a part of one."""
    units: list[str] = []
    ends: list[bool] = []
    size = 0
    for document in documents:
        # one without units still is a document
        for number, unit in enumerate(document or [""], start=1):
            units.append(unit)
            ends.append(number >= len(document))
            size += len(unit)
            if size >= _BATCH_CHARACTERS:
                yield units, ends
                units, ends, size = [], [], 0
    if units:
        yield units, ends


def _languages() -> dict[str, Any]:
    import pysbd.languages

    return dict(pysbd.languages.LANGUAGE_CODES)
