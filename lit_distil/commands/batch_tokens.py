"""Token ids as a person reads them: with the spaces that stood in the text, and nothing that acts on a screen."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "→"}


class TokenTexts:
    """The text of every token id of a tokenizer, each worked out once.

    Args:
        tokenizer: Byte-level, SentencePiece or WordPiece.
        special_ids: Ids that stand for no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_ids: set[int]) -> None:
        self.tokenizer = tokenizer
        self.special_ids = special_ids
        vocabulary = tokenizer.get_vocab()
        # byte-level and SentencePiece vocabularies mark the space before a word, WordPiece its absence
        self._marks_spaces = "Ġ" in vocabulary or any(token.startswith(("Ġ", "▁")) for token in vocabulary)
        self._known: dict[int, tuple[str, bool]] = {}

    def __call__(self, token_id: int) -> tuple[str, bool]:
        """The token's text, never empty and printable throughout, and whether a space stands before it."""
        if token_id not in self._known:
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def text(self, token_id: int) -> str:
        """The token's text alone."""
        return self(token_id)[0]

    def _read(self, token_id: int) -> tuple[str, bool]:
        token = str(self.tokenizer.convert_ids_to_tokens(token_id))
        if token_id in self.special_ids:
            return printable(token), True
        if not self._marks_spaces:
            goes_on = token.startswith("##") and len(token) > 2
            return printable(token[2:] if goes_on else token), not goes_on
        begins = token.startswith(("Ġ", "▁"))
        settings: Any = {"clean_up_tokenization_spaces": False}
        text = str(self.tokenizer.decode([token_id], **settings))
        if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character: its bytes as the vocabulary writes them
            text = token[1:] if begins and len(token) > 1 else token
        elif not text.strip(" "):  # spaces that are a token of their own
            return "␣" * max(1, len(text)), False
        return printable(text.removeprefix(" ")), begins


def printable(text: str) -> str:
    """The text with what has no shape of its own made visible: line ends, escape characters, changes of direction."""
    if text.isprintable():
        return text
    return "".join(
        _VISIBLE.get(letter) or (letter if letter.isprintable() else letter.encode("unicode_escape").decode())
        for letter in text
    )
