import numpy as np

from tests.data.masking.views import (
    draws_of,
    make_view,
)


def test_streams_are_independent_and_keyed_by_position():
    view = make_view([200, 300], sample_ids=[4, 9])
    draws = draws_of(view)
    assert abs(np.corrcoef(draws.per_token("a"), draws.per_token("b"))[0, 1]) < 0.15
    assert draws.per_sequence("a").shape == (2,)
    some = np.array([3, 250, 17])
    assert np.array_equal(draws.per_token("a", some), draws.per_token("a")[some])
