"""The same texts in the tokens of several tokenizers: sample i of each reading is the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_distil.data import (
    DocumentFilters,
    FullSentences,
    InMemory,
    LinePerSequence,
    PreparedCorpus,
    TableFiles,
    TextDataModule,
    load_tokenizer,
)
from lit_distil.data.readings import SharedTexts, check_readable, check_same_units, read_rows_again
from lit_distil.data.sequences import LabelledSequences
from lit_distil.tasks import ExtractiveQA
from tests.data.conftest import make_corpus
from tests.workspace import Workspace

UNREAD = "\u200b"  # WordPiece finds no token in it, bytes do
TEXTS = ["The model returns a tensor.", UNREAD, "A mask, each step.", f"loss {UNREAD}", "\u00e9"]


def test_texts_that_one_tokenizer_finds_nothing_in_are_left_out(workspace: Workspace) -> None:
    source = InMemory(TEXTS)
    both = [load_tokenizer(workspace.wordpiece), load_tokenizer(workspace.byte_bpe)]
    read = [unit for document in SharedTexts(source, both).documents("train") for unit in document]
    assert read == [TEXTS[0], *TEXTS[2:]]
    assert [unit for document in SharedTexts(source, both[1:]).documents("train") for unit in document] == TEXTS
    prints = {one.fingerprint("train") for one in (source, SharedTexts(source, both), SharedTexts(source, both[1:]))}
    assert len(prints) == 3  # each makes corpora of its own


def test_a_batch_carries_the_same_texts_in_the_teachers_tokens(workspace: Workspace, tmp_path: Path) -> None:
    data = TextDataModule(
        workspace.wordpiece,
        InMemory(TEXTS * 4, validation=TEXTS),
        format=LinePerSequence(),
        max_length=16,
        batch_size=4,
        eval_batch_size=2,
        max_eval_sequences=3,
        cache_dir=str(tmp_path),
    )
    vocabulary = data.read_also("big", workspace.teacher)
    assert (
        vocabulary.size == len(load_tokenizer(workspace.byte_bpe))
        and data.read_also("big", workspace.teacher) == vocabulary
    )
    data.prepare_data()
    data.setup("fit")
    ours, theirs = load_tokenizer(workspace.wordpiece), load_tokenizer(workspace.byte_bpe)
    known = {tuple(ours(text)["input_ids"]): theirs(text)["input_ids"] for text in TEXTS if text != UNREAD}
    for split, size in (("train", 16), ("validation", 3)):
        dataset = data.datasets[split]
        assert len(dataset) == size  # also where a few of many are evaluated
        samples = np.arange(size)[::-1].copy()
        batch = dataset.batch(samples, np.zeros_like(samples)).to("cpu")
        reading = batch.readings["big"]
        assert reading.lengths != batch.lengths
        for number in range(size):
            rows = [one.input_ids[0, slice(*one.cu_seq_lens[number : number + 2].tolist())] for one in (batch, reading)]
            assert known[tuple(rows[0].tolist())] == rows[1].tolist()


def test_corpora_of_other_texts_are_refused() -> None:
    ours = make_corpus([[3, 4], [2, 9]])
    check_same_units(ours, make_corpus([[1, 1], [5, 5]]), "big")
    for other in ([[3], [4, 2, 9]], [[3, 4], [2]]):
        with pytest.raises(ValueError, match="cannot be put side by side"):
            check_same_units(ours, make_corpus(other), "big")


def test_data_that_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    text = InMemory(["a"])
    check_readable(text, LinePerSequence(), DocumentFilters(min_characters=3))
    check_readable(TableFiles(str(tmp_path / "rows.csv")), None, None)
    for arguments, match in (
        ((text, FullSentences(), None), "data.format: FullSentences cuts"),
        ((PreparedCorpus(str(tmp_path)), LinePerSequence(), None), "data.source: a prepared corpus"),
        ((text, LinePerSequence(), DocumentFilters(max_unknown_share=0.5)), "max_unknown_share"),
    ):
        with pytest.raises(ValueError, match=match):
            check_readable(*arguments)


def test_rows_that_make_several_samples_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    row = {
        "question": "What is the loss?",
        "context": "The loss of a model. " * 20,
        "answers": {"text": [], "answer_start": []},
    }
    task, tokenizer = ExtractiveQA(), load_tokenizer(workspace.wordpiece)
    features = task.encode([row], tokenizer, max_length=48, labelled=False)
    assert len(features) > 1
    with pytest.raises(ValueError, match=r"data\.task: ExtractiveQA makes other samples"):
        read_rows_again(LabelledSequences(features, [row]), task, tokenizer, max_length=48, training=False)
