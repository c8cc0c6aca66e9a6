import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from scipy import stats
from transformers import DataCollatorForLanguageModeling

from lit_distil.data.masking import (
    Draws,
    FrequencyMasking,
    Masked,
    MaskingStrategy,
    SpanMasking,
    TokenMasking,
    TokenView,
    WholeWordMasking,
)

CLS, PAD, SEP, UNK, MASK = range(5)
SPECIAL_IDS = (CLS, PAD, SEP, UNK, MASK)
VOCABULARY = 1000
FACTS = {"vocabulary_size": VOCABULARY, "mask_id": MASK, "special_ids": SPECIAL_IDS}


def make_view(lengths, seed=0, word_share=0.7, sample_ids=None, with_middle=True) -> TokenView:
    """Sequences [CLS] ... [SEP] with a [SEP] in the middle of the long ones."""
    lengths = np.asarray(lengths, dtype=np.int64)
    rng = np.random.default_rng(seed)
    starts = np.cumsum(lengths) - lengths
    ids = rng.integers(len(SPECIAL_IDS), VOCABULARY, lengths.sum())
    ids[starts] = CLS
    ids[starts + lengths - 1] = SEP
    if with_middle:
        ids[(starts + lengths // 2)[lengths > 10]] = SEP
    maskable = ids >= len(SPECIAL_IDS)
    word_starts = (rng.random(len(ids)) < word_share) | ~maskable
    word_starts[1:] |= ~maskable[:-1]
    samples = np.arange(len(lengths)) if sample_ids is None else np.asarray(sample_ids)
    return TokenView(ids, maskable, word_starts, lengths, starts, samples)


def pick(view: TokenView, sequences) -> TokenView:
    """Some sequences of a view, in this order."""
    tokens = np.concatenate([np.arange(view.starts[s], view.starts[s] + view.lengths[s]) for s in sequences])
    lengths = view.lengths[sequences]
    return TokenView(
        view.ids[tokens],
        view.maskable[tokens],
        view.word_starts[tokens],
        lengths,
        np.cumsum(lengths) - lengths,
        view.sample_ids[sequences],
    )


def apply(strategy: MaskingStrategy, view: TokenView, epoch=0, seed=0, **facts) -> Masked:
    return strategy(view, np.full(len(view.lengths), epoch), seed=seed, **(FACTS | facts))


def draws_of(view: TokenView, seed=0, pattern=0) -> Draws:
    return Draws(seed, view, np.full(len(view.lengths), pattern))


def per_sequence(view: TokenView, masked: Masked):
    """Positions in the sequence, labels and inputs of each sequence."""
    found = []
    for start, length in zip(view.starts, view.lengths, strict=True):
        here = (masked.positions >= start) & (masked.positions < start + length)
        ids = masked.ids[start : start + length].tolist()
        found.append(((masked.positions[here] - start).tolist(), masked.labels[here].tolist(), ids))
    return found


def make(kind: type[MaskingStrategy], **arguments) -> MaskingStrategy:
    strategy = kind(**arguments)
    strategy.bind(np.random.default_rng(0).integers(0, 10_000, VOCABULARY))
    return strategy


KINDS = [TokenMasking, WholeWordMasking, SpanMasking, FrequencyMasking]
all_kinds = pytest.mark.parametrize("kind", KINDS)
all_counts = pytest.mark.parametrize("count", ["exact", "stochastic", "independent"])


@all_counts
@all_kinds
def test_a_mask_does_not_depend_on_the_rest_of_the_batch(kind, count):
    strategy = make(kind, count=count)
    view = make_view([40, 3, 128, 17, 64, 100, 12], sample_ids=[7, 3, 123456789, 0, 5, 6, 1])
    together = per_sequence(view, apply(strategy, view))
    assert sum(len(positions) for positions, _, _ in together) > 40
    order = [5, 0, 3, 6, 2, 1, 4]
    shuffled = pick(view, order)
    assert per_sequence(shuffled, apply(strategy, shuffled)) == [together[s] for s in order]
    for sequence in order:
        alone = pick(view, [sequence])
        assert per_sequence(alone, apply(strategy, alone)) == [together[sequence]]


@all_kinds
def test_the_mask_differs_by_seed_and_sample(kind):
    strategy = make(kind)
    view = make_view([128, 128])
    view = pick(view, [0, 0])
    view = TokenView(**(vars(view) | {"sample_ids": np.array([1, 2])}))
    first, second = per_sequence(view, apply(strategy, view))
    assert first[0] != second[0]
    assert apply(strategy, view, seed=1).positions.tolist() != apply(strategy, view).positions.tolist()


@all_kinds
def test_static_masks_repeat_exactly_and_dynamic_ones_never(kind):
    view = make_view([128] * 4)
    dynamic = [apply(make(kind), view, epoch) for epoch in range(7)]
    static = [apply(make(kind, patterns=3), view, epoch) for epoch in range(7)]
    assert len({tuple(masked.positions) for masked in dynamic}) == 7
    assert len({tuple(masked.positions) for masked in static}) == 3
    for epoch in range(7):
        for field in Masked._fields:
            assert np.array_equal(getattr(static[epoch], field), getattr(static[epoch % 3], field))
            if epoch < 3:  # a static mask is the dynamic one of the first epochs
                assert np.array_equal(getattr(static[epoch], field), getattr(dynamic[epoch], field))


def test_each_sequence_has_its_own_epoch():
    view = make_view([128, 128])
    mixed = TokenMasking()(view, np.array([0, 5]), seed=0, **FACTS)
    found = per_sequence(view, mixed)
    assert found[0] == per_sequence(view, apply(TokenMasking(), view, 0))[0]
    assert found[1] == per_sequence(view, apply(TokenMasking(), view, 5))[1]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 80), min_size=1, max_size=6),
    rate=st.floats(0.01, 1.0),
    count=st.sampled_from(["exact", "stochastic", "independent"]),
    max_predictions=st.one_of(st.none(), st.integers(1, 8)),
    word_share=st.sampled_from([1.0, 0.6, 0.1]),
    seed=st.integers(0, 20),
)
@all_kinds
def test_positions_labels_and_ids_fit_whatever_the_batch(kind, lengths, rate, count, max_predictions, word_share, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = make(kind, rate=rate, count=count, max_predictions=max_predictions)
    view = make_view(lengths, seed, word_share)
    masked = apply(strategy, view, seed=seed)
    assert np.array_equal(masked.positions, np.unique(masked.positions))  # ascending, each once
    assert view.maskable[masked.positions].all()
    assert np.array_equal(masked.labels, view.ids[masked.positions])
    untouched = np.ones(len(view.ids), dtype=bool)
    untouched[masked.positions] = False
    assert np.array_equal(masked.ids[untouched], view.ids[untouched])
    inputs = masked.ids[masked.positions]
    assert np.isin(inputs[inputs < len(SPECIAL_IDS)], [MASK]).all()
    assert inputs.max(initial=0) < VOCABULARY
    chosen = np.bincount(view.sequence_of[masked.positions], minlength=len(lengths))
    assert np.array_equal(chosen > 0, view.num_maskable > 0)
    if max_predictions is not None:
        assert chosen.max(initial=0) <= max_predictions


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
    view = TokenView(ids.ravel(), maskable, np.ones(ids.size, dtype=bool), full, starts, np.arange(repeats))
    masked = TokenMasking(count="independent", random_from_special=True)(
        view,
        np.zeros(repeats, dtype=np.int64),
        seed=0,
        vocabulary_size=size,
        mask_id=wordpiece.mask_token_id,
        special_ids=sorted(special),
    )
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


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (0.5, 0.5), (0.0, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize("kind", [TokenMasking, WholeWordMasking, FrequencyMasking])
def test_shares_are_kept_within_binomial_bounds(kind, mask_share, random_share):
    view = make_view([512] * 60)
    masked = apply(make(kind, mask_share=mask_share, random_share=random_share), view)
    inputs = masked.ids[masked.positions]
    number = len(inputs)
    assert number > 4000
    kept = (1 - mask_share - random_share) + random_share / (VOCABULARY - len(SPECIAL_IDS))
    for found, share in (((inputs == MASK).mean(), mask_share), ((inputs == masked.labels).mean(), kept)):
        assert abs(found - share) <= 4 * np.sqrt(max(share * (1 - share), 0) / number) + 1e-12


def test_random_ids_are_even_over_the_ordinary_vocabulary():
    special = (0, 3, 4, 17, 39)
    view = make_view([512] * 40)
    masked = apply(TokenMasking(mask_share=0, random_share=1, rate=0.5), view, special_ids=special, vocabulary_size=40)
    counts = np.bincount(masked.ids[masked.positions], minlength=40)
    assert len(counts) == 40 and counts[list(special)].sum() == 0
    assert stats.chisquare(np.delete(counts, special)).pvalue > 1e-4
    free = TokenMasking(mask_share=0, random_share=1, rate=0.5, random_from_special=True)
    counts = np.bincount(apply(free, view, vocabulary_size=40).ids[masked.positions], minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-4


def words_of(view: TokenView) -> list[np.ndarray]:
    """Positions of the words that have maskable tokens."""
    words = np.split(np.arange(len(view.ids)), np.flatnonzero(view.word_starts)[1:])
    return [word for word in words if view.maskable[word].all()]


@pytest.mark.parametrize("kind", [WholeWordMasking, SpanMasking])
def test_words_are_masked_whole(kind):
    view = make_view([128] * 30, word_share=0.5)
    chosen = np.zeros(len(view.ids), dtype=bool)
    chosen[apply(kind(), view).positions] = True
    shares = np.array([chosen[word].mean() for word in words_of(view)])
    assert set(np.unique(shares)) == {0.0, 1.0}
    assert max(len(word) for word in words_of(view)) > 3


def test_whole_words_are_taken_as_bert_does():
    view = make_view([128, 40, 300, 9], word_share=0.4)
    for pattern in range(20):
        draws = draws_of(view, pattern=pattern)
        # one number a word, special tokens being words too
        order = dict(zip(view.words.edges.tolist(), draws.bits("order", view.words.counts).tolist(), strict=False))
        expected = []
        for sequence, length in enumerate(view.lengths):
            budget, chosen = max(1, round(0.15 * int(length))), []
            words = [word for word in words_of(view) if view.sequence_of[word[0]] == sequence]
            for word in sorted(words, key=lambda word: order[word[0]]):  # google-research/bert, create_masked_lm_...
                if len(chosen) >= budget:
                    break
                if len(chosen) + len(word) > budget:
                    continue
                chosen += word.tolist()
            if not chosen:
                chosen = min(words, key=len).tolist()
            expected += chosen
        assert sorted(WholeWordMasking().select(view, draws).positions.tolist()) == sorted(expected)


def test_a_sequence_whose_words_are_all_too_long_still_has_one():
    ids = np.array([CLS, *range(10, 22), SEP])
    word_starts = np.ones(len(ids), dtype=bool)
    word_starts[[2, 3, 4, 5, 7, 8, 10, 11, 12]] = False  # words of 5, 3 and 4 tokens for a budget of 2
    view = TokenView(ids, ids >= 5, word_starts, np.array([14]), np.array([0]), np.array([0]))
    for kind in (WholeWordMasking, SpanMasking):
        assert apply(kind(), view).positions.tolist() == [6, 7, 8]
        assert apply(kind(max_predictions=2), view).positions.tolist() == [6, 7]


def spans_of(strategy: SpanMasking, view: TokenView, pattern=0) -> list[list[int]]:
    """The positions of each span."""
    selection = strategy.select(view, draws_of(view, pattern=pattern))
    assert selection.leaders is not None
    spans: dict[int, list[int]] = {}
    for position, leader in sorted(zip(selection.positions.tolist(), selection.leaders.tolist(), strict=True)):
        spans.setdefault(leader, []).append(position)
    return list(spans.values())


def test_span_lengths_follow_the_clipped_geometric_law():
    law = 0.2 * 0.8 ** np.arange(10)
    assert np.allclose(SpanMasking().length_probabilities, law / law.sum())
    assert abs((np.arange(1, 11) * law).sum() / law.sum() - 3.8) < 0.01  # the mean in the paper
    view = make_view([6000] * 4, word_share=1.0, with_middle=False)
    spans = spans_of(SpanMasking(), view)
    lengths = np.array([len(span) for span in spans])
    assert len(lengths) > 800
    counts = np.bincount(lengths, minlength=11)[1:]
    assert stats.chisquare(counts, law / law.sum() * len(lengths)).pvalue > 1e-4
    assert sum(lengths) == 4 * 900


def test_spans_are_contiguous_apart_and_cross_no_special_token():
    view = make_view([100, 60, 33] * 20, word_share=0.6)
    spans = spans_of(SpanMasking(rate=0.4), view)
    assert len(spans) > 200
    word_of = np.cumsum(view.word_starts)
    for span in spans:
        assert span == list(range(span[0], span[-1] + 1))
        assert view.maskable[span].all()
        assert len(set(word_of[span].tolist())) <= 10
    assert len({position for span in spans for position in span}) == sum(map(len, spans))


def test_spans_stand_evenly_and_fill_the_budget():
    view = make_view([130] * 3000, word_share=0.7, with_middle=False)
    positions = apply(SpanMasking(), view).positions
    share = len(positions) / (3000 * round(0.15 * 130))
    assert 0.96 < share <= 1  # a word that does not fit ends it
    # but for the ends, where fewer spans reach, all places are alike; and both ends are
    places = np.bincount(view.position_of[positions], minlength=130)[1:-1]
    inner = places[16:-16].reshape(6, 16).sum(1)
    assert np.abs(inner / inner.mean() - 1).max() < 0.1
    assert abs(places[:16].sum() / places[-16:].sum() - 1) < 0.12


def test_a_span_shares_its_fate():
    view = make_view([512] * 40)
    strategy = SpanMasking()
    masked = apply(strategy, view)
    fates = []
    for span in spans_of(strategy, view):
        is_mask = masked.ids[span] == MASK
        is_kept = masked.ids[span] == view.ids[span]
        assert is_mask.all() or not is_mask.any()
        assert is_mask.any() or is_kept.all() or is_kept.mean() < 0.5
        fates.append(is_mask.all())
    assert len(fates) > 500
    assert abs(np.mean(fates) - 0.8) < 4 * 0.4 / np.sqrt(len(fates))


def test_rare_tokens_are_masked_by_the_law_of_counts():
    counts = np.ones(VOCABULARY, dtype=np.int64)
    counts[5:9] = [1, 16, 256, 4096]
    strategy = FrequencyMasking(max_predictions=1, smoothing=0.7)
    strategy.bind(counts)
    number = 4000
    ids = np.tile([CLS, 5, 6, 7, 8, SEP], number)
    starts = np.arange(number) * 6
    view = TokenView(ids, ids >= 5, np.ones(len(ids), dtype=bool), np.full(number, 6), starts, np.arange(number))
    found = np.bincount(apply(strategy, view).labels, minlength=9)[5:]
    weights = np.array([1.0, 16, 256, 4096]) ** -0.7
    assert stats.chisquare(found, weights / weights.sum() * number).pvalue > 1e-4


def test_frequency_masking_says_that_it_needs_counts():
    with pytest.raises(RuntimeError, match="bind"):
        apply(FrequencyMasking(), make_view([10]))


def test_streams_are_independent_and_keyed_by_position():
    view = make_view([200, 300], sample_ids=[4, 9])
    draws = draws_of(view)
    assert abs(np.corrcoef(draws.per_token("a"), draws.per_token("b"))[0, 1]) < 0.15
    assert draws.per_sequence("a").shape == (2,)
    some = np.array([3, 250, 17])
    assert np.array_equal(draws.per_token("a", some), draws.per_token("a")[some])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, r"rate must lie in \(0, 1\], got 0"),
        ({"rate": -0.1}, "rate"),
        ({"rate": 1.1}, "rate"),
        ({"mask_share": 0.9, "random_share": 0.2}, "must not exceed 1 together"),
        ({"mask_share": -0.1}, "must not be negative"),
        ({"random_share": -0.1}, "must not be negative"),
        ({"patterns": 0}, "patterns must be at least 1"),
        ({"max_predictions": 0}, "max_predictions must be at least 1"),
        ({"count": "some"}, "count must be"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenMasking(**arguments)


def test_other_wrong_settings_are_refused_too():
    with pytest.raises(ValueError, match="up to 65536 tokens, got one of 70000"):
        make_view([5, 70_000])
    with pytest.raises(ValueError, match="geometric_p"):
        SpanMasking(geometric_p=0)
    with pytest.raises(ValueError, match="max_words"):
        SpanMasking(max_words=0)
    with pytest.raises(ValueError, match="smoothing"):
        FrequencyMasking(smoothing=-1)
    with pytest.warns(UserWarning, match="rate 1 masks every token"):
        strategy = TokenMasking(rate=1)
    view = make_view([20, 5])
    assert len(apply(strategy, view).positions) == view.maskable.sum()
    TokenMasking(mask_share=0.7, random_share=0.3)  # 0.7 + 0.3 must not fail for its rounding


@all_kinds
def test_sequences_of_special_tokens_are_skipped(kind):
    view = make_view([2, 30, 2])
    masked = apply(make(kind), view)
    assert set(view.sequence_of[masked.positions].tolist()) == {1}
    nothing = apply(make(kind), make_view([2, 2]))
    assert len(nothing.positions) == len(nothing.labels) == 0


@all_kinds
def test_every_strategy_can_be_written_in_yaml(kind):
    parser = ArgumentParser()
    parser.add_subclass_arguments(MaskingStrategy, "masking")
    arguments = {"rate": 0.3, "count": "stochastic", "patterns": 10, "max_predictions": 20}
    path = f"lit_distil.data.masking.{kind.__name__}"
    parsed = parser.parse_object({"masking": {"class_path": path, "init_args": arguments}})
    strategy = parser.instantiate(parsed).masking
    assert type(strategy) is kind
    assert {name: getattr(strategy, name) for name in arguments} == arguments


def test_masked_ids_become_tensors_without_a_copy():
    masked = apply(TokenMasking(), make_view([30]))
    assert all(torch.from_numpy(values).dtype == torch.int64 for values in masked)
