from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distil.data import SegmentPair, SentencePair
from lit_distil.data.formats import kernels as pairing
from lit_distil.data.formats.formats import document_seeds
from lit_distil.data.randomness import derive_seed
from tests.data.conftest import make_corpus
from tests.data.formats.shortening import generator, truncate_by_hand, truncated


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1, derive_seed(3, 4)])
def test_the_random_numbers_are_pythons_to_the_last_bit(seed):
    ours, theirs, draw = generator(seed), Random(seed), Random(seed + 1)
    for _ in range(2000):  # several times around the 624 words
        match draw.randrange(3):
            case 0:
                assert pairing.uniform(ours) == theirs.random()
            case 1:
                size = draw.choice([1, 2, 3, 10, 64, 65, 2**31 - 1, 2**31])
                assert pairing.below(ours, size) == theirs.randrange(size)
            case _:
                tosses = draw.choice([0, 1, 31, 32, 33, 64, 100, 500])
                assert pairing.count_heads(ours, tosses) == (theirs.getrandbits(tosses).bit_count() if tosses else 0)


@settings(max_examples=200)
@given(a=st.integers(1, 60), b=st.integers(1, 60), room=st.integers(2, 80), seed=st.integers(0, 10))
def test_pairs_are_shortened_as_written_down_by_hand(a, b, room, seed):
    first, second = (100, 100 + a), (500, 500 + b)
    assert truncated(first, second, room, seed) == truncate_by_hand(first, second, room, Random(seed))


def test_each_document_and_copy_has_the_seed_that_it_always_had():
    assert document_seeds(7, 5, 0).tolist() == [derive_seed(7, document) for document in range(5)]
    assert document_seeds(7, 5, 3).tolist() == [derive_seed(7, document, 3) for document in range(5)]


def sentence_pairs_by_hand(documents, max_length, seed, random_next_prob):
    """Units one after another, each with the next one or a random one of another document."""
    token, units = 0, []
    for document in documents:
        units.append([])
        for length in document:
            units[-1].append((token, token + length))
            token += length
    pairs = []
    for number, document in enumerate(units):
        rng, place = Random(derive_seed(seed, number)), 0
        while place < len(document):
            is_random = place + 1 == len(document) or rng.random() < random_next_prob
            if is_random:
                others = units[:number] + units[number + 1 :]
                second = rng.choice(others[rng.randrange(len(others))])
            else:
                second = document[place + 1]
            pairs.append((*truncate_by_hand(document[place], second, max_length - 3, rng), int(is_random)))
            place += 1 if is_random else 2
    return pairs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_length", [5, 12, 60])
@pytest.mark.filterwarnings("ignore:.*single unit")
def test_sentence_pairs_are_those_made_by_hand(seed, max_length):
    documents = [[4, 3, 5, 2, 6, 3], [2], [7, 1, 1, 8, 3, 3, 3], [5, 5, 5], [30, 2]] * 4
    table = SentencePair(0.3 + 0.1 * seed).build(make_corpus(documents), max_length, seed)
    pieces = np.stack([table.piece_starts, table.piece_ends], axis=1).reshape(-1, 2, 2).tolist()
    found = [(*pair, label) for pair, label in zip(pieces, table.next_sentence_labels.tolist(), strict=True)]
    assert found == sentence_pairs_by_hand(documents, max_length, seed, 0.3 + 0.1 * seed)
    assert {0, 1} == {label for *_, label in found}


def test_integers_are_accepted_as_probabilities():
    corpus = make_corpus([[4] * 9] * 9)
    for whole, real in ((SegmentPair(0, 1), SegmentPair(0.0, 1.0)), (SentencePair(1), SentencePair(1.0))):
        tables = [form.build(corpus, 20, 0) for form in (whole, real)]
        assert np.array_equal(tables[0].piece_starts, tables[1].piece_starts)
