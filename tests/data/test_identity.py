from __future__ import annotations

import json

import pytest

from lit_distil.data import DocSentences, FullSentences, SpanMasking, TokenMasking
from lit_distil.files import describe


def test_the_same_settings_give_the_same_words_and_others_do_not() -> None:
    pieces = [
        TokenMasking(0.3),
        TokenMasking(0.15),
        TokenMasking(0.3, patterns=4),
        SpanMasking(0.3),
        DocSentences(),
        FullSentences(),
    ]
    words = [json.dumps(describe(piece)) for piece in pieces]
    assert len(set(words)) == len(pieces)
    assert json.dumps(describe(TokenMasking(0.3))) == words[0]


def test_pieces_within_pieces_are_looked_into() -> None:
    class Holder:
        def __init__(self, rate: float) -> None:
            self.inner, self.values = TokenMasking(rate), [1, (2.5, None), {"a": True}]
            self.names = {"b", "a"}

    first = describe(Holder(0.2))
    assert first != describe(Holder(0.3)) and first == describe(Holder(0.2))
    assert first["values"] == [1, [2.5, None], {"a": True}] and first["names"] == ["'a'", "'b'"]
    assert first["inner"]["rate"] == 0.2 and "TokenMasking" in first["inner"]["class"]


@pytest.mark.parametrize("piece", [TokenMasking(0.3, patterns=2), DocSentences(), None, 3, "text"])
def test_what_is_read_back_is_what_was_written(piece: object) -> None:
    """A manifest is compared with one that went through a file."""
    assert json.loads(json.dumps(describe(piece))) == describe(piece)
