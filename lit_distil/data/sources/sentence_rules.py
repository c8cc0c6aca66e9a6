"""Text to sentences by pysbd's rules, in windows, and without the rules that cannot change the result.

This file imports neither torch nor transformers, so that worker processes start quickly (see `corpus/engine.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

WINDOW = 800  # characters; pysbd needs more than twice the time for twice the text
_LARGEST_WINDOW = 6400
# text without a mark that can end a sentence or begin a list item needs no splitting
_IS_PLAIN = re.compile(r"[A-Za-z0-9 ,'-]*[^\W_]?[.!?]?").fullmatch
# errors that pysbd's rules raise on odd text, such as an item number that is not a number
_PYSBD_ERRORS = (IndexError, ValueError, KeyError, TypeError, AttributeError, re.error)
# a word up to its first period, where pysbd could find an abbreviation
_WORDS_BEFORE_PERIODS = re.compile(r"(?:^|(?<=\s))([^\s.]+)(?=\.)").findall
# characters that a regular expression treats as an i, k or s, but `lower` does not
_HAS_ODD_CASE = re.compile("[\u0130\u0131\u017f\u212a]").search


class SentenceCutter:
    """Splits text into sentences.

    Args:
        language: ISO 639-1 code of the text's language, one that pysbd knows.
    """

    def __init__(self, language: str) -> None:
        import pysbd

        self._segmenter = pysbd.Segmenter(language=language, clean=False)
        self._segmenter.language_module = _with_fewer_searches(self._segmenter.language_module)

    def __call__(self, texts: list[str]) -> tuple[list[list[str]], int]:
        """The sentences of each text, and the number of pieces of text on which pysbd failed."""
        found = [self._cut(text) for text in texts]
        return [sentences for sentences, _ in found], sum(failures for _, failures in found)

    def _cut(self, text: str) -> tuple[list[str], int]:
        # a long text is split in windows; a window's last sentence may be incomplete, so the next begins with it
        sentences: list[str] = []
        failures = start = 0
        window = WINDOW
        while len(text) - start > window:
            space = text.rfind(" ", start + window // 2, start + window)
            end = space if space > 0 else start + window
            starts, has_failed = self._starts(text[start:end])
            failures += has_failed
            if len(starts) == 1 and window < _LARGEST_WINDOW:
                window *= 2
                continue
            # a sentence that fills the largest window is cut at the end of the window
            bounds = [*starts, end - start] if len(starts) == 1 else starts
            sentences += _pieces(text[start:end], bounds)
            start += bounds[-1]
            window = WINDOW
        starts, has_failed = self._starts(text[start:])
        sentences += _pieces(text[start:], [*starts, len(text) - start])
        return sentences, failures + has_failed

    def _starts(self, text: str) -> tuple[list[int], bool]:
        """Where the sentences of a text begin (the first at 0), and whether pysbd failed."""
        if _IS_PLAIN(text):
            return [0], False
        try:
            # `segment` would search the whole text for every sentence, and drop those that it does not find
            found = self._segmenter.processor(text).process()
        except _PYSBD_ERRORS:
            return [0], True
        starts, position = [0], 0
        for sentence in found:
            place = text.find(sentence.strip(), position)
            # a sentence altered by the rules cannot be found, and stays with the one before
            if place >= position and sentence.strip():
                if place > 0:
                    starts.append(place)
                position = place + len(sentence.strip())
        return starts, False


def _pieces(text: str, bounds: list[int]) -> Iterator[str]:
    """The non-blank parts between the bounds."""
    for start, end in pairwise(bounds):
        if piece := text[start:end].strip():
            yield piece


def _with_fewer_searches(language: Any) -> Any:
    """A pysbd language that gives the same sentences, without most of its searches for abbreviations.

    For each abbreviation that is part of any word of the text, pysbd searches the text for words that begin with it,
    and then for those before a period. This language searches only for abbreviations that are a whole word before a
    period. Languages with their own rule for that period are left unchanged.
    """
    from pysbd.abbreviation_replacer import AbbreviationReplacer

    kind = getattr(language, "AbbreviationReplacer", AbbreviationReplacer)
    own = ("search_for_abbreviations_in_string", "scan_for_replacements", "replace_period_of_abbr")
    if any(getattr(kind, name) is not getattr(AbbreviationReplacer, name) for name in own):
        return language
    rules = language.Abbreviation
    # pysbd treats the others as regular expressions, intended or not
    plain = {abbr: abbr.strip() for abbr in rules.ABBREVIATIONS if abbr.strip().isascii() and abbr.strip().isalnum()}

    class Replacer(kind):  # type: ignore[misc, valid-type]
        def search_for_abbreviations_in_string(self, text: str) -> str:
            if _HAS_ODD_CASE(text):
                return str(super().search_for_abbreviations_in_string(text))
            found = set(_WORDS_BEFORE_PERIODS(text.lower()))
            whole = vars(self)["lang"]
            some = SimpleNamespace(
                ABBREVIATIONS=[abbr for abbr in rules.ABBREVIATIONS if abbr not in plain or plain[abbr] in found],
                PREPOSITIVE_ABBREVIATIONS=rules.PREPOSITIVE_ABBREVIATIONS,
                NUMBER_ABBREVIATIONS=rules.NUMBER_ABBREVIATIONS,
            )
            self.lang = SimpleNamespace(Abbreviation=some)
            try:
                return str(super().search_for_abbreviations_in_string(text))
            finally:
                self.lang = whole

    return type(language.__name__, (language,), {"AbbreviationReplacer": Replacer})
