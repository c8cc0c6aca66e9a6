"""Sentence embeddings against padded transformers, and the losses on them against their formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from lit_distil.models import MaskedLMNetwork
from lit_distil.objectives import EmbeddingCosineLoss, EmbeddingRelationLoss
from lit_distil.objectives.capabilities import NetworkCapabilities
from lit_distil.objectives.embedding import SentenceFormat, read_sentence_format, unit_embeddings
from lit_distil.objectives.functional import embedding_relation_kl, pool_sequences
from lit_distil.types import EncoderOutput
from tests.models.helpers import make_batch as flat_batch
from tests.models.helpers import make_model, padded_inputs

from .examples import LENGTHS, make_batch, make_output


def pooled_by_hand(states: Tensor, pooling: str) -> Tensor:
    parts = states.detach().split(LENGTHS)
    return torch.stack([part.mean(0) if pooling == "mean" else part[0] for part in parts])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_flat_embeddings_equal_those_of_the_padded_network(pooling: str, tmp_path: Path) -> None:
    batch = flat_batch(segments=True)
    network = MaskedLMNetwork(make_model("bert"))
    network.model.base_model.save_pretrained(tmp_path)
    states = network(batch).last_hidden_state
    found = unit_embeddings(states, batch.cu_seq_lens, pooling)  # type: ignore[arg-type]

    inputs, mask = padded_inputs(batch, pad_id=0)
    with torch.no_grad():
        padded = AutoModel.from_pretrained(tmp_path)(**inputs).last_hidden_state
    summed = (padded * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(summed if pooling == "mean" else padded[:, 0], dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.shape == (batch.num_sequences, 16)


def test_the_gradient_of_the_mean_reaches_every_token_alike() -> None:
    batch, output = make_batch(), make_output(1)
    pool_sequences(output.last_hidden_state, batch.cu_seq_lens, "mean").sum().backward()
    gradient: Any = output.last_hidden_state.grad
    expected = torch.cat([torch.full((length, 6), 1 / length) for length in LENGTHS])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_cosine_loss_is_the_sum_over_sequences_of_one_minus_the_cosine(pooling: Any) -> None:
    batch, student, teacher = make_batch(masked=None), make_output(1), make_output(2)
    ours, theirs = (pooled_by_hand(one.last_hidden_state, pooling) for one in (student, teacher))
    expected = sum(
        1 - float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))
        for a, b in zip(ours, theirs, strict=True)
    )
    loss = EmbeddingCosineLoss(pooling)
    value = loss(student, teacher, batch)
    assert value.item() == pytest.approx(expected, rel=1e-5) and expected > 0.1
    assert (loss.counts, loss.rows, loss.needs_hidden_states) == ("sequences", None, False)
    value.backward()
    assert teacher.last_hidden_state.grad is None


def test_relation_loss_is_the_divergence_over_the_other_texts() -> None:
    batch, student, teacher = make_batch(masked=None), make_output(1, width=4), make_output(2)
    temperature, total = 0.3, 0.0
    rows = []
    for output in (student, teacher):
        unit = [one / one.norm() for one in pooled_by_hand(output.last_hidden_state, "mean").double()]
        rows.append([[float(a @ b) / temperature for b in unit if b is not a] for a in unit])
    for ours, theirs in zip(*rows, strict=True):
        q, p = ([math.exp(one) / sum(map(math.exp, row)) for one in row] for row in (ours, theirs))
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    value = EmbeddingRelationLoss(temperature, pooling="mean")(student, teacher, batch)
    assert value.item() == pytest.approx(total, rel=1e-4) and total > 1e-3
    same = embedding_relation_kl(*[pooled_by_hand(student.last_hidden_state, "mean")] * 2, temperature)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_a_text_that_is_alone_adds_nothing_and_keeps_the_graph() -> None:
    batch = flat_batch((7,))
    states = [torch.randn(7, 4, requires_grad=True) for _ in range(2)]
    value = EmbeddingRelationLoss(pooling="cls")(EncoderOutput(states[0]), EncoderOutput(states[1]), batch)
    value.backward()
    assert value.item() == 0 and states[0].grad is not None and not states[0].grad.any()


def write_beside(folder: Path, **files: Any) -> str:
    for name, content in files.items():
        path = (
            folder
            / {"pooling": "1_Pooling/config.json", "modules": "modules.json", "bert": "sentence_bert_config.json"}[name]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return str(folder)


OLD = {"word_embedding_dimension": 4, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
NEW = {"embedding_dimension": 4, "pooling_mode": "mean", "include_prompt": True}


def test_the_folder_says_how_to_pool_in_its_old_and_its_new_form(tmp_path: Path) -> None:
    old = write_beside(tmp_path / "old", pooling=OLD, bert={"max_seq_length": 256})
    new = write_beside(tmp_path / "new", pooling=NEW)
    assert read_sentence_format(old) == SentenceFormat("cls", 256)
    assert read_sentence_format(new) == SentenceFormat("mean")
    assert read_sentence_format(str(tmp_path)) is None
    assert read_sentence_format("no-such-folder/nor-name/at-all") is None
    SentenceFormat("cls", 32).write(tmp_path / "new", width=4)  # what is written is read
    assert read_sentence_format(new) == SentenceFormat("cls", 32)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pooling": {**NEW, "pooling_mode": "max"}}, r"pools its token states by \['max'\]"),
        ({"pooling": {**OLD, "pooling_mode_mean_tokens": True}}, r"by \['cls', 'mean'\]"),
        (
            {"pooling": NEW, "modules": [{"type": "sentence_transformers.models.Dense"}]},
            "models.Dense among its modules",
        ),
    ],
)
def test_embeddings_that_are_more_than_a_mean_or_a_state_are_refused(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_beside(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        read_sentence_format(folder)
    ours = NetworkCapabilities("bert", 2, 4)
    theirs = NetworkCapabilities("bert", 4, 4, name=folder)
    with pytest.raises(ValueError, match=r"pooling: .*set pooling"):
        EmbeddingCosineLoss().check(ours, theirs)
    EmbeddingCosineLoss("cls").check(ours, theirs)  # comparing in another way is a choice


def test_check_takes_the_teachers_way_and_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    ours = NetworkCapabilities("bert", 2, 4)
    teacher = NetworkCapabilities("bert", 4, 4, name=write_beside(tmp_path, pooling=OLD, bert={"max_seq_length": 256}))
    loss = EmbeddingCosineLoss()
    with pytest.raises(ValueError, match="set pooling to mean or cls"):
        loss(make_output(1), make_output(2), make_batch())
    loss.check(ours, teacher)
    assert loss.format == SentenceFormat("cls", 256)
    chosen = EmbeddingCosineLoss("mean")
    chosen.check(ours, teacher)
    assert chosen.format == SentenceFormat("mean", 256)
    with pytest.raises(ValueError, match=r"pooling: nothing beside the teacher .*a model in memory"):
        EmbeddingCosineLoss().check(ours, NetworkCapabilities("bert", 4, 4))
    with pytest.raises(ValueError, match="equal widths, the student's is 4 and the teacher's 6"):
        EmbeddingCosineLoss("mean").check(ours, NetworkCapabilities("bert", 4, 6))
    EmbeddingRelationLoss(pooling="mean").check(ours, NetworkCapabilities("bert", 4, 6))
    with pytest.raises(ValueError, match="compares with a teacher"):
        EmbeddingRelationLoss(pooling="mean").check(ours, None)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="pooling must be 'mean', 'cls' or null"):
        EmbeddingCosineLoss("max")  # type: ignore[arg-type]
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature must be positive and below 1e15"):
            EmbeddingRelationLoss(temperature)
