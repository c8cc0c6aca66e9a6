"""What would go wrong in silence, or in the middle of an epoch, is said before the first step."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from lit_distil.models import CrossArchitecture, EveryOther, FromConfig, MaskedLMNetwork
from lit_distil.modules.checks import check_pair
from lit_distil.types import Vocabulary
from tests.models.helpers import VOCABULARY, make_model


def make_data(max_length: int = 20, *, pad: int = 0, has_segments: bool = False) -> Any:
    dataset = SimpleNamespace(has_segments=has_segments)
    vocabulary = Vocabulary(60, {**VOCABULARY.special_ids, "pad_token_id": pad})
    return SimpleNamespace(datasets={"train": dataset}, vocabulary=vocabulary, max_length=max_length)


def networks(teacher_type: str, student: Any = None, **changes: Any) -> tuple[MaskedLMNetwork, MaskedLMNetwork]:
    teacher = make_model(teacher_type, **changes)
    made, _ = (student or EveryOther()).build(teacher)
    return MaskedLMNetwork(made), MaskedLMNetwork(teacher)


def test_a_pair_that_fits_is_let_through_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair(*networks("bert"), make_data(64, has_segments=True))
        check_pair(*networks("roberta"), make_data(64, pad=1))
        check_pair(*networks("modernbert"), make_data(1000))  # no position table


def test_a_sequence_longer_than_either_position_table_is_refused_with_the_limit() -> None:
    with pytest.raises(
        ValueError,
        match=r"65 tokens are more than the position table of the student \(bert\) has room for, which are 64",
    ):
        check_pair(*networks("bert"), make_data(65))
    longer = CrossArchitecture(FromConfig("bert", config={"max_position_embeddings": 128}))
    with pytest.raises(
        ValueError, match=r"of the teacher \(roberta\) has room for, which are 64; set data\.max_length to 64"
    ):
        check_pair(*networks("roberta", longer), make_data(65, pad=1))


def test_another_padding_id_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model\.student: its config has pad_token_id=1 and the tokenizer pads with 0"
    ):
        check_pair(*networks("roberta"), make_data())


def test_a_student_without_segments_is_a_warning_where_they_matter() -> None:
    pair = networks("bert", CrossArchitecture(FromConfig("distilbert")))
    with pytest.warns(UserWarning, match="type_vocab_size=0 and sees every token in the first segment"):
        check_pair(*pair, make_data(has_segments=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair(*pair, make_data())
