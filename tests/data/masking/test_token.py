import numpy as np
import pytest
from scipy import stats
from transformers import DataCollatorForLanguageModeling

from lit_distil.data.masking import SpanMasking, TokenMasking, TokenView, WholeWordMasking
from lit_distil.data.tokenizers import vocabulary_of
from tests.data.masking.views import CLS, SEP, VOCABULARY, apply, make_view, words_of

# Single tokens


def test_the_count_is_berts():
    lengths = np.arange(3, 200)
    view = make_view(lengths, with_middle=False)
    for limit in (None, 20):
        masked = apply(TokenMasking(max_predictions=limit), view)
        chosen = np.bincount(view.sequence_of[masked.positions])
        expected = [min(limit or 1000, max(1, round(length * 0.15))) for length in lengths.tolist()]
        assert chosen.tolist() == expected


def test_the_stochastic_count_is_fairseqs():
    view = make_view([50] * 2000)  # 7.5 positions
    chosen = np.bincount(view.sequence_of[apply(TokenMasking(count="stochastic"), view).positions])
    assert set(chosen.tolist()) == {7, 8}
    assert abs((chosen == 8).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_token_masking_has_the_law_of_transformers_collator(wordpiece):
    special = set(wordpiece.all_special_ids)
    size, length, repeats = len(wordpiece), 34, 3000
    rng = np.random.default_rng(0)
    ids = rng.choice([index for index in range(size) if index not in special], (repeats, length))
    ids[:, 0], ids[:, -1] = wordpiece.cls_token_id, wordpiece.sep_token_id
    collator = DataCollatorForLanguageModeling(wordpiece, mlm_probability=0.15, seed=0)
    theirs = collator([{"input_ids": row} for row in ids.tolist()])
    their_choice = (theirs["labels"] != -100).numpy()

    starts = np.arange(repeats) * length
    maskable = ~np.isin(ids.ravel(), list(special))
    full = np.full(repeats, length)
    view = TokenView(
        ids.ravel(), maskable, np.ones(ids.size, dtype=bool), full, starts, np.arange(repeats), vocabulary_of(wordpiece)
    )
    masked = apply(TokenMasking(count="independent", random_from_special=True), view)
    our_choice = np.zeros(ids.size, dtype=bool)
    our_choice[masked.positions] = True
    our_choice = our_choice.reshape(repeats, length)

    # how many a sequence: a binomial law, but for the sequences in which the collator masks nothing
    law = stats.binom(length - 2, 0.15).pmf(np.arange(11))
    for counts in (our_choice.sum(1), their_choice.sum(1)):
        counts = np.minimum(counts[counts > 1], 11)
        expected = np.append(law[2:], 1 - law.sum())
        assert (
            stats.chisquare(np.bincount(counts, minlength=12)[2:], expected / expected.sum() * len(counts)).pvalue
            > 1e-4
        )
    # which ones, and what becomes of them
    table = [our_choice[:, 1:-1].sum(0), their_choice[:, 1:-1].sum(0)]
    assert stats.chi2_contingency(table).pvalue > 1e-4
    outcomes = []
    for choice, inputs in ((our_choice, masked.ids.reshape(ids.shape)), (their_choice, theirs["input_ids"].numpy())):
        is_mask = inputs[choice] == wordpiece.mask_token_id
        is_kept = inputs[choice] == ids[choice]
        outcomes.append([is_mask.sum(), is_kept.sum(), (~is_mask & ~is_kept).sum()])
    assert stats.chi2_contingency(outcomes).pvalue > 1e-4


# Whole words


@pytest.mark.parametrize("kind", [WholeWordMasking, SpanMasking])
def test_words_are_masked_whole(kind):
    view = make_view([128] * 30, word_share=0.5)
    chosen = np.zeros(len(view.ids), dtype=bool)
    chosen[apply(kind(), view).positions] = True
    shares = np.array([chosen[word].mean() for word in words_of(view)])
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert max(len(word) for word in words_of(view)) > 3


def test_a_sequence_whose_words_are_all_too_long_still_has_one():
    ids = np.array([CLS, *range(10, 22), SEP])
    word_starts = np.ones(len(ids), dtype=bool)
    word_starts[[2, 3, 4, 5, 7, 8, 10, 11, 12]] = False  # words of 5, 3 and 4 tokens for a budget of 2
    view = TokenView(ids, ids >= 5, word_starts, np.array([14]), np.array([0]), np.array([0]), VOCABULARY)
    for kind in (WholeWordMasking, SpanMasking):
        assert apply(kind(), view).positions.tolist() == [6, 7, 8]
        assert apply(kind(max_predictions=2), view).positions.tolist() == [6, 7]
