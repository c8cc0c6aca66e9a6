"""Sentences as units: text whose units are paragraphs, split by pysbd's rules."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator

from lit_distil.data.corpus.engine import results_in_order
from lit_distil.data.sources.base import DocumentSource, Split
from lit_distil.data.sources.sentence_rules import WINDOW, SentenceCutter
from lit_distil.files import hash_values

_BATCH_CHARACTERS = 25_000  # about 60 ms of work


class Sentences(DocumentSource):
    """Another source's documents with every unit split into sentences, for text that is not split yet.

    `SegmentPair`, `SentencePair`, `FullSentences` and `DocSentences` treat each unit as a sentence. The rules are
    pysbd's (Sadvilkar and Neumann 2020, "PySBD: Pragmatic Sentence Boundary Disambiguation"), which know abbreviations,
    numbers, lists and quotations of each language. Only white space between sentences is lost. A sentence never
    continues in the next unit, so units should be paragraphs, not lines of a fixed width.

    One core splits about 0.4 MB of English text per second (on an AMD EPYC server); text that needs no splitting is
    prepared ten times faster. `prepare` and `fit` split with the processes that tokenise (`num_processes`).

    Args:
        source: Where the documents come from.
        language: ISO 639-1 code of the text's language, one that pysbd knows: `en`, `de`, `fr`, ...
    """

    def __init__(self, source: DocumentSource, *, language: str) -> None:
        from pysbd.languages import LANGUAGE_CODES

        if language not in LANGUAGE_CODES:
            raise ValueError(f"source.language: pysbd has no rules for {language!r}; it has {sorted(LANGUAGE_CODES)}")
        if not isinstance(source, DocumentSource):
            raise ValueError(f"source.source: {type(source).__name__} gives no documents")
        self.source, self.language = source, language

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The source's documents, with sentences as units."""
        num_failures = 0
        sentences: list[str] = []
        batches = _batches(self.source.documents(split))
        for ends, (cut, failures) in results_in_order(SentenceCutter, self.language, batches):
            num_failures += failures
            for found, ends_document in zip(cut, ends, strict=True):
                sentences += found
                if ends_document:
                    yield sentences
                    sentences = []
        if num_failures:
            message = f"source.language: pysbd failed on {num_failures} pieces of text, which are left uncut"
            warnings.warn(message, stacklevel=2)

    def check(self, split: Split) -> None:
        """See `DocumentSource.check`."""
        self.source.check(split)

    def fingerprint(self, split: Split) -> str:
        """Hash of the source's fingerprint, the language and pysbd's version."""
        return hash_values([self.source.fingerprint(split), self.language, importlib.metadata.version("pysbd"), WINDOW])


def _batches(documents: Iterable[list[str]]) -> Iterator[tuple[list[bool], list[str]]]:
    """Units to split together, with whether each is the last of its document."""
    units: list[str] = []
    ends: list[bool] = []
    size = 0
    for document in documents:
        # a document without units is still a document
        for number, unit in enumerate(document or [""], start=1):
            units.append(unit)
            ends.append(number >= len(document))
            size += len(unit)
            if size >= _BATCH_CHARACTERS:
                yield ends, units
                units, ends, size = [], [], 0
    if units:
        yield ends, units
