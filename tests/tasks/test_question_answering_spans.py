import numpy as np
import pytest

from lit_distil.tasks import Features
from lit_distil.tasks.question_answering import NO_SPAN_ODDS, best_spans, merge_windows, text_of, tokens_of

OFFSETS = np.array([[4, 7], [8, 11], [11, 12], [13, 16]])  # of tokens 5 to 8 of a window


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ((8, 11), (6, 6)),
        ((8, 12), (6, 7)),
        ((9, 14), (6, 8)),  # within words: the tokens that touch it
        ((4, 16), (5, 8)),
        ((3, 7), (0, 0)),  # it begins before the window
        ((13, 17), (0, 0)),  # it ends after it
        ((-1, -1), (0, 0)),
    ],
)
def test_the_tokens_of_an_answer_are_those_that_touch_it(answer, tokens):
    assert tokens_of(answer, 5, OFFSETS) == tokens


def test_a_window_without_context_has_no_span():
    scores, spans = best_spans(np.zeros(0), np.zeros(0), np.zeros((0, 2)), longest=3, n_best=2)
    assert len(scores) == len(spans) == 0
    window = Features(np.zeros(1), None, None, row=4)
    answers = merge_windows([(window, (1.5, scores, spans))], 2)[4]
    assert answers.scores == [] and answers.odds == NO_SPAN_ODDS


def test_windows_are_merged_a_span_in_two_of_them_once_and_no_answer_by_its_least_score():
    def window(null, *spans, row=0):
        places = np.array([place for _, place in spans]).reshape(-1, 2)
        return Features(np.zeros(1), None, None, row=row), (null, np.array([score for score, _ in spans]), places)

    merged = merge_windows(
        [
            window(3.0, (1.0, (0, 3)), (2.0, (4, 7))),
            window(2.0, (2.5, (4, 7)), (0.5, (8, 9))),
            window(9.0, (7.0, (0, 1)), row=1),
        ],
        2,
    )
    assert merged[0].spans == [(4, 7), (0, 3)] and merged[0].scores == [2.5, 1.0]
    assert merged[0].null == 2.0 and merged[0].odds == -0.5 and merged[1].odds == 2.0


def test_the_space_before_a_word_is_no_part_of_an_answer():
    assert text_of("the cat", (3, 7)) == "cat"
