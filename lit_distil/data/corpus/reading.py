"""Documents to chunks of text: what is kept, what is encoded together, and where a shard ends.

Everything is decided here, in the order of the source and from the text alone, so that a corpus is the same whatever
the number of processes that encode it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lit_distil.data.sources.mixture import REASONS, DocumentFilters, Duplicates

_CHUNK_TEXTS = 16_384
_CHUNK_CHARACTERS = 1_000_000
_LONGEST_TEXT = 100_000


@dataclass
class ShardEnd:
    """What was read for a shard, known when its last document is.

    Attributes:
        documents_read: Documents taken from the source since its beginning, those left out included.
        characters: Characters of the shard's documents.
        text_bytes: Bytes of text read since the source's beginning, line ends included.
        dropped: How many documents were left out by what is seen in the text, since the last shard's end.
    """

    documents_read: int
    characters: int
    text_bytes: int
    dropped: dict[str, int]


@dataclass
class TextChunk:
    """Texts that are encoded together; a long unit is several of them, and a large document several chunks.

    Attributes:
        texts: The texts.
        ends_unit: Whether each text is the last of its unit.
        ends_document: Whether each is the last of its document.
        text_bytes: Bytes of text read since the source's beginning.
        end: What was read for the shard, if the chunk is its last.
    """

    texts: list[str] = field(default_factory=list)
    ends_unit: list[bool] = field(default_factory=list)
    ends_document: list[bool] = field(default_factory=list)
    text_bytes: int = 0
    end: ShardEnd | None = None


def read_chunks(
    documents: Iterable[list[str]],
    *,
    filters: DocumentFilters,
    duplicates: Duplicates | None,
    shard_characters: int,
    first_shard: int = 0,
    documents_read: int = 0,
    text_bytes: int = 0,
) -> Iterator[TextChunk]:
    """The chunks of a source, from the beginning of a shard on.

    Args:
        documents: All documents of the source.
        filters: Which to leave out.
        duplicates: What has been seen, where duplicates are left out.
        shard_characters: A shard ends with the first document by which it has so many.
        first_shard: Number of the shard to begin with.
        documents_read: Documents of the shards before it, which are passed over.
        text_bytes: Bytes of their text.
    """
    chunk, chunk_characters = TextChunk(), 0
    shard, shard_size = first_shard, 0
    documents_before = documents_read
    dropped = dict.fromkeys(REASONS, 0)

    def end_of_shard() -> TextChunk:
        if duplicates is not None:
            duplicates.commit()
        if not chunk.texts:  # an encoder wants something, and this is no document
            chunk.texts, chunk.ends_unit, chunk.ends_document = [""], [False], [False]
        chunk.end = ShardEnd(documents_read, shard_size, text_bytes, dropped)
        return chunk

    for document in itertools.islice(documents, documents_read, None):
        documents_read += 1
        num_characters = sum(map(len, document))
        text_bytes += sum(len(unit) if unit.isascii() else len(unit.encode(errors="replace")) for unit in document)
        text_bytes += len(document)
        reason = filters.reason_of_length(num_characters)
        if reason is None and duplicates is not None and duplicates.add(document, shard):
            reason = "duplicate"
        if reason is not None:
            dropped[reason] += 1
            continue
        shard_size += num_characters
        # a document without units still leaves a trace, so that it is counted
        for number, unit in enumerate(document or [""], start=1):
            parts = cut_text(unit)
            for part_number, part in enumerate(parts, start=1):
                ends_unit = part_number == len(parts)
                chunk.texts.append(part)
                chunk.ends_unit.append(ends_unit)
                chunk.ends_document.append(ends_unit and number >= len(document))
                chunk_characters += len(part)
                if len(chunk.texts) >= _CHUNK_TEXTS or chunk_characters >= _CHUNK_CHARACTERS:
                    chunk.text_bytes = text_bytes
                    if chunk.ends_document[-1] and shard_size >= shard_characters:
                        break  # it ends the shard too
                    yield chunk
                    chunk, chunk_characters = TextChunk(), 0
        if shard_size >= shard_characters:
            chunk.text_bytes = text_bytes
            yield end_of_shard()
            chunk, chunk_characters = TextChunk(), 0
            shard, shard_size, dropped = shard + 1, 0, dict.fromkeys(REASONS, 0)
            documents_before = documents_read
    if documents_read > documents_before:
        chunk.text_bytes = text_bytes
        yield end_of_shard()


def cut_text(text: str) -> list[str]:
    """Cut a very long text before a space, so that a file that is one line takes bounded memory and all cores."""
    parts = []
    start = 0
    while len(text) - start > _LONGEST_TEXT:
        space = text.rfind(" ", start + 1, start + _LONGEST_TEXT)
        end = space if space > 0 else start + _LONGEST_TEXT
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]
