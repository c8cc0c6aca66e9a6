"""Students of another architecture: the same function where the architectures allow it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from lit_distil.models import CrossArchitecture, EveryOther, FromConfig, Layers, MaskedLMNetwork
from lit_distil.models.students import CopyRecord
from lit_distil.types import Batch

from .helpers import make_batch, make_model

POST_NORM = ["bert", "roberta", "camembert", "xlm-roberta", "distilbert", "electra"]


def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        found = MaskedLMNetwork(model.eval())(batch, rows="all").logits
    assert found is not None
    return found


def origins(records: list[CopyRecord]) -> dict[str, str]:
    return {record.name: record.origin for record in records}


@pytest.mark.parametrize("student_type", POST_NORM)
@pytest.mark.parametrize("teacher_type", POST_NORM)
def test_all_layers_of_any_post_norm_architecture_are_the_teacher(teacher_type: str, student_type: str) -> None:
    """Positions are shifted (RoBERTa's begin at pad + 1), token types folded or begun at zero."""
    embedding = {"embedding_size": 16} if teacher_type == "electra" else {}
    teacher = make_model(teacher_type, **embedding)
    student, records = CrossArchitecture(FromConfig(student_type)).build(teacher)
    assert student.config.model_type == student_type and student.training
    # as long as the table has room for, so that no position is one off
    longest = MaskedLMNetwork(teacher).max_length
    assert longest == MaskedLMNetwork(student).max_length == 64
    batch = make_batch((64, 3, 17))
    torch.testing.assert_close(logits(student, batch), logits(teacher, batch), atol=1e-5, rtol=1e-4)
    assert [record.name for record in records] == list(student.state_dict())
    new = [record.name for record in records if record.origin == "new"]
    zero = teacher_type == "distilbert" and student_type != "distilbert"
    assert len(new) == (1 if zero else 0) and all("token_type" in name for name in new)
    folded = [record for record in records if record.origin == "folded"]
    assert len(folded) == (1 if student_type == "distilbert" and teacher_type != "distilbert" else 0)
    assert all(" + " in str(record.source) for record in folded)
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in student.parameters()}


def test_two_segments_survive_where_the_student_has_them() -> None:
    batch = make_batch(segments=True)
    teacher = make_model("bert")
    for model_type, is_equal in (("roberta", True), ("electra", True), ("distilbert", False)):
        student, _ = CrossArchitecture(FromConfig(model_type)).build(teacher)
        difference = (logits(student, batch) - logits(teacher, batch)).abs().max()
        assert (difference < 1e-5) == is_equal


def test_layers_are_picked_or_evenly_spaced_and_the_export_loads(tmp_path: Path) -> None:
    teacher = make_model("roberta", num_hidden_layers=6)
    for student, expected in (
        (CrossArchitecture(FromConfig("distilbert"), layers=EveryOther()), [0, 2, 4]),
        (CrossArchitecture(FromConfig("distilbert", config={"n_layers": 3})), [0, 3, 5]),
        (CrossArchitecture(FromConfig("bert", config={"num_hidden_layers": 2})), [0, 5]),
        (CrossArchitecture(FromConfig("bert"), layers=Layers([-1])), [5]),
    ):
        made, records = student.build(teacher)
        assert made.config.num_hidden_layers == len(expected)
        found = {r.source.split(".")[3] for r in records if r.source and ".layer." in r.source}
        assert sorted(map(int, found)) == sorted(expected)
    made.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    batch = make_batch()
    torch.testing.assert_close(logits(loaded, batch), logits(made, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("teacher_type", ["bert", "roberta", "distilbert"])
def test_modernbert_takes_embeddings_and_head_and_has_new_layers(teacher_type: str) -> None:
    teacher = make_model(teacher_type)
    student, records = CrossArchitecture(FromConfig("modernbert", config={"num_hidden_layers": 3})).build(teacher)
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight
    found = origins(records)
    for name in ("head.dense.weight", "head.norm.weight", "decoder.bias", "model.embeddings.norm.weight"):
        assert found[name] == "copied"
    assert {origin for name, origin in found.items() if name.startswith("model.layers.")} == {"new"}
    assert student.config.num_hidden_layers == 3 and student.config.pad_token_id == teacher.config.pad_token_id
    assert logits(student, make_batch()).isfinite().all()


def test_modernbert_teacher_gives_its_embeddings_too() -> None:
    teacher = make_model("modernbert")
    student, records = CrossArchitecture(FromConfig("bert", config={"num_hidden_layers": 1})).build(teacher)
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert origins(records)["bert.embeddings.position_embeddings.weight"] == "new"


def test_a_shorter_position_table_keeps_the_first_positions() -> None:
    teacher = make_model("roberta")
    config = {"max_position_embeddings": 32}
    student, records = CrossArchitecture(FromConfig("bert", config=config)).build(teacher)
    name = "bert.embeddings.position_embeddings.weight"
    assert origins(records)[name] == "sliced"
    theirs = teacher.state_dict()["roberta.embeddings.position_embeddings.weight"]
    assert torch.equal(student.state_dict()[name], theirs[2:34])
    batch = make_batch((32, 9))
    torch.testing.assert_close(logits(student, batch), logits(teacher, batch), atol=1e-5, rtol=1e-4)


def test_new_head_and_a_tasks_teacher() -> None:
    student, records = CrossArchitecture(FromConfig("distilbert"), head="new").build(make_model("bert"))
    assert {name for name, origin in origins(records).items() if origin == "new"} == {
        "vocab_transform.weight",
        "vocab_transform.bias",
        "vocab_layer_norm.weight",
        "vocab_layer_norm.bias",
        "vocab_projector.bias",
    }
    names = {0: "land", 1: "water", 2: "air"}
    teacher = make_model("bert", AutoModelForSequenceClassification, id2label=names)
    student, records = CrossArchitecture(FromConfig("distilbert")).build(teacher)
    assert type(student).__name__ == "DistilBertForSequenceClassification" and student.config.id2label == names
    assert not [name for name, origin in origins(records).items() if origin == "new"]
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert torch.equal(ours["classifier.weight"], theirs["classifier.weight"])
    assert torch.equal(ours["pre_classifier.weight"], theirs["bert.pooler.dense.weight"])


@pytest.mark.parametrize("num_rows", [64, 50])
@pytest.mark.parametrize("untied", [False, True])
def test_another_padding_of_the_embedding_keeps_the_rows_that_both_have(num_rows: int, untied: bool) -> None:
    teacher = make_model("roberta", **({"tie_word_embeddings": False} if untied else {}))
    student, records = CrossArchitecture(FromConfig("bert", config={"vocab_size": num_rows})).build(teacher)
    both, found = min(num_rows, 60), origins(records)
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight", "cls.predictions.bias"):
        assert found[name] == "sliced", name
    pairs = (
        (student.get_input_embeddings().weight, teacher.get_input_embeddings().weight),
        (student.get_output_embeddings().weight, teacher.get_output_embeddings().weight),
        (student.get_output_embeddings().bias, teacher.get_output_embeddings().bias),
    )
    for ours, theirs in pairs:
        assert len(ours) == num_rows and torch.equal(ours[:both], theirs[:both]) and theirs.abs().max() > 0
    batch = make_batch((30, 9))
    batch.input_ids %= 50
    torch.testing.assert_close(logits(student, batch)[:, :both], logits(teacher, batch)[:, :both], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher_type", "message"),
    [
        (FromConfig("distilbert", config={"dim": 8}), "bert", "hidden_size=8 is not the bert teacher's 16.*Narrower"),
        # one dimension would broadcast
        (FromConfig("bert", config={"hidden_size": 1, "num_attention_heads": 1}), "roberta", "hidden_size=1 is not"),
        (FromConfig("bert", config={"num_attention_heads": 4}), "roberta", "num_attention_heads=4 is not .* 2"),
        (FromConfig("bert", config={"type_vocab_size": 2}), "roberta", "type_vocab_size=2 is not .* 1"),
        (FromConfig("bert", config={"num_hidden_layers": 3}), "roberta", "num_layers=3 must be from 1 to 2"),
        (FromConfig("bert"), "deberta", "teacher: nothing can be copied between 'deberta' .* known are bert"),
        (FromConfig("bert"), "albert", "teacher: nothing can be copied between 'albert'"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(student: FromConfig, teacher_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossArchitecture(student).build(make_model(teacher_type))


def test_settings_that_contradict_each_other_are_refused() -> None:
    teacher = make_model("roberta")
    with pytest.raises(ValueError, match="student: nothing can be copied between 'mpnet'"):
        CrossArchitecture(FromConfig("mpnet"))
    with pytest.raises(ValueError, match="1 of the teacher's are named and the student's config asks for 2"):
        CrossArchitecture(FromConfig("bert", config={"num_hidden_layers": 2}), layers=EveryOther()).build(teacher)
    untied = make_model("roberta", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings=True, and the teacher's head has weights of its own"):
        CrossArchitecture(FromConfig("bert", config={"tie_word_embeddings": True})).build(untied)
    with pytest.raises(ValueError, match="num_hidden_layers must be a whole number from 1 to 1,000, got 0"):
        CrossArchitecture(FromConfig("modernbert", config={"num_hidden_layers": 0})).build(teacher)
    with pytest.raises(ValueError, match="only the layers are taken; set head: new beside layers"):
        CrossArchitecture(FromConfig("bert"), layers=EveryOther(head="new"))
    with pytest.raises(ValueError, match="layers: a modernbert cannot take layers of a roberta"):
        CrossArchitecture(FromConfig("modernbert"), layers=EveryOther()).build(teacher)
