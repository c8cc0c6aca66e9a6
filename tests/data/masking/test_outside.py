"""Strategies from outside the package: what they may ask for, and how a wrong selection is refused."""

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_distil.data import FullSentences, TextDataModule, TextFiles
from lit_distil.data.masking import (
    Draws,
    MaskingStrategy,
    MixedMasking,
    Selection,
    TokenView,
)
from tests.data.masking.views import UNK, apply, make_view

TEXT = "\n\n".join(["The Queen of Norway met Ada in Oslo, and they saw Émile there.\nno names here"] * 20)


class CapitalisedWords(MaskingStrategy):
    """Words that begin with a capital letter, in random order until the budget is full."""

    def select(self, view: TokenView, draws: Draws) -> Selection:
        chosen, left = [], self.budgets(view, draws)
        words = np.split(np.arange(len(view.ids)), np.flatnonzero(view.word_starts)[1:])
        place = draws.per_token("words")
        for word in sorted(words, key=lambda word: place[word[0]]):
            text, sequence = "".join(view.tokens[word]).lstrip("Ġ"), view.sequence_of[word[0]]
            if text[0].isupper() and view.maskable[word[0]] and len(word) <= left[sequence]:
                left[sequence] -= len(word)
                chosen.extend(word)
        return Selection(np.array(chosen, dtype=np.int64))


def cased_wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = {name: f"[{name[:-6].upper()}]" for name in ("cls_token", "pad_token", "sep_token", "unk_token")}
    names["mask_token"] = "[MASK]"
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=list(names.values()))
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe"])
def test_a_mask_of_capitalised_words_needs_nothing_but_its_view(kind, request, tmp_path):
    tokenizer = cased_wordpiece() if kind == "wordpiece" else request.getfixturevalue("byte_level_bpe")
    (tmp_path / "text.txt").write_text(TEXT)
    data = TextDataModule(
        tokenizer,
        TextFiles(str(tmp_path / "text.txt")),
        format=FullSentences(),
        masking=CapitalisedWords(rate=0.5, mask_share=1.0, random_share=0.0),
        max_length=64,
        cache_dir=str(tmp_path / "cache"),
        seed=1,
    )
    data.prepare_data()
    data.setup("fit")
    dataset = data.datasets["train"]
    found = set()
    for epoch in range(3):
        samples = np.arange(len(dataset))
        batch = dataset.collate(samples, np.full_like(samples, epoch))
        plain = batch.input_ids[0].clone()
        plain[batch.masked_positions] = batch.masked_labels
        assert (batch.input_ids[0, batch.masked_positions] == tokenizer.mask_token_id).all()
        # neighbouring positions are read together: a capitalised word, or several side by side
        runs = np.split(batch.masked_positions.numpy(), np.flatnonzero(np.diff(batch.masked_positions) > 1) + 1)
        found |= {word for run in runs for word in re.split(r"\s+", tokenizer.decode(plain[run]).strip())}
    assert found == {"The", "Queen", "Norway", "Ada", "Oslo", "Émile"}


def test_a_view_gives_tokens_special_ids_and_the_size_of_the_vocabulary():
    view = make_view([12, 5])
    assert view.tokens.tolist() == [f"token{index}" for index in view.ids]
    assert view.vocabulary.size == 1000 and view.vocabulary.special_ids["unk_token_id"] == UNK
    assert view.vocabulary.tokens[UNK] == f"token{UNK}"


def strategy_that_chooses(answer) -> MaskingStrategy:
    class Careless(MaskingStrategy):
        def select(self, view, draws):
            return answer

    return Careless()


@pytest.mark.parametrize(
    ("positions", "leaders", "message"),
    [
        ([3, 30], None, r"Careless\.select chose position 30 of a batch of 30 tokens, but must choose maskable pos"),
        ([2, -1], None, "chose position -1 of a batch of 30"),
        (
            [3, 0],
            None,
            r"chose position 0, which holds the special id 0, .*\(0 to 29, where view\.maskable is",
        ),
        ([4, 3, 4], None, "chose position 4 twice, .* each at most once"),
        ([1, 2], [1, 30], "chose a leader outside its sequence"),
        ([1, 2], [1], "must return a leader for each position, got 2 positions with 1 leaders"),
        ([0.0, 1.0], None, r"must return positions as one axis of whole numbers, got float64 of shape \[2\]"),
        ([True] * 30, None, r"got bool of shape \[30\]; np\.flatnonzero makes positions of a mask"),
        ([[1, 2]], None, r"got int64 of shape \[1, 2\]"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_wrong_selection_is_refused_by_class_and_contract(positions, leaders, message, inside):
    strategy = strategy_that_chooses(Selection(np.array(positions), None if leaders is None else np.array(leaders)))
    with pytest.raises(ValueError, match=message):
        apply(MixedMasking([strategy]) if inside else strategy, make_view([30]))


def test_an_answer_that_is_no_selection_is_refused():
    with pytest.raises(ValueError, match=r"Careless\.select must return a Selection, got ndarray of shape \[1\]"):
        apply(strategy_that_chooses(np.array([3])), make_view([30]))


def test_a_leader_of_another_sequence_is_refused():
    """The mask of a sequence would depend on what else is in the batch."""
    strategy = strategy_that_chooses(Selection(np.array([2, 33]), np.array([2, 2])))
    with pytest.raises(ValueError, match="chose a leader outside its sequence"):
        apply(strategy, make_view([30, 30]))


def test_a_strategy_that_writes_into_the_ids_is_refused():
    """What it writes would become the labels."""

    class Writing(MaskingStrategy):
        def select(self, view, draws):
            view.ids[3] = 7
            return Selection(np.array([3]))

    with pytest.raises(ValueError, match=r"Writing\.select must leave view\.ids as they are"):
        apply(Writing(), make_view([30]))


@pytest.mark.parametrize("inside", [False, True])
def test_a_batch_without_a_chosen_position_is_refused(inside):
    """It would train without the masked-LM term, and evaluate to a loss near 0."""
    strategy = strategy_that_chooses(Selection(np.zeros(0, dtype=np.int64)))
    view = make_view([30, 5])
    message = rf"data\.masking: \w+\.select must choose at least one .* none of the {view.maskable.sum()} maskable ones"
    with pytest.raises(ValueError, match=message):
        apply(MixedMasking([strategy]) if inside else strategy, view)
    view.maskable[:] = False  # nothing can be chosen, which is no fault of the strategy
    assert len(apply(strategy, view).positions) == 0
