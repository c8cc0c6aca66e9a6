import json

import pytest

from lit_distil.data import SquadFiles
from lit_distil.tasks.base import SOURCE_KEY


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return str(path)


def squad(*questions):
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "the cat", "qas": list(questions)}]}]}


def test_questions_become_rows_as_in_the_hubs_dataset(tmp_path):
    path = write(
        tmp_path / "train.json",
        squad(
            {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 4}]},
            {
                "id": "2",
                "question": "why?",
                "is_impossible": True,
                "answers": [],
                "plausible_answers": [{"text": "the"}],
            },
            {"id": "3", "question": "when?"},
        ),
    )
    one, two, three = SquadFiles(path).rows("train")
    assert one.pop(SOURCE_KEY) == f"{path}: question 1"
    assert one == {
        "id": "1",
        "title": "T",
        "context": "the cat",
        "question": "who?",
        "answers": {"text": ["cat"], "answer_start": [4]},
    }
    assert two["answers"] == {"text": [], "answer_start": []}
    assert "answers" not in three  # to be predicted
    assert list(SquadFiles(path).rows("validation")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{'a': 1}", r":1: not JSON .*SQuAD's format is one object a file"),
        ([1], r"under 'data' is expected.*TableFiles"),
        ({"data": [{"title": "T"}]}, r": data\[0\]: no 'paragraphs', which SQuAD's format has; found \['title'\]"),
        (squad({"id": "1"}), r"paragraphs\.qas: no 'question'"),
        (squad({"question": "who?"}), r"paragraphs\.qas: no 'id'"),
        (squad({"id": "1", "question": "w", "answers": [{}]}), r"question 1: no 'text'"),
    ],
)
def test_files_in_another_format_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"bad\.json{message}" if message.startswith(":") else message):
        list(SquadFiles(write(tmp_path / "bad.json", content)).rows("train"))
