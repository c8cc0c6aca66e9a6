from __future__ import annotations

import pytest

from lit_distil.objectives import LogitMSELoss, SoftTargetLoss

from .examples import VOCABULARY, make_batch, make_output


@pytest.mark.filterwarnings("ignore:temperature")
def test_soft_targets_tend_to_logit_matching_as_temperature_grows() -> None:
    batch, student, teacher = make_batch(), make_output(1), make_output(2)
    for output in (student, teacher):
        assert output.logits is not None
        output.logits = (output.logits - output.logits.mean(-1, keepdim=True)).detach()
    matching = LogitMSELoss()(student, teacher, batch).item() / (2 * VOCABULARY)
    assert SoftTargetLoss(1e4)(student, teacher, batch).item() == pytest.approx(matching, rel=1e-3)


def test_vocabularies_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        LogitMSELoss()(make_output(1), make_output(2, vocabulary=1), make_batch())
