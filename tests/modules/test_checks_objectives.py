"""What an objective refuses of two networks it refuses from their configurations, before the first batch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from lit_distil.data import DocSentences, TextDataModule, TextFiles
from lit_distil.models import FromConfig, MaskedLMNetwork
from lit_distil.modules import DistillationModule, MaskedLMModule
from lit_distil.modules.checks import capabilities_of, check_networks
from lit_distil.objectives import (
    AttentionLoss,
    HiddenCosineLoss,
    HiddenMSELoss,
    MaskedLMLoss,
    NextSentenceLoss,
    Objective,
    RelationLoss,
    SoftTargetLoss,
)
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import EncoderOutput
from tests.models.helpers import FLAT, make_batch, make_model
from tests.modules.caches import write_second_teacher
from tests.modules.test_distillation import make_data, make_loader, make_module, make_trainer
from tests.workspace import TINY, Workspace

NETWORKS: dict[str, dict[str, Any]] = {
    "bert": {"type": "bert"},
    "deep": {"type": "bert", "num_hidden_layers": 4},
    "wide": {"type": "roberta", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3},
    "heads": {"type": "bert", "num_attention_heads": 4},
    "distilbert": {"type": "distilbert"},
    "modernbert": {"type": "modernbert"},
    "eager": {"type": "bert", "attention": "eager"},
    "deberta": {"type": "deberta"},
}
OBJECTIVES: dict[str, Objective] = {
    "soft": SoftTargetLoss(),
    "mlm": MaskedLMLoss(),
    "next": NextSentenceLoss(),
    "cosine": HiddenCosineLoss(),
    "mse": HiddenMSELoss(),
    "mse_map": HiddenMSELoss([[1, 3], [-1, -1]]),
    "mse_projected": HiddenMSELoss([[-1, -1]], student_width=16, teacher_width=24),
    "attention": AttentionLoss(),
    "attention_map": AttentionLoss([[1, 1], [-1, 2]], kind="distributions"),
    "relations": RelationLoss(),
    "relations_cut": RelationLoss(relation_heads=8),
    "relations_five": RelationLoss(relation_heads=5),
    "relations_deep": RelationLoss(relation_heads=4, teacher_layer=3),
    "qk": RelationLoss(["qk", "vv"], student_layer=1, teacher_layer=1),
    "qk_local": RelationLoss(["qk"], relation_heads=2, student_layer=2, teacher_layer=2),
}
BATCH = make_batch()


@cache
def network(name: str) -> MaskedLMNetwork:
    settings = dict(NETWORKS[name])
    model_type, attention = settings.pop("type"), settings.pop("attention", None)
    return MaskedLMNetwork(make_model(model_type, **settings), attention=attention)


@cache
def output(name: str) -> EncoderOutput:
    one = network(name)
    layers = () if one.no_attention else range(1, one.num_layers + 1)
    return one(BATCH, rows="all", output_hidden_states=True, attention_layers=tuple(layers))


def refusal(objective: Objective, student: str, teacher: str) -> str | None:
    """What is said before the first batch."""
    try:
        check_networks(LossTerms({"it": objective}, {"t": 1.0}), network(student), {"t": network(teacher)})
    except ValueError as error:
        return str(error)
    return None


def goes_wrong(objective: Objective, student: str, teacher: str) -> bool:
    """Whether it does in the first batch."""
    try:
        ours, theirs = objective.attention_layers(network(student).num_layers, network(teacher).num_layers)
        for name, layers in ((student, ours), (teacher, theirs)):
            if layers and network(name).no_attention:
                network(name)(BATCH, attention_layers=tuple(layers))
        objective(output(student), output(teacher), BATCH)
    except (ValueError, RuntimeError, AssertionError):
        return True
    return False


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_would_go_wrong_in_a_batch_is_refused_before_it_and_nothing_else(name: str) -> None:
    objective = OBJECTIVES[name]
    outcomes = []
    for student in NETWORKS:
        for teacher in NETWORKS:
            said = refusal(objective, student, teacher)
            assert (said is not None) == goes_wrong(objective, student, teacher), (student, teacher, said)
            assert said is None or said.startswith("model.objectives.it: ")
            outcomes.append(said is None)
    assert name in ("next", "relations_five") or any(outcomes)
    assert name in ("soft", "mlm") or not all(outcomes)


@pytest.mark.parametrize("model_type", FLAT)
def test_capabilities_are_those_of_the_running_network(model_type: str) -> None:
    one = MaskedLMNetwork(make_model(model_type))
    found = capabilities_of(one)
    result = one(BATCH, output_hidden_states=True, attention_layers=tuple(range(1, one.num_layers + 1)))
    assert result.hidden_states is not None and result.attention is not None
    assert len(result.hidden_states) - 1 == found.num_layers == one.num_layers
    assert {states.shape[-1] for states in result.hidden_states} == {found.width}
    assert found.no_attention is None and not found.has_next_sentence
    for block, states in result.attention.layers.items():
        assert states.query.shape[1:] == (found.num_heads, found.head_width)
        assert states.key.shape[1] == found.num_key_heads
        assert states.window == found.window(block)
    assert model_type != "modernbert" or {found.window(block) for block in (1, 2, 3)} == {None, 5}


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "message"),
    [
        ("cosine", "bert", "wide", r"widths, the student's is 16 and the teacher's 24; give .* or use HiddenMSELoss"),
        ("mse", "bert", "deep", None),
        ("mse", "bert", "wide", r"no uniform map from 2 student layers to 3 teacher layers; write layer_map as pairs"),
        ("mse_map", "bert", "bert", r"pair \[1, 3\]: teacher layer 3 is out of range; it has layers 0 .* to 2, or -1"),
        ("mse_map", "bert", "wide", r"16 and the teacher's 24; for a learned projection set student_width=16 and te"),
        ("mse_projected", "wide", "bert", r"student_width=16 and teacher_width=24 were given, but the student's wid"),
        ("attention", "bert", "heads", r"the student has 2 heads and the teacher 4: use RelationLoss"),
        ("attention", "modernbert", "deep", r"no uniform map from 3 student layers to 4 teacher layers; write layer"),
        ("attention_map", "bert", "modernbert", r"block 2 sees all tokens, the teacher's block 2 tokens less than 5"),
        (
            "relations",
            "bert",
            "wide",
            r"relation qq compares .* student has 2 heads and the teacher 3: set relation_heads",
        ),
        ("relations_five", "bert", "bert", r"relation_heads=5 does not divide the width 16 of the student's queries"),
        ("relations_deep", "bert", "bert", r"teacher_layer: the teacher's layer 3 is out of range; it has layers 1"),
        ("qk_local", "modernbert", "modernbert", r"block 2 has local attention, which only its own heads describe; "),
        ("relations_cut", "eager", "bert", r"which bert does not give here: its attention is 'eager': leave `attent"),
        ("relations_cut", "bert", "deberta", r"deberta does not give here: it computes attention in its own way: ma"),
        ("next", "bert", "bert", r"NextSentenceLoss needs a network with a next-sentence head, and bert has none he"),
    ],
)
def test_the_message_says_what_is_wrong_and_the_way_out(
    objective: str, student: str, teacher: str, message: str | None
) -> None:
    said = refusal(OBJECTIVES[objective], student, teacher)
    if message is None:
        assert said is None
    else:
        with pytest.raises(ValueError, match=message):
            raise ValueError(said)


def test_a_width_of_one_is_refused_and_not_broadcast() -> None:
    """A student of width 1 would be compared with every width, number by number."""
    student = MaskedLMNetwork(make_model("bert", hidden_size=1, num_attention_heads=1))
    for objective in (HiddenCosineLoss(), HiddenMSELoss()):
        with pytest.raises(ValueError, match=r"width(s, the student's)? is 1 and the teacher's 16"):
            check_networks(LossTerms({"it": objective}, {"t": 1.0}), student, {"t": network("bert")})


def test_each_objective_is_checked_against_its_own_teacher() -> None:
    objectives: dict[str, Objective] = {"soft": SoftTargetLoss(), "relations": RelationLoss(relation_heads=8)}
    teachers, shares = {"small": network("bert"), "odd": network("deberta")}, {"small": 0.5, "odd": 0.5}
    check_networks(LossTerms(objectives, shares, {"relations": "small"}), network("bert"), teachers)
    with pytest.raises(ValueError, match=r"model\.objectives\.relations: .*deberta does not give here"):
        check_networks(LossTerms(objectives, shares, {"relations": "odd"}), network("bert"), teachers)


def test_blocks_that_one_teacher_has_are_not_asked_of_another(workspace: Workspace, tmp_path: Path) -> None:
    """A map into four layers said of a teacher of two that they were out of range."""
    objectives: dict[str, Any] = {"soft": SoftTargetLoss(), "deep": RelationLoss(teacher_layer=3)}
    objectives |= {"map": AttentionLoss([[1, 4]]), "hidden": HiddenMSELoss([[1, 1]])}
    teachers: Any = {"large": workspace.teacher, "small": write_second_teacher(workspace, tmp_path / "small")}
    owners = {"deep": "large", "map": "large", "hidden": "small"}
    module = make_module(teachers, objectives=objectives, objective_teachers=owners)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=make_data(workspace))
    assert all(module.latest[f"train/loss/{name}"] > 0 for name in objectives)
    student, outputs = module.outputs(next(iter(make_loader(trainer))))
    assert student.attention is not None and sorted(student.attention.layers) == [1, 2]
    large, small = outputs["large"], outputs["small"]
    assert large.attention is not None and sorted(large.attention.layers) == [3, 4] and small.attention is None
    assert large.hidden_states is None and small.hidden_states is not None


def test_a_term_on_hidden_states_says_at_once_which_of_several_teachers_it_has() -> None:
    with pytest.raises(
        ValueError, match=r"model\.objective_teachers: cosine \(HiddenCosineLoss\) compares with one teac"
    ):
        make_module({"a": "x", "b": "y"})  # type: ignore[arg-type]
    make_module({"a": "x", "b": "y"}, objective_teachers={"cosine": "b"})  # type: ignore[arg-type]


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, batch: Any, *_: Any) -> None:
        raise AssertionError("a batch has come")

    monkeypatch.setattr(DistillationModule, "outputs", fail)
    monkeypatch.setattr(MaskedLMModule, "outputs", fail)


@pytest.mark.usefixtures("no_step")
def test_a_run_stops_before_its_first_batch(workspace: Workspace, tmp_path: Path) -> None:
    narrow = FromConfig("roberta", config={**TINY, "hidden_size": 16, "type_vocab_size": 1})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"student": narrow}, r"model\.objectives\.cosine: the cosine needs equal widths"),
        ({"objectives": {"far": RelationLoss(teacher_layer=21)}}, r"model\.objectives\.far: teacher_layer: .* 1 to 4"),
        ({"objectives": {"pairs": AttentionLoss([[3, 1]])}}, r"model\.objectives\.pairs: layer_map pair \[3, 1\]: stu"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).fit(make_module(workspace.teacher, **changes), datamodule=make_data(workspace))
    network = FromConfig("roberta", config={**TINY, "type_vocab_size": 1})
    for objective, message in (
        (NextSentenceLoss(), r"model\.objectives\.it: NextSentenceLoss needs a network with a next-sentence head"),
        (RelationLoss(), r"model\.objectives\.it: RelationLoss compares with a teacher, and there is none"),
    ):
        module = MaskedLMModule(network, objectives={"it": objective}, optimizer=lambda p: SGD(p, lr=0.1))
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))


@pytest.mark.usefixtures("no_step")
def test_a_term_on_masked_tokens_wants_masks_before_the_first_batch(workspace: Workspace, tmp_path: Path) -> None:
    source = TextFiles(str(workspace.root / "train.txt"))
    settings: dict[str, Any] = {"max_length": 48, "cache_dir": str(workspace.root / "cache")}
    data = TextDataModule(workspace.byte_bpe, source, format=DocSentences(), **settings)
    assert data.masking is None
    with pytest.raises(
        ValueError, match=r"data\.masking: model\.objectives\.soft \(SoftTargetLoss\) looks at masked tok"
    ):
        make_trainer(tmp_path).fit(make_module(workspace.teacher), datamodule=data)


def test_a_new_objective_states_what_it_needs_in_its_own_file() -> None:
    """Nothing but `check` of a class of the user's own."""

    class OnlyShallow(MaskedLMLoss):
        def check(self, student: Any, teacher: Any) -> None:
            super().check(student, teacher)
            if student.num_layers > 2:
                raise ValueError(f"OnlyShallow: {student.num_layers} layers; take a student of two")

    assert refusal(OnlyShallow(), "bert", "deep") is None
    assert refusal(OnlyShallow(), "deep", "deep") == "model.objectives.it: OnlyShallow: 4 layers; take a student of two"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, r"Own\.counts must be one of \['masked', .*, what its sum is over, got None"),
        ({"counts": "rows"}, r"Own\.counts must be .* got 'rows'"),
        ({"counts": "tokens", "rows": "some"}, r"Own\.rows must be None or one of .* got 'some'"),
    ],
)
def test_an_objective_that_does_not_say_what_it_counts_is_refused(attributes: dict[str, str], message: str) -> None:
    own = type("Own", (Objective,), {**attributes, "forward": lambda self, *outputs: None})()
    with pytest.raises(ValueError, match=rf"^model\.objectives\.mine: {message}"):
        check_networks(LossTerms({"mine": own}), network("bert"), {})
    with pytest.raises(ValueError, match=rf"^model\.objectives\.mine: {message}"):
        DistillationModule("teacher", FromConfig("bert"), {"mine": own})
