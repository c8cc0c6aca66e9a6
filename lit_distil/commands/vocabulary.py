"""`lit-distil vocabulary`: trim the vocabulary of a network to what a text needs, and add words to it."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.callbacks import write_export
from lit_distil.commands.networks import open_network, writable_sentence_format
from lit_distil.console import progress_bar, text_table
from lit_distil.data import DocumentSource, TextFiles, vocabulary_of
from lit_distil.data.sources.text import read_lines, resolve_files
from lit_distil.data.trimming import Derived, TokenCounts, add_words, count_tokens, trim
from lit_distil.files import check_output
from lit_distil.messages import shorten
from lit_distil.models.positions import position_range
from lit_distil.models.students.vocabulary import with_vocabulary
from lit_distil.trust import Parser


@dataclass(frozen=True)
class Size:
    """The size of a network and its tokenizer; counts on the text are None if there is no text.

    Attributes:
        entries: Entries of the tokenizer.
        parameters: Parameters of the network, tied ones counted once.
        tokens_per_word: Mean number of tokens per word of the text.
        num_unknown: Unknown tokens in the text.
    """

    entries: int
    parameters: int
    tokens_per_word: float | None
    num_unknown: int | None


@dataclass(frozen=True)
class VocabularyChange:
    """What `vocabulary` did.

    Attributes:
        folder: Where the network and the tokenizer are.
        sources: For each entry of the new tokenizer, ids of the old one: the same entry, or the pieces of a new word.
        before: Size of the given network.
        after: Size of the new one.
        num_added: Words that became entries, not counting those that already were.
    """

    folder: Path
    sources: list[tuple[int, ...]]
    before: Size
    after: Size
    num_added: int

    def __str__(self) -> str:
        """The table that the command prints."""
        share = self.after.parameters / self.before.parameters
        rows = [
            ("", "before", "after"),
            ("entries", f"{self.before.entries:,}", f"{self.after.entries:,}"),
            ("parameters", f"{self.before.parameters:,}", f"{self.after.parameters:,}"),
            ("share of the size", "100 %", f"{share:.0%}".replace("%", " %")),
        ]
        if self.before.tokens_per_word is not None:
            rows.append(("tokens a word", f"{self.before.tokens_per_word:.3f}", f"{self.after.tokens_per_word:.3f}"))
            rows.append(("unknown tokens", f"{self.before.num_unknown:,}", f"{self.after.num_unknown:,}"))
        return text_table(rows)


def vocabulary(
    network: str,
    *,
    out: str,
    keep_from: DocumentSource | str | Sequence[str] = (),
    size: int | None = None,
    add: str | Sequence[str] = (),
    overwrite: bool = False,
) -> VocabularyChange:
    """Trim the vocabulary of a network to what a text needs, or add words to it, and write both to a folder.

    Trimming is exact: a text whose tokens are all kept has the same tokens under new ids and bitwise the same hidden
    states. Other text is split into smaller tokens. Nothing that was known becomes unknown.

    Args:
        network: Exported folder, folder of a run, checkpoint, or name on the Hub, with its tokenizer (WordPiece, BPE or
            Unigram). It may have a masked-LM head, another head, or none.
        out: Folder to write to; plain transformers loads it.
        keep_from: Text files, folders or globs whose tokens are kept; from Python also a document source. Without text,
            nothing is removed.
        size: Entries of the new vocabulary; by default all entries that occur in the text.
        add: File of words to add as entries, one a line; from Python also a list of words. A word's embedding starts as
            the mean of those of its pieces.
        overwrite: Replace what an earlier command wrote to `out`, and nothing else.

    Returns:
        Sizes before and after, and where each entry came from.

    Raises:
        ValueError: Neither text nor words are given, a file is missing, or a word or the size is invalid.
    """
    check_output(Path(out), overwrite=overwrite)
    documents, (words, places) = _documents(keep_from), _words(add)
    if documents is None and not words:
        raise ValueError(
            "keep_from: give text whose tokens stay (--keep_from FILE), words to add (--add FILE), or both"
        )
    if documents is None and size is not None:
        raise ValueError("size: the text decides which entries stay; give it (--keep_from FILE), or leave out the size")
    model, old = open_network(network, field="network")
    counts = None if documents is None else _count(old, documents)
    change = add_words(old, words, places=places) if words else Derived(old, [(index,) for index in range(len(old))])
    num_added = len(change.sources) - len(old)
    if documents is not None and counts is not None:
        with_words = _count(change.tokenizer, documents) if num_added else counts
        change = _trimmed(change, with_words, size, model)
    made = with_vocabulary(model, vocabulary_of(change.tokenizer), change.sources)
    after = None if documents is None else _count(change.tokenizer, documents)
    write_export(made, change.tokenizer, Path(out), sentences=writable_sentence_format(network))
    sizes = _size(model, old, counts), _size(made, change.tokenizer, after)
    return VocabularyChange(Path(out), change.sources, *sizes, num_added)


def make_parser() -> Parser:
    """The parser of the command line."""
    description = str(vocabulary.__doc__).split("Args:")[0].strip()
    parser = Parser(prog="lit-distil vocabulary", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="A YAML file of these options.")
    parser.add_argument("network", type=str, help="Exported folder, run folder, checkpoint, or name on the Hub.")
    files = "Text files, folders or globs whose tokens stay."
    parser.add_argument("--keep_from", "--keep-from", nargs="+", type=str, default=[], metavar="FILE", help=files)
    parser.add_argument("--add", type=str, default=None, metavar="FILE", help="File with one word a line to add.")
    parser.add_function_arguments(vocabulary, as_group=False, as_positional=False, skip={"network", "keep_from", "add"})
    return parser


def run(arguments: list[str]) -> None:
    """Parse the arguments, change the vocabulary and print what it did."""
    try:
        settings = make_parser().parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise ValueError(shorten(error.message, inspect.signature(vocabulary).parameters)) from error
    settings.pop("config")
    change = vocabulary(**{**settings, "add": settings["add"] or ()})
    if settings["add"]:
        print(f"{change.num_added:,} words added")
    print(f"{change}\nwritten: {change.folder}")


def _documents(keep_from: DocumentSource | str | Sequence[str]) -> DocumentSource | None:
    if isinstance(keep_from, DocumentSource):
        return keep_from
    files = [str(keep_from)] if isinstance(keep_from, str | Path) else [*map(str, keep_from)]
    return TextFiles([*map(str, resolve_files(files, field="keep_from"))]) if files else None


def _words(add: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """The words to add, and where each came from."""
    if not isinstance(add, str | Path):
        return [*add], [f"add: {word!r}" for word in add]
    if not Path(add).is_file():
        raise ValueError(f"add: no file {str(add)!r}; give a text file with one word a line")
    lines = [(line.strip(), f"add: {add}:{number}") for number, line in enumerate(read_lines(Path(add)), start=1)]
    words = [word for word, _ in lines if word]
    if not words:
        raise ValueError(f"add: {str(add)!r} holds no word; give one a line")
    return words, [place for word, place in lines if word]


def _count(tokenizer: PreTrainedTokenizerBase, documents: DocumentSource) -> TokenCounts:
    counts = count_tokens(
        tokenizer, progress_bar(documents.documents("train"), desc="counting tokens", unit=" documents")
    )
    if not counts.num_words:
        raise ValueError("keep_from: the text is empty; give files with text")
    return counts


def _trimmed(change: Derived, counts: TokenCounts, size: int | None, model: PreTrainedModel) -> Derived:
    """Remove entries, except added words and the entries that the network's positions depend on."""
    new = [place for place, pieces in enumerate(change.sources) if len(pieces) > 1]
    # RoBERTa-like networks count positions from the padding token's id, which must not move
    first, _ = position_range(model)
    trimmed = trim(change.tokenizer, counts.tokens, size=size, keep=[*range(first), *new])
    return Derived(trimmed.tokenizer, [change.sources[index] for (index,) in trimmed.sources])


def _size(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts: TokenCounts | None) -> Size:
    return Size(
        len(tokenizer),
        model.num_parameters(),
        None if counts is None else counts.tokens_per_word,
        None if counts is None else counts.num_unknown,
    )
