"""Loading a tokenizer from whatever a folder holds, and what the networks need to know of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_distil.data.sources.text import near_names
from lit_distil.files import hash_of
from lit_distil.types import Vocabulary

# how BERT and RoBERTa name their special tokens, for folders that do not say
_BERT_NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_NEEDED = {
    "mask_token": "to hide words behind",
    "pad_token": "to fill batches with",
    "cls_token": "to begin a sequence with",
    "sep_token": "to end a sequence with",
}
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.")
_STANDS_IN = {"cls_token": "bos_token", "sep_token": "eos_token"}


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer from a folder or from the Hub.

    A folder needs no `tokenizer_config.json`: `tokenizer.json` or a BERT `vocab.txt` alone will do. Its special tokens
    are then known by their usual names, and a `vocab.txt` is cased if an entry has a capital letter.

    Args:
        name: Folder, or name on the Hub.
        revision: Commit, tag or branch on the Hub.

    Raises:
        ValueError: There is none, or it is not a fast one, or it lacks a mask, padding, first or last token.
    """
    folder = Path(name)
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" in held and not held & {"tokenizer_config.json", "config.json"}:
        tokenizer = _from_tokenizer_file(folder / "tokenizer.json")
    elif "vocab.txt" in held and not held & {"tokenizer_config.json", "config.json", "tokenizer.json"}:
        tokenizer = _from_vocabulary_file(folder / "vocab.txt")
    else:
        tokenizer = _from_pretrained(name, revision)
    if not tokenizer.is_fast:
        raise ValueError(f"data.tokenizer: {name!r} has no fast tokenizer (tokenizer.json)")
    for field, purpose in _NEEDED.items():
        if getattr(tokenizer, field) is None and getattr(tokenizer, _STANDS_IN.get(field, field)) is None:
            raise ValueError(
                f"data.tokenizer: {name!r} has no {field} ({purpose}); it has {tokenizer.special_tokens_map}. Take a "
                "tokenizer of a BERT or RoBERTa kind (`lit-distil tokenizer` trains one), or add the token to it"
            )
    return tokenizer


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Size and special ids of a tokenizer."""
    names = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return Vocabulary(
        size=len(tokenizer), special_ids={name: value for name, value in ids.items() if value is not None}
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides how text becomes tokens."""
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()  # a call's settings, which a corpus does not depend on
    backend.no_padding()
    return hash_of(backend.to_str())


def _from_pretrained(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    folder = Path(name)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if folder.is_dir() and not any(name.startswith(_FILES) or name.endswith(".model") for name in held):
        raise ValueError(
            f"data.tokenizer: the folder {name!r} holds no tokenizer (tokenizer.json or vocab.txt), only {held[:8]}"
        )
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"data.tokenizer: no tokenizer {name!r} ({str(error).splitlines()[0]}){near_names(folder)}. Give a folder "
            "that holds tokenizer.json or vocab.txt (`lit-distil tokenizer` trains one), or, with a network, a Hub name"
        ) from error


def _from_tokenizer_file(path: Path) -> PreTrainedTokenizerBase:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"data.tokenizer: {str(path)!r} is not a tokenizer ({error})") from error
    names = next(
        (names for names in (_BERT_NAMES, _ROBERTA_NAMES) if backend.token_to_id(names["mask_token"]) is not None), {}
    )
    known = {field: token for field, token in names.items() if backend.token_to_id(token) is not None}
    settings = json.loads(backend.to_str())
    normalizer = settings["normalizer"] or {}
    if known == _BERT_NAMES and settings["model"]["type"] == "WordPiece" and normalizer.get("type") == "BertNormalizer":
        # BERT's own class tells the segments of a pair apart, which the general one does not
        return BertTokenizer(
            vocab=backend.get_vocab(),
            do_lower_case=normalizer["lowercase"],
            strip_accents=normalizer["strip_accents"],
            tokenize_chinese_chars=normalizer["handle_chinese_chars"],
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **known)


def _from_vocabulary_file(path: Path) -> PreTrainedTokenizerBase:
    entries = path.read_text(encoding="utf-8").splitlines()
    if missing := [token for token in _BERT_NAMES.values() if token not in entries]:
        raise ValueError(f"data.tokenizer: {str(path)!r} is no BERT vocabulary: it has no {missing}")
    is_cased = any(letter.isupper() for entry in entries if not entry.startswith("[") for letter in entry)
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, do_lower_case=not is_cased)
