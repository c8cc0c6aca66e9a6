"""Tokenizers: loading and comparing them, and what networks and masks need to know about them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_distil.files import hash_of
from lit_distil.messages import missing_folder, near_names, one_line
from lit_distil.trust import RemoteCodeError, load_pretrained
from lit_distil.types import Vocabulary

# The names of BERT's and RoBERTa's special tokens, for folders that do not give them.
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
_INSTEAD = {"cls_token": "bos_token", "sep_token": "eos_token"}


def load_tokenizer(name: str | PreTrainedTokenizerBase, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer from a folder or from the Hub, or check one that is loaded already.

    A folder needs no `tokenizer_config.json`: a `tokenizer.json` or a BERT `vocab.txt` is enough. The special tokens
    are then found by their usual names, and a `vocab.txt` counts as cased if any entry has a capital letter.

    Args:
        name: Folder, name on the Hub, or a loaded tokenizer.
        revision: Commit, tag or branch on the Hub.

    Raises:
        ValueError: There is no such tokenizer, it is not a fast one, or it has no mask, padding, first or last token.
    """
    tokenizer = name
    if isinstance(tokenizer, str):
        tokenizer = _load(tokenizer, revision)
        tokenizer.name_or_path = name
    called = _name_of(tokenizer)
    if not tokenizer.is_fast:
        raise ValueError(f"data.tokenizer: {called!r} is not a fast tokenizer (one with a tokenizer.json)")
    for field, purpose in _NEEDED.items():
        if getattr(tokenizer, field) is None and getattr(tokenizer, _INSTEAD.get(field, field)) is None:
            raise ValueError(
                f"data.tokenizer: {called!r} has no {field} ({purpose}); it has {tokenizer.special_tokens_map}. Use a "
                "BERT-like or RoBERTa-like tokenizer (`lit-distil tokenizer` trains one), or add the token to it"
            )
    return tokenizer


def _name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Size, special ids and entries of a tokenizer."""
    names = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return Vocabulary(
        size=len(tokenizer),
        special_ids={name: value for name, value in ids.items() if value is not None},
        read_tokens=partial(entries_of, tokenizer),
    )


def entries_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All entries of a tokenizer, by id."""
    return list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that affects how text becomes tokens."""
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()  # set for single calls; a corpus does not depend on it
    backend.no_padding()
    return hash_of(backend.to_str())


def check_same_vocabulary(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, *, role: str) -> None:
    """Refuse tokenizers with different entries or special tokens; the error names the first difference and a fix."""
    our_name, their_name = _name_of(ours), _name_of(theirs)
    if role == "teacher":
        way_out = (
            f"use the teacher's tokenizer (tokenizer: {their_name}), or the same with entries left out, which "
            "`lit-distil vocabulary` makes (words that it added must be added to the teacher too)"
        )
    else:
        way_out = f"use a {role} that was trained with the teacher's tokenizer, or build one from the teacher's layers"
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    different = [token for token in our_ids.keys() | their_ids.keys() if our_ids.get(token) != their_ids.get(token)]
    if different:
        token = min(different, key=lambda t: (min(our_ids.get(t, len(our_ids)), their_ids.get(t, len(their_ids))), t))
        raise ValueError(
            f"data.tokenizer: {our_name!r} ({len(our_ids)} entries) is not the {role}'s vocabulary ({their_name!r}, "
            f"{len(their_ids)} entries): {len(different)} tokens differ, the first {token!r} is "
            f"{our_ids.get(token, 'absent')} here and {their_ids.get(token, 'absent')} there; {way_out}"
        )
    # the same entries can still have different roles
    our_special, their_special = vocabulary_of(ours).special_ids, vocabulary_of(theirs).special_ids
    for special in ("mask_token_id", "pad_token_id", "cls_token_id", "sep_token_id"):
        our_id, their_id = our_special.get(special), their_special.get(special)
        if our_id is not None and their_id is not None and our_id != their_id:
            raise ValueError(
                f"data.tokenizer: {our_name!r} and the {role}'s tokenizer ({their_name!r}) have the same entries, but "
                f"{special} is {our_id} here and {their_id} there; {way_out}"
            )


def _load(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    folder = Path(name)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not {"tokenizer_config.json", "config.json"} & set(held):
        if "tokenizer.json" in held:
            return _from_tokenizer_file(folder / "tokenizer.json")
        if "vocab.txt" in held:
            return _from_vocabulary_file(folder / "vocab.txt")
    if folder.is_dir() and not any(file.startswith(_FILES) or file.endswith(".model") for file in held):
        raise ValueError(
            f"data.tokenizer: the folder {name!r} holds no tokenizer (tokenizer.json or vocab.txt), only {held[:8]}"
        )
    if missing := missing_folder(name):
        raise ValueError(f"data.tokenizer: {missing}. `lit-distil tokenizer --source SOURCE --out FOLDER` trains one")
    try:
        return load_pretrained(AutoTokenizer.from_pretrained, name, revision=revision)
    except RemoteCodeError as error:
        raise ValueError(f"data.tokenizer: {error}") from error
    except Exception as error:  # a damaged folder may raise anything
        raise ValueError(
            f"data.tokenizer: no tokenizer {name!r} ({one_line(error)}){near_names(folder)}. Give a folder "
            "with a tokenizer.json or vocab.txt (`lit-distil tokenizer --source SOURCE --out FOLDER` trains one), or, "
            "when online, a name on the Hub"
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
        # BERT's own class gives the two texts of a pair different token type ids; the general class does not
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
        raise ValueError(f"data.tokenizer: {str(path)!r} is not a BERT vocabulary: it has no {missing}")
    is_cased = any(letter.isupper() for entry in entries if not entry.startswith("[") for letter in entry)
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, do_lower_case=not is_cased)
