import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification

from lit_distil.models import (
    DistilBertFromBert,
    EvenlySpaced,
    EveryOther,
    FirstLayers,
    LastLayers,
    Layers,
    MaskedLMNetwork,
    RandomWeights,
    StudentInitialisation,
    choose_attention,
)

from .helpers import ALL, make_batch, make_config, make_model, padded_inputs

BATCH = make_batch()
PICKABLE = [name for name in ALL if name != "albert"]
STACKS = {"distilbert": "distilbert.transformer.layer", "modernbert": "model.layers"}


def make_teacher(name: str, num_layers: int = 6, **changes: object):  # type: ignore[no-untyped-def]
    field = "n_layers" if name == "distilbert" else "num_hidden_layers"
    return make_model(name, **{field: num_layers}, **changes)


@pytest.mark.parametrize(
    ("initialisation", "expected"),
    [
        (EveryOther(), [0, 2, 4]),
        (Layers([0, 5, -2]), [0, 5, 4]),
        (FirstLayers(2), [0, 1]),
        (LastLayers(2), [4, 5]),
        (EvenlySpaced(3), [0, 3, 5]),
    ],
)
def test_the_layers_named_are_picked(initialisation: StudentInitialisation, expected: list[int]) -> None:
    teacher = make_teacher("bert")
    student, records = initialisation.build(teacher)
    theirs = teacher.state_dict()
    assert student.config.num_hidden_layers == len(expected)
    for number, layer in enumerate(expected):
        ours = f"bert.encoder.layer.{number}.intermediate.dense.weight"
        source = f"bert.encoder.layer.{layer}.intermediate.dense.weight"
        assert torch.equal(student.state_dict()[ours], theirs[source])
        assert next(record.source for record in records if record.name == ours) == source


def test_every_other_of_twelve() -> None:
    assert EveryOther().pick(12) == [0, 2, 4, 6, 8, 10]


def test_evenly_spaced_layers_follow_the_rule_and_give_the_papers_list() -> None:
    assert EvenlySpaced(6).pick(12) == [0, 2, 4, 7, 9, 11]
    for num_layers in (1, 2, 6, 12, 24):
        assert EvenlySpaced(num_layers).pick(num_layers) == list(range(num_layers))
        assert EvenlySpaced(1).pick(num_layers) == [0]
    for wanted in range(2, 12):
        exact = [i * 11 / (wanted - 1) for i in range(wanted)]
        picked = EvenlySpaced(wanted).pick(12)
        assert all(abs(layer - position) <= 0.5 for layer, position in zip(picked, exact, strict=True))
        assert picked == sorted(set(picked)) and picked[0] == 0 and picked[-1] == 11


@pytest.mark.parametrize("name", PICKABLE)
def test_a_new_head_leaves_the_encoder_copied_and_the_vocabulary_tied(name: str) -> None:
    teacher = make_teacher(name)
    student, records = Layers([0, 1, 2], head="new").build(teacher)
    new = {record.name for record in records if record.origin == "new"}
    assert new and not any(record.startswith(f"{student.base_model_prefix}.") for record in new)
    assert all(record.origin == "copied" for record in records if record.name not in new)
    matrices = [key for key in new if student.state_dict()[key].dim() == 2]
    assert len(matrices) == 1  # the transform: the decoder is the embeddings
    assert not torch.equal(student.state_dict()[matrices[0]], teacher.state_dict()[matrices[0]])
    embeddings = student.get_input_embeddings().weight
    assert embeddings is student.get_output_embeddings().weight
    assert torch.equal(embeddings, teacher.get_input_embeddings().weight)


@pytest.mark.parametrize("name", PICKABLE)
def test_every_tensor_is_copied_from_its_source(name: str) -> None:
    teacher = make_teacher(name)
    student, records = EveryOther().build(teacher)
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert [record.name for record in records] == list(ours)
    for record in records:
        assert record.origin == "copied"
        assert record.source is not None
        assert record.shape == record.source_shape == tuple(ours[record.name].shape)
        assert torch.equal(ours[record.name], theirs[record.source])
    layered = [record for record in records if record.name != record.source]
    assert len(layered) > 10
    unchanged = [record.name for record in records if record.name == record.source]
    assert any("embed" in key for key in unchanged)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.training
    shared = {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not shared
    embeddings, head = student.get_input_embeddings(), student.get_output_embeddings()
    assert embeddings.weight is head.weight


@pytest.mark.parametrize("name", PICKABLE)
def test_student_with_all_layers_is_the_teacher(name: str) -> None:
    teacher = make_teacher(name, 3)
    choose_attention(teacher)
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    student, _ = FirstLayers(3).build(frozen)
    assert student.config._attn_implementation == teacher.config._attn_implementation
    with torch.no_grad():
        expected = MaskedLMNetwork(teacher)(BATCH, rows="all").logits
        assert torch.equal(MaskedLMNetwork(student.eval())(BATCH, rows="all").logits, expected)
    for key, value in teacher.state_dict().items():  # the teacher is left as it was
        assert torch.equal(frozen.state_dict()[key], value)


def test_local_layers_stay_local_and_the_export_says_so(tmp_path: Path) -> None:
    teacher = make_teacher("modernbert")
    assert teacher.config.layer_types == ["full_attention", *["sliding_attention"] * 2] * 2
    choose_attention(teacher)
    student, records = Layers([0, 3, 4]).build(teacher)
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    assert student.config.layer_types == kinds
    assert all(record.origin == "copied" for record in records)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.config.layer_types == kinds
    assert [layer.attn.sliding_window is None for layer in loaded.model.layers] == [True, True, False]
    with torch.no_grad():
        expected = MaskedLMNetwork(student.eval())(BATCH, rows="all").logits
        torch.testing.assert_close(MaskedLMNetwork(loaded)(BATCH, rows="all").logits, expected)


def test_half_of_modernbert_keeps_the_pattern_and_equals_the_padded_network(tmp_path: Path) -> None:
    """Unpadded, with windows that are shorter than the sequences."""
    student, records = EveryOther().build(make_teacher("modernbert", num_layers=8))
    assert student.config.layer_types == make_config("modernbert", num_hidden_layers=4).layer_types
    assert all(record.origin == "copied" for record in records)
    network = MaskedLMNetwork(student.eval())
    network.save_pretrained(tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs, real = padded_inputs(BATCH, 0)
    assert network.is_unpadded and max(BATCH.lengths) > student.config.local_attention
    with torch.no_grad():
        torch.testing.assert_close(
            network(BATCH, rows="all").logits, plain(**inputs).logits[real], rtol=1e-5, atol=1e-5
        )


def test_modernbert_student_that_begins_later_or_repeats_the_first_layer_still_runs() -> None:
    teacher = make_teacher("modernbert")
    for layers, new in (([4, 5], []), ([1, 0], ["model.layers.1.attn_norm.weight"])):
        student, records = Layers(layers).build(teacher)
        assert [record.name for record in records if record.origin == "new"] == new
        assert MaskedLMNetwork(student)(BATCH, rows="all").logits.isfinite().all()  # type: ignore[union-attr]


def test_other_heads_are_copied_too() -> None:
    for auto in (AutoModelForPreTraining, AutoModelForSequenceClassification):
        teacher = make_model("bert", auto)
        student, records = FirstLayers(1).build(teacher)
        assert type(student) is type(teacher)
        assert all(record.origin == "copied" for record in records)


def test_half_precision_teacher_gives_a_float32_student() -> None:
    student, _ = EveryOther().build(make_teacher("bert").to(torch.bfloat16))
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "albert", "deberta"])
def test_random_student_has_the_shape_and_none_of_the_weights(name: str) -> None:
    teacher = make_teacher(name)
    student, records = RandomWeights(2).build(teacher)
    assert student.config.num_hidden_layers == 2
    assert {record.origin for record in records} == {"new"}
    assert [record.name for record in records] == list(student.state_dict())
    theirs = teacher.state_dict()
    matrices = {key: value for key, value in student.state_dict().items() if value.dim() == 2}
    assert len(matrices) > 5
    assert not any(torch.equal(value, theirs[key]) for key, value in matrices.items() if key in theirs)
    MaskedLMNetwork(student)(BATCH, rows="all")


def test_distilbert_with_all_layers_is_the_bert(tmp_path: Path) -> None:
    teacher = make_teacher("bert", 3)
    student, records = DistilBertFromBert(layers=[0, 1, -1]).build(teacher)
    assert student.training
    folded = [record.name for record in records if record.origin == "folded"]
    assert folded == ["distilbert.embeddings.position_embeddings.weight"]
    assert {record.origin for record in records if record.name not in folded} == {"copied"}
    assert not any("token_type" in record.name or "pooler" in record.name for record in records)
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight
    student.eval().save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = MaskedLMNetwork(teacher)(BATCH, rows="all").logits
        for each in (student, loaded):
            ours = MaskedLMNetwork(each)(BATCH, rows="all").logits
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_distilbert_takes_the_released_models_layers() -> None:
    teacher = make_teacher("bert", 12)
    student, _ = DistilBertFromBert().build(teacher)
    for number, layer in enumerate([0, 2, 4, 7, 9, 11]):
        ours = student.distilbert.transformer.layer[number].ffn.lin1.weight
        assert torch.equal(ours, teacher.bert.encoder.layer[layer].intermediate.dense.weight)
    with pytest.raises(ValueError, match="layers: 7 is out of range; the teacher has 6 layers, so choose from -6 to 5"):
        DistilBertFromBert().build(make_teacher("bert", 6))
    with pytest.raises(ValueError, match="teacher must be a bert, got model_type='roberta'"):
        DistilBertFromBert().build(make_teacher("roberta"))


@pytest.mark.parametrize(
    ("initialisation", "message"),
    [
        (Layers([0, 6]), "layers: 6 is out of range; the teacher has 6 layers, so choose from -6 to 5"),
        (Layers([-7]), "layers: -7 is out of range"),
        (FirstLayers(7), "num_layers=7 must be from 1 to 6"),
        (LastLayers(0), "num_layers=0 must be from 1 to 6"),
        (RandomWeights(7), "num_layers=7 must be from 1 to 6"),
        (EvenlySpaced(7), "num_layers=7 must be from 1 to 6, the number of the teacher's layers"),
        (Layers([0, 1, 2, 3, 4, 5, 5]), "layers: 7 are named and the teacher has 6"),
    ],
)
def test_layers_the_teacher_lacks_are_refused(initialisation: StudentInitialisation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initialisation.build(make_teacher("bert"))


def test_shared_and_empty_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="albert shares one set of weights among its 2 layers"):
        EveryOther().build(make_model("albert"))
    with pytest.raises(ValueError, match="at least one layer"):
        Layers([])
    with pytest.raises(ValueError, match="head must be 'copy' or 'new', got 'none'"):
        EveryOther(head="none")  # type: ignore[arg-type]
