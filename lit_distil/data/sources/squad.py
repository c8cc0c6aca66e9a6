"""SQuAD's own files: articles of paragraphs, each a context with its questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_distil.data.sources.base import LocalFiles, RowSource, Split
from lit_distil.data.sources.text import Files, read_lines
from lit_distil.tasks.base import SOURCE_KEY, Row


class SquadFiles(LocalFiles, RowSource):
    """Files in the format of SQuAD v1.1 and v2 (`{"data": [{"paragraphs": [{"context", "qas"}]}]}`).

    There is a row for each question, with `id`, `title`, `context`, `question` and `answers` (`text` and
    `answer_start`, lists; empty if the question has no answer), as in the Hub's `rajpurkar/squad`.

    Args:
        train: A file, a folder, a glob, or a list of them; gzip and zstd are recognised by their first bytes.
        validation: The same for validation.
        test: The same for testing.
        predict: The same for `predict`; answers are not needed there.
    """

    def __init__(
        self, train: Files = None, *, validation: Files = None, test: Files = None, predict: Files = None
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test, "predict": predict})

    def rows(self, split: Split) -> Iterator[Row]:
        """Each row has its file and the id of its question under `__source__`, for messages."""
        return self.read(split, _read)


def _read(path: Path) -> Iterator[Row]:
    try:
        content = json.loads("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); SQuAD's format is one object a file"
        ) from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list) or not articles:
        raise ValueError(
            f"{path}: an object with a list of articles under 'data' is expected, as in SQuAD's files; for one "
            "question on each line use lit_distil.data.TableFiles"
        )
    for number, article in enumerate(articles):
        place = f"{path}: data[{number}]"
        for paragraph in _field(article, "paragraphs", place):
            for question in _field(paragraph, "qas", f"{place}.paragraphs"):
                answers = [] if question.get("is_impossible") else question.get("answers")
                row = {
                    "id": _field(question, "id", f"{place}.paragraphs.qas"),
                    "title": article.get("title"),
                    "context": _field(paragraph, "context", f"{place}.paragraphs"),
                    "question": _field(question, "question", f"{place}.paragraphs.qas"),
                    SOURCE_KEY: f"{path}: question {question['id']}",
                }
                if answers is not None:
                    row["answers"] = {
                        "text": [_field(answer, "text", row[SOURCE_KEY]) for answer in answers],
                        "answer_start": [answer.get("answer_start") for answer in answers],
                    }
                yield row


def _field(value: Any, name: str, place: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"{place}: no {name!r}, which SQuAD's format has; found {found}")
    return value[name]
