"""Student beside teacher: the figures against formulae written out here."""

from __future__ import annotations

import pytest
import torch

from lit_distil.commands.student import compare
from lit_distil.models import CrossArchitecture, FirstLayers, FromConfig, MaskedLMNetwork
from tests.models.helpers import make_batch, make_model


def test_scores_are_means_over_the_masked_tokens_of_unequal_batches() -> None:
    teacher = make_model("bert")
    student, _ = FirstLayers(1).build(teacher)
    networks = MaskedLMNetwork(teacher.train()), MaskedLMNetwork(student.eval())
    batches = [make_batch((9, 30)), make_batch((7,), seed=1), make_batch((20, 20, 5), seed=2)]
    scores = compare(*networks, batches)
    teacher.eval()

    rows: list[list[torch.Tensor]] = [[], [], []]
    for batch in batches:
        for found, network in zip(rows, networks, strict=False):
            with torch.no_grad():
                found.append(network(batch, rows="all").logits[batch.masked_positions].double().log_softmax(-1))
        rows[2].append(batch.masked_labels)  # type: ignore[arg-type]
    theirs, ours, labels = (torch.cat(parts) for parts in rows)
    assert scores.num_masked == len(labels) > 15
    assert scores.teacher_loss == pytest.approx(-theirs.gather(1, labels[:, None]).mean().item(), rel=1e-5)
    assert scores.student_loss == pytest.approx(-ours.gather(1, labels[:, None]).mean().item(), rel=1e-5)
    assert scores.teacher_accuracy == pytest.approx((theirs.argmax(1) == labels).double().mean().item())
    assert scores.student_accuracy == pytest.approx((ours.argmax(1) == labels).double().mean().item())
    assert scores.agreement == pytest.approx((ours.argmax(1) == theirs.argmax(1)).double().mean().item())
    assert scores.kl == pytest.approx((theirs.exp() * (theirs - ours)).sum(1).mean().item(), rel=1e-5)
    assert scores.kl > 0.01


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert", "mpnet", "deberta"])
def test_a_student_with_all_layers_has_a_divergence_of_zero(name: str) -> None:
    teacher = make_model(name)
    student, _ = FirstLayers(teacher.config.num_hidden_layers).build(teacher)
    scores = compare(MaskedLMNetwork(teacher), MaskedLMNetwork(student), [make_batch()])
    assert scores.kl == 0.0 and scores.agreement == 1.0
    assert scores.student_loss == scores.teacher_loss > 0


def test_networks_with_other_padding_are_compared_over_the_entries() -> None:
    teacher = make_model("bert")
    student, _ = CrossArchitecture(FromConfig("bert", config={"vocab_size": 64})).build(teacher)
    networks, batches = (MaskedLMNetwork(teacher), MaskedLMNetwork(student)), [make_batch()]
    scores = compare(*networks, batches, num_entries=60)
    assert scores.kl == pytest.approx(0.0, abs=1e-6) and scores.agreement == 1.0
    with pytest.raises(ValueError, match="differ in shape"):
        compare(*networks, batches)


def test_no_masked_token_is_an_error_and_not_a_nan() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    batch = make_batch()
    batch.masked_positions = batch.masked_labels = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"data\.masking: no token is masked"):
        compare(network, network, [batch])
