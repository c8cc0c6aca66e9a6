"""Units that are sentences: text whose units are paragraphs, cut by pysbd's rules."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

from lit_distil.data.sources import DocumentSource, Split

_WINDOW = 800  # characters; pysbd's time grows faster than the text
_LARGEST_WINDOW = 6400
# without a mark that can end a sentence or begin an item of a list there is nothing to cut
_IS_PLAIN = re.compile(r"[A-Za-z0-9 ,'-]*[^\W_]?[.!?]?").fullmatch
# what its rules let through on odd text, such as an item number that is no number
_PYSBD_ERRORS = (IndexError, ValueError, KeyError, TypeError, AttributeError, re.error)


class Sentences(DocumentSource):
    """Another source's documents with every unit cut into sentences, for text that is not cut yet.

    `SegmentPair`, `SentencePair`, `FullSentences` and `DocSentences` take a unit for a sentence. The rules are pysbd's
    (Sadvilkar and Neumann 2020, "PySBD: Pragmatic Sentence Boundary Disambiguation"), which know abbreviations,
    numbers, lists and quotations of each language. No character but white space between sentences is lost. A sentence
    never goes on in the next unit, so units should be paragraphs and not lines of a fixed width.

    About 0.3 MB of English text a second (measured on one core of a two-core AMD EPYC server), whatever the length of
    the units.

    Args:
        source: Where the documents come from.
        language: ISO 639-1 code of the text's language, one that pysbd knows: `en`, `de`, `fr`, ...
    """

    def __init__(self, source: DocumentSource, *, language: str) -> None:
        if language not in (known := _languages()):
            raise ValueError(f"source.language: pysbd has no rules for {language!r}; it has {sorted(known)}")
        if not isinstance(source, DocumentSource):
            raise ValueError(f"source.source: {type(source).__name__} gives no documents")
        self.source, self.language = source, language

    def documents(self, split: Split) -> Iterator[list[str]]:
        """The same documents, with sentences for units."""
        num_failures = 0
        for document in self.source.documents(split):
            sentences: list[str] = []
            for unit in document:
                found, failures = self._cut(unit)
                sentences += found
                num_failures += failures
            yield sentences
        if num_failures:
            warnings.warn(
                f"source.language: pysbd could not cut {num_failures} pieces of text, which stand uncut", stacklevel=2
            )

    def fingerprint(self, split: Split) -> str:
        """Of the source's own, the language and pysbd's version."""
        import importlib.metadata

        settings = [self.source.fingerprint(split), self.language, importlib.metadata.version("pysbd"), _WINDOW]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    @cached_property
    def _segmenter(self) -> Any:
        import pysbd

        return pysbd.Segmenter(language=self.language, clean=False)

    def _cut(self, text: str) -> tuple[list[str], int]:
        """The sentences of a unit, and how many pieces of it pysbd failed on.

        A long text goes through in windows. The last sentence of a window may be cut by its end, so that the next
        window begins with it.
        """
        sentences: list[str] = []
        failures = start = 0
        window = _WINDOW
        while len(text) - start > window:
            space = text.rfind(" ", start + window // 2, start + window)
            end = space if space > 0 else start + window
            starts, has_failed = self._starts(text[start:end])
            failures += has_failed
            if len(starts) == 1 and window < _LARGEST_WINDOW:
                window *= 2
                continue
            # a sentence that fills the largest window is cut where the window ends
            bounds = [*starts, end - start] if len(starts) == 1 else starts
            sentences += _pieces(text[start:end], bounds)
            start += bounds[-1]
            window = _WINDOW
        starts, has_failed = self._starts(text[start:])
        sentences += _pieces(text[start:], [*starts, len(text) - start])
        return sentences, failures + has_failed

    def _starts(self, text: str) -> tuple[list[int], bool]:
        """Where the sentences of a text begin, 0 the first, and whether pysbd failed."""
        if _IS_PLAIN(text):
            return [0], False
        try:
            # `segment` would look every sentence up in the whole text, and lose those that it does not find
            found = self._segmenter.processor(text).process()
        except _PYSBD_ERRORS:
            return [0], True
        starts, position = [0], 0
        for sentence in found:
            place = text.find(sentence.strip(), position)
            # what the rules have altered cannot be found, and stays with the sentence before
            if place >= position and sentence.strip():
                if place > 0:
                    starts.append(place)
                position = place + len(sentence.strip())
        return starts, False


def _pieces(text: str, bounds: list[int]) -> Iterator[str]:
    """The stretches between bounds that are not blank."""
    for start, end in pairwise(bounds):
        if piece := text[start:end].strip():
            yield piece


def _languages() -> dict[str, Any]:
    import pysbd.languages

    return dict(pysbd.languages.LANGUAGE_CODES)
