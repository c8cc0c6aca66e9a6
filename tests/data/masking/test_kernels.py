"""The compiled loops against plain Python, and how they are compiled and kept."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data.masking import MaskingStrategy, MixedMasking, Selection, TokenMasking, TokenView, kernels
from lit_distil.data.randomness import hash_words
from tests.data.batches import make_dataset
from tests.data.masking.reference import Sequence, mix
from tests.data.masking.views import SIZE, VOCABULARY, all_kinds, apply, draws_of, make, make_view, per_sequence

ROOT = Path(__file__).parents[3]
COUNTS = np.random.default_rng(0).integers(0, 10_000, SIZE)  # those of `views.make`


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    rate=st.floats(0.01, 1.0),
    count=st.sampled_from(["exact", "stochastic", "independent"]),
    max_predictions=st.one_of(st.none(), st.integers(1, 8)),
    shares=st.sampled_from([(0.8, 0.1), (0.3, 0.6), (0.0, 1.0)]),
    random_from_special=st.booleans(),
    word_share=st.sampled_from([1.0, 0.6, 0.1]),
    special_share=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(-5, 2**63),
    epoch=st.integers(0, 30),
)
@all_kinds
def test_masks_match_their_definitions(
    kind, lengths, rate, count, max_predictions, shares, random_from_special, word_share, special_share, seed, epoch
):
    rng = np.random.default_rng(len(lengths) * 100 + lengths[0])
    ids = rng.integers(5, SIZE, sum(lengths))
    ids[rng.random(len(ids)) < special_share] = 3
    word_starts = rng.random(len(ids)) < word_share
    counts = np.array(lengths)
    samples = rng.integers(0, 2**40, len(lengths))
    view = TokenView(ids, ids >= 5, word_starts, counts, np.cumsum(counts) - counts, samples, VOCABULARY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = make(
            kind,
            rate=rate,
            count=count,
            max_predictions=max_predictions,
            mask_share=shares[0],
            random_share=shares[1],
            random_from_special=random_from_special,
        )
    found = per_sequence(view, apply(strategy, view, epoch, seed))
    for number, (positions, _, masked) in enumerate(found):
        ids, chosen = Sequence(view, number, seed, epoch).masked(strategy, COUNTS)
        assert positions == chosen
        assert masked == ids


@all_kinds
def test_masks_of_long_sequences_match_their_definitions(kind):
    view = make_view([400, 900], word_share=0.8)
    found = per_sequence(view, apply(make(kind), view, 1, 2))
    for number, (positions, _, masked) in enumerate(found):
        ids, chosen = Sequence(view, number, 2, 1).masked(make(kind), COUNTS)
        assert (positions, masked) == (chosen, ids) and len(chosen) > 50


@settings(max_examples=50)
@given(seed=st.integers(0, 2**64 - 1), sample=st.integers(0, 2**62), pattern=st.integers(0, 2**31))
def test_hashes_equal_those_of_numpy_and_of_python(seed, sample, pattern):
    keys = kernels.keys_of(np.uint64(seed), np.array([sample]), np.array([pattern]))
    assert keys.dtype == np.uint64 and keys[0] == hash_words(seed, sample, pattern)[0]
    name = np.uint64(pattern)
    stream = kernels.stream_of(keys[0], name)
    assert stream == int(hash_words(keys ^ name)[0]) >> 32
    for index in (0, 1, 65_535):
        expected = mix((int(stream) + index * 0x9E3779B9) % 2**32)
        assert kernels.draws_at(keys, name, np.array([0]), np.array([index]))[0] == expected


@settings(max_examples=100)
@given(draws=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9) | st.just(2**32 - 1), max_size=200))
def test_the_order_is_that_of_a_sort(draws):
    keys = np.array([(draw << 32) | index for index, draw in enumerate(draws)], dtype=np.uint64)
    assert kernels.in_order(keys).tolist() == sorted(keys.tolist())


def test_a_strategy_in_numpy_works_beside_the_compiled_ones():
    class Ends(MaskingStrategy):
        """The last maskable tokens of each sequence, by arithmetic that needs sequences end to end."""

        def select(self, view, draws):
            assert np.array_equal(view.starts, np.cumsum(view.lengths) - view.lengths)
            assert view.tokens[0] == f"token{view.ids[0]}"
            assert len(view.ids) == view.lengths.sum() == len(view.sequence_of) == len(view.position_of)
            budgets = self.budgets(view, draws)
            text = np.flatnonzero(view.maskable)
            ends = np.cumsum(view.num_maskable)
            return Selection(np.concatenate([text[end - n : end] for end, n in zip(ends, budgets, strict=True)]))

    view = make_view([90, 40, 3, 128, 17] * 6)
    mixture = MixedMasking([Ends(rate=0.3), TokenMasking(), Ends(rate=0.1)])
    found = per_sequence(view, apply(mixture, view))
    alone = [per_sequence(view, apply(strategy, view)) for strategy in mixture.strategies]
    choice = mixture.choice(draws_of(view)).tolist()
    assert set(choice) == {0, 1, 2}
    assert found == [alone[index][sequence] for sequence, index in enumerate(choice)]


# Compiling

SCRIPT = """
import sys, threading, types
import numpy as np
import lit_distil.data.masking as masking

assert "numba" not in sys.modules, "numba was imported before a mask was made"
zero, true = np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool)
vocabulary = types.SimpleNamespace(size=2, special_ids={"mask_token_id": 1})
masking.TokenMasking()(masking.TokenView(zero, true, true, zero + 1, zero, zero, vocabulary), zero, seed=0)
from lit_distil.data.masking import kernels

stats = kernels.lowest_tokens.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
assert threading.active_count() == 1
"""


def start(**environment: str) -> subprocess.Popen:
    """A process that compiles the loops of `TokenMasking`, or loads them."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts_of(process: subprocess.Popen) -> tuple[int, int]:
    """How often the process loaded a loop and how often it compiled it."""
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    loaded, compiled = map(int, output.split())
    assert errors.count("run compiles the batching code") == (compiled > 0), errors  # said only when true
    return loaded, compiled


@pytest.mark.slow
def test_loops_are_compiled_once_and_kept_and_two_processes_may_compile_at_once(tmp_path):
    both = [start(NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert all(sum(counts_of(process)) == 1 for process in both)
    assert counts_of(start(NUMBA_CACHE_DIR=str(tmp_path))) == (1, 0)


@pytest.mark.slow
def test_loops_are_compiled_even_if_they_cannot_be_kept():
    # only a notebook's functions have a place with this locator
    assert counts_of(start(NUMBA_CACHE_LOCATOR_CLASSES="IPythonCacheLocator")) == (0, 1)


@pytest.mark.parametrize("inside", [False, True])
@all_kinds
def test_compiling_ahead_leaves_nothing_to_compile(kind, inside):
    strategy = make(kind)
    strategy = MixedMasking([strategy]) if inside else strategy
    make_dataset(masking=strategy).compile()
    before = num_compiled()
    apply(strategy, make_view([40, 7, 90]))
    assert num_compiled() == before
    assert before["replace"] == before["budgets"] == 1


def num_compiled() -> dict[str, int]:
    """How many types of arguments each loop is compiled for."""
    return {name: len(loop.signatures) for name, loop in vars(kernels).items() if hasattr(loop, "signatures")}
