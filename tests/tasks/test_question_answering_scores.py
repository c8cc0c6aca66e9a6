import pytest

from lit_distil.tasks.question_answering import best_threshold, exact_match, f1, normalise_answer


def test_normalisation_is_the_official_one():
    assert normalise_answer("  The  Quick, (brown) fox's  an A. ") == "quick brown foxs"
    assert normalise_answer("Theatre and antenna") == "theatre and antenna"  # articles are words


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "overlap"),
    [
        ("the Eiffel Tower", ["Eiffel tower."], 1.0, 1.0),
        ("Eiffel", ["in Paris", "Eiffel Tower"], 0.0, 2 / 3),
        ("big big dog", ["big dog"], 0.0, 0.8),  # a word counts as often as both have it
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["something"], 0.0, 0.0),
        ("an", ["the", "dog"], 0.0, 0.0),  # an answer of articles alone is no right one
    ],
)
def test_answers_are_compared_as_the_official_script_does(answer, gold, exact, overlap):
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap)


def test_the_best_threshold_is_that_of_trying_all():
    scores = [1.0, 0.5, 0.0, 1.0, 0.0, 1.0]
    odds = [-3.0, -1.0, -1.0, 0.0, 0.5, 2.0]
    has = [True, True, False, True, False, False]
    empty = [False, False, False, False, False, True]

    def mean_at(threshold):
        values = [
            (s if h or e else 0.0) if o <= threshold else float(not h) for s, o, h, e in zip(scores, odds, has, empty)
        ]
        return sum(values) / len(values)

    best, threshold = best_threshold(scores, odds, has, empty)
    assert best == pytest.approx(mean_at(threshold))
    assert best == pytest.approx(max(mean_at(t) for t in (-4.0, *odds)))
    assert threshold == 0.0
