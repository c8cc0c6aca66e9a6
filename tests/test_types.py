"""The batch that data and modules meet in."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lit_distil.types import COUNTABLES, Batch, Piece, refuse_result


def make_batch(**changes: object) -> Batch:
    lengths = (3, 5, 2)
    fields = {
        "input_ids": torch.arange(10)[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens": torch.tensor([0, 3, 8, 10], dtype=torch.int32),
        "lengths": lengths,
        "sample_ids": torch.tensor([7, 8, 9]),
        "masked_positions": torch.tensor([1, 6]),
        "masked_labels": torch.tensor([4, 4]),
        **changes,
    }
    return Batch(**fields)  # type: ignore[arg-type]


def test_counts_name_every_countable() -> None:
    """A kind that is missing would be divided by nothing, or raise far from here."""
    assert make_batch().counts == {"masked": 2, "unmasked": 8, "tokens": 10, "sequences": 3, "labels": 0}
    assert tuple(make_batch().counts) == COUNTABLES


def test_labels_without_their_number_are_refused() -> None:
    """Counted as none, they would make the loss a sum instead of a mean."""
    assert make_batch(labels=torch.tensor([0, 1, 0]), num_labels=3).counts["labels"] == 3
    with pytest.raises(ValueError, match=r"Batch\.num_labels: the batch has labels, and does not say how many"):
        _ = make_batch(labels=torch.tensor([0, 1, 0])).counts


def test_a_batch_that_was_never_masked_counts_no_masked_position() -> None:
    assert make_batch(masked_positions=None, masked_labels=None).counts["masked"] == 0


def test_first_positions_are_where_sequences_begin_and_can_index() -> None:
    batch = make_batch()
    assert batch.first_positions.dtype == torch.int64
    assert batch.input_ids[0, batch.first_positions].tolist() == [0, 3, 8]


@pytest.mark.parametrize("device", ["meta"])
def test_moving_takes_every_tensor_along_and_loses_no_field(device: str) -> None:
    """A field that stays behind fails only on a GPU."""
    every_field = {
        "token_type_ids": torch.zeros(1, 10, dtype=torch.int64),
        "next_sentence_labels": torch.zeros(3, dtype=torch.int64),
        "labels": torch.zeros(3),
        "answer_spans": torch.zeros(3, 2, dtype=torch.int64),
        "num_labels": 3,
        "group_sizes": (2, 1),
        "mask_keys": ((7, 0), (8, 1), (9, 0)),
        "step_counts": {"masked": 5},
    }
    batch = make_batch(**every_field)
    moved = batch.to(device)
    for field in dataclasses.fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        assert after is not None, field.name
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.dtype, after.shape) == (device, before.dtype, before.shape), field.name
        else:
            assert after == before, field.name
    assert batch.input_ids.device.type == "cpu"


def test_what_an_overridden_method_returns_passes_the_checks_of_all_its_bases() -> None:
    def positive(piece: Piece, result: int, step: int) -> int:
        return result if result > 0 else refuse_result(piece, "at", f"be positive at {step}", result)

    class Counts(Piece):
        contracts = {"at": positive}

        def at(self, step: int) -> int:
            return 1

    class Named(Piece):
        contracts = {"name": lambda piece, result: result.upper()}

    class Own(Named, Counts):
        def at(self, step: int) -> int:
            """Down from 3."""
            return 3 - step

        def name(self) -> str:
            return "own"

    assert Own().at(step=2) == 1 and Own().name() == "OWN" and Own.at.__doc__ == "Down from 3."
    assert Own.__new__(type("Deeper", (Own,), {})).at(0) == 3
    with pytest.raises(ValueError, match=r"^Own\.at must be positive at 3, got int$"):
        Own().at(3)
