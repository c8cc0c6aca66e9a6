"""The terms together: in one pass or one by one, which teachers they compare with, what they need, their gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distil.objectives import (
    AttentionLoss,
    HiddenCosineLoss,
    HiddenMSELoss,
    LogitObjective,
    MaskedLMLoss,
    Objective,
    RelationLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
    VocabularyPass,
)
from lit_distil.objectives.base import logits_at
from lit_distil.objectives.terms import LossTerms
from lit_distil.schedules import LinearRamp, Stages
from lit_distil.types import Batch, EncoderOutput, Projection
from tests.objectives.examples import make_batch, make_output


def deferred(output: EncoderOutput, batch: Batch) -> EncoderOutput:
    """The same output, its logits yet to be multiplied out and the masked rows first."""
    assert output.logits is not None
    order = batch.masked_first
    projection = Projection(output.logits[order], torch.eye(output.logits.shape[1]), None)
    return EncoderOutput(output.last_hidden_state, output.hidden_states, projection=projection, rows=order)


def shown(terms: LossTerms, student: EncoderOutput, teachers: dict[str, EncoderOutput], batch: Batch) -> Tensor:
    """The teacher's logits `[masked, vocabulary]` that an observer of the loss is shown."""
    found: list[Tensor] = []

    def observer(_: Tensor, teacher: Tensor | None, labels: Tensor | None) -> None:
        if labels is not None:
            assert teacher is not None
            found.append(teacher.clone())

    terms.total(student, teachers, batch, batch.counts, observer=observer)
    return torch.cat(found)


ONE = {"t": 1.0}  # the only teacher, with all of the mean

OBJECTIVES = {
    "soft": SoftTargetLoss(2.0, positions="all", weight=5.0),
    "unmasked": TeacherLabelLoss("unmasked", weight=0.5),
    "mlm": MaskedLMLoss(weight=2.0),
    "cosine": HiddenCosineLoss(weight=1.0),
    "watched": SoftTargetLoss(1.0, weight=0.0),
}


def test_one_pass_gives_what_the_terms_give_one_by_one() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    terms = LossTerms(OBJECTIVES, ONE)
    counts = {kind: 3 * count for kind, count in batch.counts.items()}  # a global batch of three such micro-batches
    together, sums = terms.total(deferred(student, batch), {"t": deferred(teacher, batch)}, batch, counts)
    expected, one_by_one = terms.total(student, {"t": teacher}, batch, counts)
    torch.testing.assert_close(together, expected)
    assert list(sums) and set(sums) == set(one_by_one) == set(OBJECTIVES)
    for name, value in sums.items():
        torch.testing.assert_close(value, one_by_one[name])
    leaves = [student.logits, student.last_hidden_state]
    for ours, theirs in zip(torch.autograd.grad(together, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


def test_a_loss_that_returns_no_sum_is_named() -> None:
    class PerToken(Objective):
        counts = "tokens"

        def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
            return student.last_hidden_state.square().mean(-1)

    batch = make_batch()
    message = r"PerToken\.forward must return a sum over the counted items \(a scalar .*\), got Tensor of shape \[\d+"
    with pytest.raises(ValueError, match=message):
        LossTerms({"own": PerToken()}).total(make_output(1), {}, batch, dict(batch.counts))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda s, t: (s - t).square().sum(-1),
            r"a sum over the counted items \(a scalar .*, got Tensor of shape \[\d+\]",
        ),
        (lambda s, t: (s - t).square().sum().item(), "a sum over .* got float"),
        (lambda s, t: (s > t).sum(), r"a sum over .* got a scalar of torch\.int64"),
        (
            lambda s, t: (s - t).detach().square().sum(),
            "a sum with a graph to the student, got one that trains nothing",
        ),
    ],
)
def test_rows_of_logits_that_give_no_sum_are_named(answer: Any, message: str) -> None:
    """In the pass over the vocabulary and outside of it."""

    class Own(LogitObjective):
        def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Any:
            return answer(student_logits, teacher_logits)

    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    terms = LossTerms({"own": Own()}, ONE)
    for outputs in ((student, {"t": teacher}), (deferred(student, batch), {"t": deferred(teacher, batch)})):
        with pytest.raises(ValueError, match=rf"^Own\.compare must return {message}"):
            terms.total(*outputs, batch, batch.counts)


def test_a_detached_loss_may_be_watched_and_may_be_evaluated() -> None:
    class Own(Objective):
        counts = "tokens"

        def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
            return student.last_hidden_state.detach().square().sum()

    batch = make_batch()
    with torch.no_grad():
        assert LossTerms({"own": Own()}).total(make_output(1), {}, batch, batch.counts)[0] > 0
    assert LossTerms({"own": Own(weight=0.0)}).total(make_output(1), {}, batch, batch.counts)[1]["own"] > 0
    with pytest.raises(ValueError, match="trains nothing; is something detached"):
        LossTerms({"own": Own()}).total(make_output(1), {}, batch, batch.counts)


def test_an_objective_that_does_more_than_rows_is_called_itself() -> None:
    class Penalised(SoftTargetLoss):
        def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
            return super().forward(student, teacher, batch) + 100.0

    class Scaled(LogitObjective):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def compare(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return (self.scale * student_logits - teacher_logits).square().sum()

    assert SoftTargetLoss().shares_the_pass and not Penalised().shares_the_pass and not Scaled().shares_the_pass
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    terms = LossTerms({"penalised": Penalised(), "scaled": Scaled(), "mlm": MaskedLMLoss()}, ONE)
    outputs = deferred(student, batch), {"t": deferred(teacher, batch)}
    loss, sums = terms.total(*outputs, batch, batch.counts)
    torch.testing.assert_close(loss, terms.total(student, {"t": teacher}, batch, batch.counts)[0])
    assert sums["penalised"] > 100
    loss.backward()
    assert terms.objectives["scaled"].scale.grad.abs() > 0  # type: ignore[union-attr]


def test_gradient_norms_are_those_of_each_term_alone() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    terms = LossTerms(OBJECTIVES, ONE)
    assert student.logits is not None
    leaves: Any = [student.logits, student.last_hidden_state]
    outputs = deferred(student, batch), {"t": deferred(teacher, batch)}
    norms = terms.gradient_norms(leaves, *outputs, batch, batch.counts)
    assert set(norms) == set(OBJECTIVES) - {"watched"}
    for name, norm in norms.items():
        objective: Any = OBJECTIVES[name]
        alone = objective.weight * objective(student, teacher, batch) / batch.counts[objective.counts]
        gradients = torch.autograd.grad(alone, leaves, allow_unused=True)
        torch.testing.assert_close(norm, torch.cat([g.flatten() for g in gradients if g is not None]).norm())
    # the graph is still there for the step itself
    terms.total(*outputs, batch, batch.counts)[0].backward()
    assert student.logits.grad is not None and student.logits.grad.abs().sum() > 0


def test_what_a_term_trains_has_a_gradient_from_the_first_step_on() -> None:
    """DDP would not hear of it while the weight is 0."""
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    width = student.last_hidden_state.shape[1]
    late = HiddenMSELoss([[-1, -1]], student_width=width, teacher_width=width, weight=Stages([0.0, 1.0], until=[1]))
    terms = LossTerms({"mlm": MaskedLMLoss(), "late": late}, ONE)
    found = []
    for step in (0, 1):
        terms.set_step(step)
        late.zero_grad()
        terms.total(student, {"t": teacher}, batch, batch.counts)[0].backward()
        found.append([p.grad.abs().max().item() for p in late.parameters() if p.grad is not None])
    assert found[0] == [0.0, 0.0] and min(found[1]) > 0


def test_a_pass_in_which_nothing_weighs_multiplies_nothing_back() -> None:
    """Where all terms are on hidden states, two of a step's largest products would be of zeros."""
    batch, student = make_batch(), deferred(make_output(1), make_batch())
    counted: list[str] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    for weight, products in ((0.0, 1), (1.0, 2)):  # the logits; and the gradient of the hidden states
        terms = LossTerms({"mlm": MaskedLMLoss(weight=weight)})
        counted.clear()
        with Counter():
            loss, _ = terms.total(student, {}, batch, batch.counts)
        assert sum(name in ("mm", "baddbmm", "addmm_") for name in counted) == products
        assert isinstance(student.projection, Projection)
        (gradient,) = torch.autograd.grad(loss, student.projection.features, retain_graph=True)
        assert gradient.any() == bool(weight)


def test_a_term_that_does_not_say_which_of_several_teachers_is_an_error() -> None:
    batch, student = make_batch(), make_output(1)
    teachers = {"a": make_output(2), "b": make_output(3)}
    terms = LossTerms({"cosine": HiddenCosineLoss()}, {"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match=r"HiddenCosineLoss compares with one teacher, got \['a', 'b'\]"):
        terms.total(student, teachers, batch, batch.counts)
    terms = dataclasses.replace(terms, own_teacher={"cosine": "b"})
    torch.testing.assert_close(
        terms.total(student, teachers, batch, batch.counts)[1]["cosine"],
        HiddenCosineLoss()(student, teachers["b"], batch).detach(),
    )


def test_a_weight_that_is_zero_at_first_is_no_mistake_and_one_below_zero_is() -> None:
    assert SoftTargetLoss(weight=Stages([0.0, 1.0], [3])).heaviest == 1.0
    with pytest.raises(ValueError, match="weight of SoftTargetLoss must be 0 or more"):
        SoftTargetLoss(weight=LinearRamp(1.0, -0.5, steps=4))
    with pytest.raises(ValueError, match="temperature must be positive"):
        SoftTargetLoss(LinearRamp(2.0, 0.0, steps=4))


def test_each_network_is_asked_for_what_its_own_terms_need() -> None:
    """Hidden states and attention of a teacher that no term compares with there would cost memory for nothing."""
    objectives: dict[str, Objective] = {
        "soft": SoftTargetLoss(),
        "deep": RelationLoss(teacher_layer=3),
        "map": AttentionLoss([[1, 4]]),
        "hidden": HiddenMSELoss([[1, 1]]),
        "mlm": MaskedLMLoss(),
    }
    own = {"deep": "large", "map": "large", "hidden": "small"}
    terms = LossTerms(objectives, {"large": 0.5, "small": 0.5}, own)
    assert {name: terms.teachers_of(name) for name in objectives} == {
        "soft": ("large", "small"),
        "deep": ("large",),
        "map": ("large",),
        "hidden": ("small",),
        "mlm": (),
    }
    student, teachers = terms.requests(2, {"large": 4, "small": 2})
    assert student == {"output_hidden_states": True, "attention_layers": (1, 2)}
    assert teachers["large"] == {"output_hidden_states": False, "attention_layers": (3, 4)}
    assert teachers["small"] == {"output_hidden_states": True, "attention_layers": ()}
    # a cached teacher does not run, so nothing is asked of the student for its sake
    assert terms.requests(2, {"small": 2})[0]["attention_layers"] == ()
    batch = make_batch()
    assert torch.equal(terms.rows(batch), batch.masked_positions)  # type: ignore[arg-type]
    assert torch.equal(terms.rows(batch, all_rows=True), batch.masked_first)
    everywhere = LossTerms({"soft": SoftTargetLoss(positions="unmasked")}, {"large": 1.0})
    assert torch.equal(everywhere.rows(batch), batch.masked_first)


def test_an_observer_is_shown_the_mean_teacher_whether_logits_are_deferred_or_not() -> None:
    batch, student = make_batch(), make_output(1)
    teachers = {"a": make_output(2), "b": make_output(3)}
    terms = LossTerms({"mlm": MaskedLMLoss()}, {"a": 0.75, "b": 0.25})
    found = shown(terms, student, teachers, batch).softmax(-1)
    rows = batch.masked_positions
    expected = sum(
        share * output.logits[rows].softmax(-1)  # type: ignore[index]
        for share, output in zip(terms.shares.values(), teachers.values(), strict=True)
    )
    torch.testing.assert_close(found, expected)
    in_pass = {name: deferred(output, batch) for name, output in teachers.items()}
    torch.testing.assert_close(shown(terms, deferred(student, batch), in_pass, batch).softmax(-1), expected)


def test_logits_that_were_looked_at_before_do_not_keep_a_step_from_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric of gradients asks each term alone first, and one with its own `forward` multiplies logits out."""
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    terms = LossTerms(OBJECTIVES, ONE)
    expected, _ = terms.total(deferred(student, batch), {"t": deferred(teacher, batch)}, batch, batch.counts)
    ours, theirs = deferred(student, batch), deferred(teacher, batch)
    logits_at(ours, batch, "masked")
    logits_at(theirs, batch, "masked")
    passes: list[VocabularyPass] = []
    run = VocabularyPass.__call__
    monkeypatch.setattr(VocabularyPass, "__call__", lambda self, student: passes.append(self) or run(self, student))
    found, _ = terms.total(ours, {"t": theirs}, batch, batch.counts)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [len(one.terms) for one in passes] == [4], "all but the cosine"
