"""Data sets of a small corpus, and what their batches hold."""

from itertools import islice

import torch

from lit_distil.data.batching import TrainLoader
from lit_distil.data.formats import FullSentences, SequenceFormat
from lit_distil.data.masking import MaskingStrategy, TokenMasking
from lit_distil.data.sequences import MaskedSequences
from lit_distil.types import Batch
from tests.data.conftest import make_corpus, vocabulary_of

DOCUMENTS = [[4, 3, 5, 2, 6, 3], [2, 2], [7, 1, 1, 8, 3, 3, 3], [5, 5, 5], [30, 2]] * 5
FIELDS = ("input_ids", "position_ids", "cu_seq_lens", "sample_ids", "token_type_ids")
LABELS = ("masked_positions", "masked_labels", "next_sentence_labels", "labels")


def make_dataset(
    form: SequenceFormat | None = None, masking: MaskingStrategy | bool = True, max_length=16, seed=3
) -> MaskedSequences:
    form = form or FullSentences()
    corpus = make_corpus(DOCUMENTS)
    table = form.build(corpus, max_length, 0)
    return MaskedSequences(
        corpus,
        table,
        format=form,
        vocabulary=vocabulary_of(corpus),
        masking=TokenMasking() if masking is True else masking or None,
        seed=seed,
    )


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal in everything."""
    if first.lengths != second.lengths or first.step_counts != second.step_counts:
        return False
    for name in FIELDS + LABELS:
        a, b = getattr(first, name), getattr(second, name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not torch.equal(a, b))):
            return False
    return True


def sequences_of(batches: list[Batch]) -> list[tuple]:
    """What each sequence of some batches is: its number, its input, its labels."""
    found = []
    for batch in batches:
        for index, sample in enumerate(batch.sample_ids.tolist()):
            start, end = batch.cu_seq_lens[index : index + 2].tolist()
            here = (batch.masked_positions >= start) & (batch.masked_positions < end)
            inputs = tuple(batch.input_ids[0, start:end].tolist())
            places = tuple((batch.masked_positions[here] - start).tolist())
            found.append((sample, inputs, places, tuple(batch.masked_labels[here].tolist())))
    return found


def take(loader: TrainLoader, steps: int) -> list[list[Batch]]:
    """The micro-batches of the next steps."""
    batches = list(islice(loader, steps * loader.accumulate))
    return [batches[index : index + loader.accumulate] for index in range(0, len(batches), loader.accumulate)]
