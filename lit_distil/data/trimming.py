"""A tokenizer with another vocabulary: entries that a text does not need are removed, and domain words are added.

A text whose tokens are all kept is tokenised as before:

- WordPiece takes the longest entry that fits. With fewer entries to choose from, it still finds the same one.
- BPE applies its merges in order. The entries that a kept one is merged from are kept too, and so are their merges.
- Unigram takes the most likely path. Scores are kept, and so is the lowest of them, which sets the price of an unknown
  character.

Single characters (in byte-level BPE: bytes) and all special and added tokens are kept, so that other text is split into
smaller tokens and nothing becomes unknown that was not. (In WordPiece this assumes that every character has its own
entry, and one that continues a word, as trained vocabularies do. In others, entries with a character that lacks one are
kept, but the pieces before them may end elsewhere.)
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AddedToken, PreTrainedTokenizerBase

from lit_distil.data.corpus.encoding import TextEncoder
from lit_distil.data.tokenizers import entries_of

_TEXTS_AT_A_TIME = 1000
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_KEPT_FILES = ("tokenizer.json", "tokenizer_config.json")
_KINDS = ("WordPiece", "BPE", "Unigram")


@dataclass(frozen=True)
class TokenCounts:
    """How a tokenizer splits a text.

    Attributes:
        tokens: int64 `[vocabulary]`, how often each entry occurs.
        num_words: Words of the text, separated by spaces.
        num_unknown: Tokens that stand for something unknown to the tokenizer.
    """

    tokens: NDArray[np.int64]
    num_words: int
    num_unknown: int

    @property
    def tokens_per_word(self) -> float:
        """The mean number of tokens per word."""
        return float(self.tokens.sum()) / max(self.num_words, 1)


@dataclass(frozen=True)
class Derived:
    """A tokenizer made from another.

    Attributes:
        tokenizer: The new tokenizer.
        sources: For each of its entries, ids of the old tokenizer: the same entry, or the pieces that a new word had.
    """

    tokenizer: PreTrainedTokenizerBase
    sources: list[tuple[int, ...]]


def count_tokens(tokenizer: PreTrainedTokenizerBase, documents: Iterable[list[str]]) -> TokenCounts:
    """Count the tokens of documents, each a list of texts, without special tokens around the texts."""
    encoder = TextEncoder(_json_of(tokenizer))
    counts, num_words = np.zeros(len(tokenizer), dtype=np.int64), 0
    all_texts = chain.from_iterable(documents)
    while texts := list(islice(all_texts, _TEXTS_AT_A_TIME)):
        num_words += sum(len(text.split()) for text in texts)
        counts += np.bincount(encoder(texts).tokens, minlength=len(counts))
    unknown: Any = tokenizer.unk_token_id
    return TokenCounts(counts, num_words, 0 if unknown is None else int(counts[unknown]))


def trim(
    tokenizer: PreTrainedTokenizerBase,
    counts: NDArray[np.int64],
    *,
    size: int | None = None,
    keep: Collection[int] = (),
) -> Derived:
    """Remove the entries that a text needs least.

    The others stay in order. Always kept: special and added tokens, single characters and, in WordPiece, their
    continuations, entries with a character that has no entry of its own, and in BPE what a kept entry is merged from.

    Args:
        tokenizer: A fast tokenizer with a WordPiece, BPE or Unigram model.
        counts: int64 `[vocabulary]`, how often the text has each entry.
        size: Number of entries; if the text uses fewer, the first of the others fill the rest. None keeps only what the
            text uses.
        keep: Ids of further entries to keep.

    Raises:
        ValueError: The model is of another kind, or the size is too small or not smaller.
    """
    state = json.loads(_json_of(tokenizer))
    names = entries_of(tokenizer)
    if size is not None and size >= len(names):
        raise ValueError(f"size={size}: the tokenizer has {len(names)} entries; give a smaller size, or leave it out")
    ids = {name: index for index, name in enumerate(names)}
    parts = _parts_of_entries(state, ids)
    kept = {ids[name] for name in _required(tokenizer, state)} | {*map(int, keep)}
    kept |= set().union(*(_closure(index, parts) for index in [*kept]))
    if size is not None and len(kept) > size:
        raise ValueError(
            f"size={size}: the entries that must stay (special tokens, single characters or bytes) are {len(kept)}; "
            "give a larger size"
        )
    for index in np.argsort(-counts, kind="stable").tolist():
        if size is None and not counts[index]:
            break
        if len(kept) == size:
            break
        with_parts = kept | _closure(index, parts) if index not in kept else kept
        if size is None or len(with_parts) <= size:
            kept = with_parts
    return _with_entries(tokenizer, state, [(name, (ids[name],)) for name in names if ids[name] in kept])


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], *, places: Sequence[str]) -> Derived:
    """Add words of a domain, each as one entry; text without them is tokenised as before.

    In WordPiece a word becomes an entry of the vocabulary, in the tokenizer's own spelling (lower case, for example).
    It is then also found at the beginning of longer words. In BPE and Unigram, whose merges and scores such an entry
    would disturb, it becomes an added token: found only as written, as a whole word, with the space before it.

    Args:
        tokenizer: A fast tokenizer with a WordPiece, BPE or Unigram model.
        words: The words; those that are already one token are skipped.
        places: Where each word came from, for messages.

    Raises:
        ValueError: The model is of another kind, or a word is empty or cannot be an entry.
    """
    state = json.loads(_json_of(tokenizer))
    backend, names = tokenizer.backend_tokenizer, entries_of(tokenizer)
    is_entry = _kind(state) == "WordPiece"
    new: dict[str, tuple[int, ...]] = {}
    known = set(names)
    for place, word in zip(places, words, strict=True):
        text = _one_word(tokenizer, state, word.strip(), place) if is_entry else word.strip()
        pieces = tuple(backend.encode(f" {text}", add_special_tokens=False).ids)
        if not text or not pieces:
            raise ValueError(f"{place}: the tokenizer finds nothing in {word!r}; leave it out")
        is_token = text in known or (len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id)
        if not is_token:
            new.setdefault(text, pieces)
    sources = [(index,) for index in range(len(names))]
    if not is_entry:
        made = copy.deepcopy(tokenizer)
        made.add_tokens([AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in new])
        return Derived(made, [*sources, *new.values()])
    return _with_entries(tokenizer, state, [*zip(names, sources, strict=True), *new.items()], new=new)


def shared_entries(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> list[int] | None:
    """For each entry of `ours`, its id in `theirs`, a larger tokenizer with the same rules.

    None if `ours` is not `theirs` with entries removed.
    """
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    is_part = len(our_ids) < len(their_ids) and our_ids.keys() <= their_ids.keys()
    if not is_part or sorted(our_ids.values()) != list(range(len(our_ids))):
        return None
    rules = [json.loads(_json_of(one)) for one in (ours, theirs)]
    if len({json.dumps([one["normalizer"], one["pre_tokenizer"], one["model"]["type"]]) for one in rules}) > 1:
        return None
    roles = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")
    if any(getattr(ours, f"{role}_token") != getattr(theirs, f"{role}_token") for role in roles):
        return None
    return [their_ids[entry] for entry in sorted(our_ids, key=our_ids.__getitem__)]


def _json_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.backend_tokenizer.to_str())


def _kind(state: dict[str, Any]) -> str:
    kind = state["model"]["type"]
    if kind not in _KINDS:
        raise ValueError(f"network: its tokenizer's model is {kind}, and known are {', '.join(_KINDS)}")
    return str(kind)


def _required(tokenizer: PreTrainedTokenizerBase, state: dict[str, Any]) -> set[str]:
    """The entries that are kept whatever the text."""
    kind, model = _kind(state), state["model"]
    required = {token["content"] for token in state["added_tokens"]} | set(tokenizer.all_special_tokens)
    if kind == "BPE":
        # characters or bytes, and everything else that no merge makes
        made = {product for product, _ in _merges(model)}
        return required | (model["vocab"].keys() - made)
    if kind == "Unigram":
        scores = dict(model["vocab"])
        # transformers' classes expect the unknown token at its old place
        first = [] if model["unk_id"] is None else [name for name, _ in model["vocab"][: model["unk_id"] + 1]]
        required |= {*first, min(scores, key=scores.__getitem__)}
        vocabulary, prefix = scores.keys(), ""
    else:
        vocabulary, prefix = model["vocab"].keys(), model["continuing_subword_prefix"]
    for entry in vocabulary:
        characters = _characters(entry, prefix)
        has_own = all(character in vocabulary for character in characters)
        if len(characters) == 1 or not has_own or _BYTE.fullmatch(entry):
            required.add(entry)
    return required


def _characters(entry: str, prefix: str) -> list[str]:
    """The single-character entries that an entry could be split into."""
    if prefix and entry.startswith(prefix) and entry != prefix:
        return [prefix + character for character in entry.removeprefix(prefix)]
    return [entry[:1], *(prefix + character for character in entry[1:])]


def _merges(model: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each merge of a BPE model: the entry that it makes, and its two parts."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first + second.removeprefix(prefix), (first, second)


def _parts_of_entries(state: dict[str, Any], ids: dict[str, int]) -> dict[int, set[int]]:
    """For each entry of a BPE model, the entries that it is merged from; empty for other models."""
    parts: dict[int, set[int]] = {}
    if _kind(state) == "BPE":
        for product, pair in _merges(state["model"]):
            parts.setdefault(ids[product], set()).update(ids[part] for part in pair)
    return parts


def _closure(index: int, parts: dict[int, set[int]]) -> set[int]:
    """An entry with everything that it is merged from, directly or indirectly."""
    found, waiting = {index}, [index]
    while waiting:
        more = parts.get(waiting.pop(), set()) - found
        found |= more
        waiting += more
    return found


def _one_word(tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], word: str, place: str) -> str:
    """A word in WordPiece's own spelling."""
    backend: Any = tokenizer.backend_tokenizer
    text = word if backend.normalizer is None else backend.normalizer.normalize_str(word).strip()
    found = (
        [text] if backend.pre_tokenizer is None else [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    )
    longest = state["model"]["max_input_chars_per_word"]
    if len(found) > 1:
        raise ValueError(
            f"{place}: {word!r} is {len(found)} words to this tokenizer ({', '.join(found)}), and a WordPiece entry "
            "stands within one; give its parts, or leave it out"
        )
    if len(text) > longest:
        raise ValueError(f"{place}: {word!r} has {len(text)} characters, and the tokenizer reads words up to {longest}")
    return text


def _with_entries(
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    entries: list[tuple[str, tuple[int, ...]]],
    *,
    new: Collection[str] = (),
) -> Derived:
    """The tokenizer with these entries, in this order; entries that exist only as added tokens go to the end."""
    state, model = copy.deepcopy(state), state["model"]
    vocabulary = model["vocab"] if isinstance(model["vocab"], dict) else dict(model["vocab"])
    own = [entry for entry in entries if entry[0] in vocabulary or entry[0] in new]
    entries = [*own, *(entry for entry in entries if entry[0] not in vocabulary and entry[0] not in new)]
    ids = {name: index for index, (name, _) in enumerate(entries)}
    state["model"] = model = {**model}
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else ids[model["vocab"][model["unk_id"]][0]]
        model["vocab"], model["unk_id"] = [[name, vocabulary[name]] for name, _ in own], unknown
    else:
        model["vocab"] = {name: ids[name] for name, _ in own}
    if model["type"] == "BPE":
        model["merges"] = [
            pair for product, pair in _merges(model) if product in ids and all(part in ids for part in pair)
        ]
    state["added_tokens"] = sorted(
        ({**token, "id": ids[token["content"]]} for token in state["added_tokens"]), key=lambda token: token["id"]
    )
    if state["padding"] is not None:
        state["padding"]["pad_id"] = ids[state["padding"]["pad_token"]]
    _renumber(state["post_processor"], ids)
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():  # a vocab.txt beside it would have the old entries
            if path.name not in _KEPT_FILES:
                path.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # it has the old ids; tokenizer.json has the new ones
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        made = type(tokenizer).from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    if entries_of(made) != [name for name, _ in entries]:
        raise ValueError(
            f"network: {type(tokenizer).__name__} does not take another vocabulary: of {len(entries)} entries it gives "
            f"{len(made)}, or another order"
        )
    return Derived(made, [sources for _, sources in entries])


def _renumber(processor: Any, ids: dict[str, int]) -> None:
    """Give the special tokens in a post-processor, or a sequence of post-processors, their new ids."""
    if processor is None:
        return
    for one in processor.get("processors", []):
        _renumber(one, ids)
    for special in ("cls", "sep"):
        if special in processor:
            processor[special][1] = ids[processor[special][0]]
    tokens = processor.get("special_tokens")
    for token in tokens.values() if isinstance(tokens, dict) else tokens or []:
        token["ids"] = [ids[name] for name in token["tokens"]]
