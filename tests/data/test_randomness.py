import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lit_distil.data import randomness
from lit_distil.data.randomness import Permutation, derive_seed, hash_words


def uniform(*keys):
    """The hashes as fractions of all words."""
    return hash_words(*keys) / 2.0**64


def test_the_hash_is_splitmix64():
    # the first outputs of the reference generator for state 1234567 (Vigna's splitmix64.c)
    state, golden, outputs = 1234567, 0x9E3779B97F4A7C15, []
    for _ in range(3):
        outputs.append(int(hash_words(state)[0]))
        state = (state + golden) & (2**64 - 1)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_even_and_neighbouring_keys_are_unrelated():
    values = uniform(3, np.arange(200)[:, None], np.arange(500)[None, :])
    assert values.shape == (200, 500)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
    seeds = np.corrcoef(values.ravel(), uniform(4, np.arange(200)[:, None], np.arange(500)[None, :]).ravel())[0, 1]
    assert abs(neighbours) < 0.015 and abs(seeds) < 0.015


def test_the_order_of_keys_matters_and_negative_seeds_are_allowed():
    assert uniform(0, 1, 2) != uniform(0, 2, 1)
    assert derive_seed(-1, 5) == derive_seed(2**64 - 1, 5)
    assert len({derive_seed(seed, key) for seed in range(-5, 5) for key in range(100)}) == 1000
    assert 0 <= derive_seed(2**70) < 2**63


def test_a_number_does_not_depend_on_the_process_or_on_the_rest_of_the_array():
    # the file alone, as importing the package takes a while
    script = (
        "import runpy, sys, numpy as np; m = runpy.run_path(sys.argv[1]);"
        "print(m['hash_words'](7, np.array([5]), 11)[0], m['derive_seed'](1, 2),"
        " *m['Permutation'](1000, 7, 3)(np.arange(5)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, randomness.__file__], capture_output=True, text=True, check=True
    )
    here = [str(hash_words(7, np.arange(10), 11)[5]), str(derive_seed(1, 2))]
    assert run.stdout.split() == here + [str(value) for value in Permutation(1000, 7, 3)(np.arange(1000))[:5]]


@settings(max_examples=60)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_every_element_comes_exactly_once(size, seed, epoch):
    values = Permutation(size, seed, epoch)(np.arange(size))
    assert values.dtype == np.int64
    assert np.array_equal(np.sort(values), np.arange(size))


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 2**17 - 1])
def test_sizes_around_a_power_of_two_are_permuted(size):
    assert len(np.unique(Permutation(size, 0)(np.arange(size)))) == size


def test_a_huge_range_takes_no_memory():
    positions = np.array([0, 1, 10**12 - 1])
    values = Permutation(10**12, 0)(positions)
    assert len(set(values.tolist())) == 3 and values.min() >= 0 and values.max() < 10**12


def test_epochs_and_seeds_differ():
    positions = np.arange(1000)
    reference = Permutation(1000, 0, 0)(positions)
    for other in (Permutation(1000, 0, 1), Permutation(1000, 1, 0)):
        assert (other(positions) == reference).mean() < 0.02


@pytest.mark.parametrize("size", [7, 10, 100])
def test_each_element_is_as_likely_in_first_and_last_place(size):
    draws = np.array([Permutation(size, seed, seed % 3)(np.array([0, size - 1])) for seed in range(800)])
    for column in draws.T:
        assert stats.chisquare(np.bincount(column, minlength=size)).pvalue > 1e-4


def test_all_orders_of_a_few_elements_occur():
    orders = {tuple(Permutation(4, seed)(np.arange(4))) for seed in range(1000)}
    assert len(orders) == 24


def test_positions_outside_are_refused():
    with pytest.raises(ValueError, match="size"):
        Permutation(0, 0)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        Permutation(3, 0)(np.array([3]))
    assert Permutation(3, 0)(np.array([], dtype=np.int64)).shape == (0,)
