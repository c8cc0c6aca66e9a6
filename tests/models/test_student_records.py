"""The record of every tensor, and the tables that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from lit_distil.models import DistilBertFromBert, EveryOther, Narrower, RandomWeights, StudentInitialisation
from lit_distil.models.students import CopyRecord, describe, mark_frozen, summarise, tensor_table

from .helpers import make_model


def test_frozen_tensors_are_marked_with_their_origin_kept() -> None:
    student, records = DistilBertFromBert(layers=[0, 1]).build(make_model("bert"))
    student.distilbert.embeddings.position_embeddings.requires_grad_(False)
    marked = mark_frozen(records, student)
    frozen = [record for record in marked if record.frozen]
    assert [record.name for record in frozen] == ["distilbert.embeddings.position_embeddings.weight"]
    assert frozen[0].origin == "folded"
    assert summarise(marked) == "42 tensors: 41 copied, 1 folded; 1 frozen"
    assert "1 frozen" not in summarise(records)


def test_tied_tensors_are_frozen_together() -> None:
    student, records = EveryOther().build(make_model("bert"))
    student.get_input_embeddings().requires_grad_(False)
    frozen = {record.name for record in mark_frozen(records, student) if record.frozen}
    assert frozen == {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}


def test_short_table_has_one_line_for_each_layer_with_its_source() -> None:
    _, records = EveryOther().build(make_model("bert", num_hidden_layers=6))
    lines = [line.split() for line in describe(records).splitlines()]
    assert lines[1:] == [
        ["embeddings", "embeddings", "5", "5", "copied"],
        ["layer", "0", "layer", "0", "16", "16", "copied"],
        ["layer", "1", "layer", "2", "16", "16", "copied"],
        ["layer", "2", "layer", "4", "16", "16", "copied"],
        ["head", "head", "7", "7", "copied"],
    ]
    # every tensor is in a line: nothing is left out of what the table sums up
    for name in ("modernbert", "mpnet", "electra", "deberta"):
        _, records = EveryOther().build(make_model(name))
        cells = [line.split("  ") for line in describe(records).splitlines()[1:]]
        counts = [int([cell for cell in row if cell.strip()][2]) for row in cells]
        assert sum(counts) == len(records)


def test_full_table_names_every_tensor_with_origin_and_shapes() -> None:
    _, records = Narrower(8).build(make_model("bert"))
    lines = tensor_table(records).splitlines()
    assert len(lines) == len(records) + 1
    line = next(line for line in lines if line.startswith("bert.embeddings.word_embeddings.weight"))
    assert line.split() == [
        *["bert.embeddings.word_embeddings.weight", "60", "x", "8", "sliced"],
        records[0].name,
        *["60", "x", "16"],
    ]
    _, records = RandomWeights(1).build(make_model("bert"))
    assert summarise(records) == f"{len(records)} tensors: {len(records)} new"
    assert all(torch.Size(record.shape).numel() > 0 for record in records)
    assert set(describe(records).splitlines()[1].split()) == {"embeddings", "-", "5", "new"}


class Own(StudentInitialisation):
    def __init__(self, answer: Callable[[PreTrainedModel, PreTrainedModel, list[CopyRecord]], Any]) -> None:
        self.answer = answer

    def build(self, teacher: PreTrainedModel) -> Any:
        return self.answer(teacher, *EveryOther().build(teacher))


def unset(teacher: PreTrainedModel, student: PreTrainedModel, records: list[CopyRecord]) -> Any:
    student.get_input_embeddings().weight.data[3] = torch.nan
    return student, records


def shared(teacher: PreTrainedModel, student: PreTrainedModel, records: list[CopyRecord]) -> Any:
    student.bert.embeddings = teacher.bert.embeddings
    return student, records


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda teacher, student, records: None, "return a transformers model and the records of .*, got NoneType"),
        (lambda teacher, student, records: student, "with a list of CopyRecord, .*, got a model alone"),
        (lambda teacher, student, records: (student, None), "with a list of CopyRecord, .*, got NoneType"),
        (
            lambda teacher, student, records: (student, []),
            "one record for each tensor .*, got none, or several, for bert",
        ),
        (lambda teacher, student, records: (student, records[1:]), "got none, or several, for bert"),
        (lambda teacher, student, records: (student, [*records, CopyRecord("x", "new")]), "got one for x, which"),
        (unset, r"set every tensor of the student, got no finite values in bert\.embeddings\.word_embeddings\.weight"),
        (shared, r"copy the teacher's tensors, .*, got bert\.embeddings\.\w+\.weight in the teacher's memory"),
    ],
)
def test_an_initialisation_that_breaks_its_contract_is_named(answer: Any, message: str) -> None:
    """Without records a student says nothing of where it came from; with the teacher's memory it trains the teacher."""
    with pytest.raises(ValueError, match=rf"^Own\.build must .*{message}"):
        Own(answer).build(make_model("bert"))
