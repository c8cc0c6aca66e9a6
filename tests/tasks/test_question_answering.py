import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, RobertaTokenizer

from lit_distil.tasks import ExtractiveQA
from tests.data.helpers import batch_of, predictions_of

WORDS = ["who", "won", "the", "race", "cat", "dog", "in", "paris", "rain", "again"]
ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *WORDS]


@pytest.fixture(scope="module")
def bert():
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)})


@pytest.fixture(scope="module")
def roberta():
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    blank = RobertaTokenizer(vocab=specials, merges=[])
    return blank.train_new_from_iterator([[" ".join(WORDS)] * 9], 300, show_progress=False)


def row_of(context, text, start=None, number=0, **more):
    answers = {"text": [text], "answer_start": [context.index(text) if start is None else start]} if text else []
    return {
        "id": f"q{number}",
        "question": "who won?",
        "context": context,
        "answers": answers,
        "__source__": f"f:{number}",
    } | more


def planted(place, length=3000):
    """A context many times a window, with an answer that is nowhere else in it."""
    words = random.Random(place).choices(["the", "race", "in", "rain"], k=length)
    at = {"start": 0, "middle": length // 2, "end": length - 2}.get(place, place)
    words[at : at + 2] = ["cat", "dog"]
    return row_of(" ".join(words), "cat dog", number=at)


def pointing(features):
    """The logits of a network that knows: in every window it points at the answer, or else at no answer."""
    parts = []
    for sample in features:
        logits = torch.zeros(len(sample.input_ids), 2)
        logits[sample.label[0], 0] = logits[sample.label[1], 1] = 8.0
        parts.append(logits)
    return torch.cat(parts)


@pytest.mark.parametrize("no_answer", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_answers_are_found_wherever_they_lie_in_contexts_many_times_the_window(request, name, no_answer):
    tokenizer = request.getfixturevalue(name)
    rows = [planted(place) for place in ("start", "middle", "end", *range(40, 60))]
    task = ExtractiveQA(no_answer=no_answer)
    features = task.encode(rows, tokenizer, max_length=64)
    assert len(features) > 40 * len(rows)
    assert all(len(sample.input_ids) <= 64 for sample in features)
    found = predictions_of(task, features, pointing(features))
    scores = task.score(found, rows)
    assert scores["exact_match"] == scores["f1"] == 1.0
    assert [row["answer"] for row in task.readable(found, rows)] == ["cat dog"] * len(rows)
    # and where no window points at it, it is not found: the windows alone do not give it away
    blind = torch.zeros(sum(len(sample.input_ids) for sample in features), 2)
    assert task.score(predictions_of(task, features, blind), rows)["f1"] < 0.5


def test_windows_together_hold_every_token_and_share_the_stride(bert):
    row = planted("middle", 200)
    features = ExtractiveQA(stride=10).encode([row], bert, max_length=40)
    covered = np.zeros(len(row["context"]), dtype=int)
    for sample in features:
        _, offsets = sample.detail
        for start, end in offsets:
            covered[start:end] += 1
    letters = np.array([letter != " " for letter in row["context"]])
    assert (covered[letters] >= 1).all() and covered.max() == 2
    both = [set(map(tuple, a.detail[1])) & set(map(tuple, b.detail[1])) for a, b in pairwise(features)]
    assert {len(shared) for shared in both} == {10}


def test_a_window_without_the_whole_answer_points_at_its_first_token(bert):
    row = row_of("race " * 20 + "cat dog" + " race" * 20, "cat dog")
    features = ExtractiveQA(stride=1).encode([row], bert, max_length=16)
    inside = [sample for sample in features if sample.label != (0, 0)]
    assert len(features) > 3 and len(inside) <= 1
    for sample in inside:
        assert bert.decode(sample.input_ids[sample.label[0] : sample.label[1] + 1]) == "cat dog"
    first, last = batch_of(features, ExtractiveQA.label_kind).answer_spans[0].tolist()
    assert first == last == 0
    starts = batch_of(features, ExtractiveQA.label_kind).cu_seq_lens[:-1].tolist()
    spans = batch_of(features, ExtractiveQA.label_kind).answer_spans.tolist()
    assert spans == [[s + f.label[0], s + f.label[1]] for s, f in zip(starts, features)]


def test_the_best_span_is_that_of_trying_all(bert):
    task = ExtractiveQA(max_answer_length=3, n_best=5)
    row = row_of("the cat in paris won the race", "cat")
    (sample,) = task.encode([row], bert, max_length=32)
    logits = torch.randn(len(sample.input_ids), 2, generator=torch.Generator().manual_seed(0))
    (read,) = task.readable(predictions_of(task, [sample], logits), [row])
    first, offsets = sample.detail
    spans = {
        (offsets[i][0], offsets[j][1]): float(logits[first + i, 0] + logits[first + j, 1])
        for i in range(len(offsets))
        for j in range(i, min(i + 3, len(offsets)))
    }
    expected = sorted(spans, key=spans.get, reverse=True)[:5]
    assert [entry["text"] for entry in read["n_best"]] == [row["context"][a:b] for a, b in expected]
    powers = np.exp([spans[span] for span in expected])
    assert [entry["probability"] for entry in read["n_best"]] == pytest.approx(list(powers / powers.sum()), rel=1e-5)
    assert read["answer"] == read["n_best"][0]["text"] and read["gold"] == ["cat"] and read["id"] == "q0"


def test_no_answer_is_given_above_the_threshold_and_the_best_one_is_told(bert):
    rows = [
        row_of("the cat won", "cat", number=0),
        row_of("dog won paris", "", number=1),
        row_of("rain again", "", number=2),
    ]
    features = ExtractiveQA(no_answer=True).encode(rows, bert, max_length=32)
    assert features[1].label == (0, 0)
    logits = torch.zeros(sum(len(sample.input_ids) for sample in features), 2)
    starts = batch_of(features, ExtractiveQA.label_kind).cu_seq_lens[:-1].tolist()
    logits[starts[0] + features[0].label[0]] = 4.0  # 8 for the answer, 5 for none: odds -3
    for start, null in zip(starts, (2.5, -1.0, 3.0)):  # odds -3, -2 and 6
        logits[start] = null
    strict, lenient = ExtractiveQA(no_answer=True, null_threshold=-2.5), ExtractiveQA(no_answer=True)
    found = predictions_of(lenient, features, logits)
    assert lenient.score(found, rows)["exact_match"] == pytest.approx(2 / 3)
    scores = strict.score(found, rows)
    assert scores["exact_match"] == scores["best_exact_match"] == scores["best_f1"] == 1.0
    assert scores["best_f1_threshold"] == -3.0
    assert (scores["has_answer_f1"], scores["no_answer_accuracy"]) == (1.0, 1.0)
    assert lenient.score(found, rows)["no_answer_accuracy"] == 0.5
    assert strict.files(found, rows) == {
        "predictions.json": {"q0": "cat", "q1": "", "q2": ""},
        "null_odds.json": {"q0": -3.0, "q1": -2.0, "q2": 6.0},
    }
    read = lenient.readable(found, rows)
    assert [row["answer"] == "" for row in read] == [False, False, True]
    assert read[2]["n_best"][0]["text"] == "" and read[2]["gold"] == []
    assert sum(entry["probability"] for entry in read[0]["n_best"]) == pytest.approx(1.0)


def test_an_answer_that_is_not_in_its_context_is_dropped_in_training_and_scored_in_evaluation(bert):
    rows = [row_of("the cat won", "cat", number=0), row_of("the cat won", "dog", start=4, number=1)]
    task = ExtractiveQA()
    with pytest.warns(UserWarning, match=r"task\.answers: 1 of 2 rows .* the first f:1; they are left out"):
        trained = task.encode(rows, bert, max_length=32, training=True)
    assert [sample.row for sample in trained] == [0]
    with pytest.warns(UserWarning, match="their loss is not counted, their scores are"):
        evaluated = task.encode(rows, bert, max_length=32)
    assert [sample.label for sample in evaluated] == [(6, 6), None]
    assert batch_of(evaluated, ExtractiveQA.label_kind).counts["labels"] == 1


def test_of_several_answers_the_first_that_is_in_the_context_is_learnt(bert):
    row = row_of("the cat won", "cat")
    row["answers"] = {"text": ["dog", "cat"], "answer_start": [4, 4]}
    (sample,) = ExtractiveQA().encode([row], bert, max_length=32, training=True)
    assert bert.decode(sample.input_ids[sample.label[0] : sample.label[1] + 1]) == "cat"


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_blanks_around_an_answer_are_no_part_of_its_span(request, name):
    """WordPiece has no token for them: the window would seem to end before the answer does, and learn no answer."""
    tokenizer = request.getfixturevalue(name)
    row = row_of("the cat ", " cat ", start=3)
    (sample,) = ExtractiveQA().encode([row], tokenizer, max_length=32, training=True)
    assert tokenizer.decode(sample.input_ids[sample.label[0] : sample.label[1] + 1]).strip() == "cat"
    found = predictions_of(ExtractiveQA(), [sample], pointing([sample]))
    assert ExtractiveQA().score(found, [row])["exact_match"] == 1.0
    assert ExtractiveQA().readable(found, [row])[0]["gold"] == [" cat "]


def test_long_questions_are_cut_and_windows_that_get_nowhere_refused(bert):
    row = row_of("the cat won " * 5, "cat", question="who " * 50)
    with pytest.warns(UserWarning, match=r"task\.max_question_length: 1 of 2 questions are longer than 4 tokens"):
        features = ExtractiveQA(max_question_length=4, stride=2).encode(
            [row, row_of("the cat won", "cat", number=1)], bert, max_length=16
        )
    assert bert.decode(features[0].input_ids).startswith("[CLS] who who who who [SEP] the cat")
    with pytest.raises(
        ValueError, match=r"task\.stride: beside the longest question \(50 tokens\) data\.max_length 32"
    ):
        ExtractiveQA().encode([row], bert, max_length=32)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of("the cat", ""), r"f:0: the question has no answer; set task\.no_answer: true"),
        ({**row_of("the cat", "cat"), "answers": "cat"}, r"f:0: column 'answers' \(task\) must be \{text"),
        ({"question": "who", "answers": [], "context": None}, "has no answer"),
        (row_of("the cat", "cat", start="x"), r"f:0: answer_start 'x' \(task\.answers\) is not the number of a"),
        (row_of("the cat", "cat", start=float("nan")), r"f:0: answer_start nan \(task\.answers\) is not the number"),
        (
            {**row_of("the cat", "cat"), "context": ["the", "cat"]},
            r"column 'context' \(task\) holds a list, not a text",
        ),
        ({"question": "who", "context": "x"}, r"no column 'answers' \(task\); there are \['context', 'question'\]"),
    ],
)
def test_a_row_that_is_no_question_is_named(bert, row, message):
    with pytest.raises(ValueError, match=message):
        ExtractiveQA().encode([row], bert, max_length=32)


def test_two_questions_of_one_name_are_refused(bert):
    with pytest.raises(ValueError, match=r"f:0: the question's id 'q0' \(task\.id\) is also that of f:0"):
        ExtractiveQA().encode([row_of("the cat", "cat"), row_of("the dog", "dog")], bert, max_length=32)


def test_answers_may_be_a_list_of_pairs_and_need_not_say_where_they_begin(bert):
    row = {
        "question": "who",
        "context": "the cat",
        "answers": [{"text": "cat"}, {"text": "the cat", "answer_start": 0}],
    }
    (sample,) = ExtractiveQA().encode([row], bert, max_length=32)
    assert bert.decode(sample.input_ids[sample.label[0] : sample.label[1] + 1]) == "cat"
    assert ExtractiveQA().score([(sample, (0.0, np.array([1.0]), np.array([[0, 7]])))], [row])["exact_match"] == 1.0
