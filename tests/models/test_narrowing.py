"""Narrower students: every tensor is the slice that an independent rule says, or exact where nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForSequenceClassification

from lit_distil.models import EveryOther, FirstLayers, Layers, MaskedLMNetwork, Narrower
from lit_distil.models.students.narrower import projection_of

from .helpers import make_batch, make_model

BATCH = make_batch()
KNOWN = ["bert", "roberta", "camembert", "xlm-roberta", "distilbert", "electra", "mpnet", "modernbert"]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found = MaskedLMNetwork(model.eval())(BATCH, rows="all").logits  # type: ignore[arg-type]
    assert found is not None
    return found


# Slicing


def test_bert_is_sliced_head_by_head() -> None:
    """16 wide with 2 heads of 8, to 8 wide with 2 heads of 4: the slices are written out here."""
    teacher = make_model("bert", num_hidden_layers=4)
    student, records = Narrower(8, num_attention_heads=2, intermediate_size=10, layers=EveryOther()).build(teacher)
    ours, theirs = student.state_dict(), teacher.state_dict()
    heads = [0, 1, 2, 3, 8, 9, 10, 11]
    for number, layer in ((0, 0), (1, 2)):
        mine, its = f"bert.encoder.layer.{number}.", f"bert.encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            name = f"attention.self.{part}."
            assert torch.equal(ours[f"{mine}{name}weight"], theirs[f"{its}{name}weight"][heads][:, :8])
            assert torch.equal(ours[f"{mine}{name}bias"], theirs[f"{its}{name}bias"][heads])
        name = "attention.output.dense.weight"
        assert torch.equal(ours[mine + name], theirs[its + name][:8][:, heads])
        assert torch.equal(ours[f"{mine}intermediate.dense.weight"], theirs[f"{its}intermediate.dense.weight"][:10, :8])
        assert torch.equal(ours[f"{mine}intermediate.dense.bias"], theirs[f"{its}intermediate.dense.bias"][:10])
        assert torch.equal(ours[f"{mine}output.dense.weight"], theirs[f"{its}output.dense.weight"][:8, :10])
        assert torch.equal(ours[f"{mine}output.LayerNorm.weight"], theirs[f"{its}output.LayerNorm.weight"][:8])
    for name in ("word", "position", "token_type"):
        name = f"bert.embeddings.{name}_embeddings.weight"
        assert torch.equal(ours[name], theirs[name][:, :8])
    name = "cls.predictions.transform.dense.weight"
    assert torch.equal(ours[name], theirs[name][:8, :8])
    assert torch.equal(ours["cls.predictions.bias"], theirs["cls.predictions.bias"])
    assert {record.name for record in records if record.origin == "copied"} == {
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
    }
    assert all(record.origin == "sliced" for record in records if record.shape != record.source_shape)


def test_modernberts_fused_matrices_are_sliced_block_by_block() -> None:
    """Q, K and V stand one after the other in one matrix, and so do the gate and its input."""
    teacher = make_model("modernbert")
    student, _ = Narrower(8, intermediate_size=12).build(teacher)
    assert student.config.num_attention_heads == 1
    ours, theirs = student.state_dict(), teacher.state_dict()
    fused = theirs["model.layers.1.attn.Wqkv.weight"].view(3, 2, 8, 16)  # [q k v, heads, head size, hidden]
    assert torch.equal(ours["model.layers.1.attn.Wqkv.weight"], fused[:, :1, :, :8].reshape(24, 8))
    gated = theirs["model.layers.1.mlp.Wi.weight"].view(2, 24, 16)
    assert torch.equal(ours["model.layers.1.mlp.Wi.weight"], gated[:, :12, :8].reshape(24, 8))
    assert torch.equal(ours["model.layers.1.mlp.Wo.weight"], theirs["model.layers.1.mlp.Wo.weight"][:8, :12])


@pytest.mark.parametrize("method", ["slice", "project"])
@pytest.mark.parametrize("name", KNOWN)
def test_narrower_student_trains_and_loads(name: str, method: str, tmp_path: Path) -> None:
    teacher = make_model(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student, records = Narrower(8, layers=FirstLayers(2), method=method).build(teacher)  # type: ignore[arg-type]
    assert student.training and student.config.hidden_size == 8
    assert student.get_input_embeddings().weight.shape[1] == (12 if name == "electra" else 8)
    assert [record.name for record in records] == list(student.state_dict())
    assert "new" not in {record.origin for record in records}
    assert ("projected" if method == "project" else "sliced") in {record.origin for record in records}
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())

    network = MaskedLMNetwork(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    output = network(BATCH, rows=BATCH.masked_positions).logits
    torch.nn.functional.cross_entropy(output, BATCH.masked_labels).backward()
    with_gradient = [n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(with_gradient) > 0.8 * len(list(student.parameters()))
    optimizer.step()
    student.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(student), atol=1e-5, rtol=1e-5)


def test_the_teachers_own_widths_change_nothing() -> None:
    for name in KNOWN:
        teacher = make_model(name)
        method = "project" if name == "bert" else "slice"
        student, records = Narrower(16, method=method).build(teacher)  # type: ignore[arg-type]
        assert {record.origin for record in records} == {"copied"}
        assert torch.equal(logits(student), logits(teacher)), name


def test_inner_width_alone_and_electras_embeddings_alone() -> None:
    teacher = make_model("bert")
    student, _ = Narrower(intermediate_size=5).build(teacher)
    assert (student.config.hidden_size, student.config.num_attention_heads) == (16, 2)
    assert student.state_dict()["bert.encoder.layer.0.output.dense.weight"].shape == (16, 5)
    teacher = make_model("electra")
    student, _ = Narrower(8, embedding_size=6).build(teacher)
    assert student.config.embedding_size == 6
    ours, theirs = student.state_dict(), teacher.state_dict()
    for name, shape in (("electra.embeddings_project.weight", (8, 6)), ("generator_predictions.dense.weight", (6, 8))):
        assert torch.equal(ours[name], theirs[name][: shape[0], : shape[1]])
    teacher = make_model("electra", embedding_size=16)  # no matrix after the embeddings: they are the stream
    student, _ = Narrower(8).build(teacher)
    assert student.config.embedding_size == 8 and logits(student).shape[1] == 60


@pytest.mark.parametrize("auto", [AutoModelForPreTraining, AutoModelForSequenceClassification])
def test_other_heads_are_sliced_too(auto: type) -> None:
    for name in ("bert", "roberta", "distilbert", "modernbert"):
        if auto is AutoModelForPreTraining and name != "bert":
            continue
        student, records = Narrower(8).build(make_model(name, auto))
        assert "new" not in {record.origin for record in records}
        ids = torch.arange(5, 12)[None]
        student.set_attn_implementation("eager")
        assert all(value.isfinite().all() for value in student(ids).to_tuple())


# Projection


def stream_of(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return MaskedLMNetwork(model.eval())(BATCH).last_hidden_state  # type: ignore[arg-type]


def confine(teacher: torch.nn.Module, width: int, num_heads_kept: int) -> None:
    """Keep the stream in `width` directions, the all-ones one among them, and all but the first heads silent."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.cat([torch.ones(16, 1), torch.randn(16, width - 1, generator=generator)], dim=1)
    basis = torch.linalg.qr(directions.double())[0]
    inside = (basis @ basis.T).float()
    for name, value in teacher.named_parameters():
        module = name.rpartition(".")[0]
        if "norm" in name.lower():
            value.copy_(torch.full_like(value, 1.3) if name.endswith("weight") else inside @ value)
        elif "embeddings" in module:
            value.copy_(value @ inside)
        elif module.endswith(("output.dense", "out_lin", "lin2", "Wo")):
            value.copy_(inside @ value)
            if module.endswith(("attention.output.dense", "out_lin", "attn.Wo")) and value.dim() == 2:
                value[:, 8 * num_heads_kept :] = 0


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_projection_is_exact_where_nothing_is_lost(name: str) -> None:
    """A stream of 16 that lives in 8 dimensions is the student's stream of 8, seen in another basis."""
    teacher = make_model(name)
    with torch.no_grad():
        confine(teacher, 8, 1)
    student, _ = Narrower(8, intermediate_size=24, method="project").build(teacher)
    table = teacher.get_input_embeddings().weight
    projection = projection_of(table, 8).float()
    expected = stream_of(teacher) @ projection * (8 / 16) ** 0.5
    assert expected.abs().max() > 1
    torch.testing.assert_close(stream_of(student), expected, atol=2e-5, rtol=1e-4)
    sliced, _ = Narrower(8, intermediate_size=24).build(teacher)  # not vacuous: slicing is not exact here
    assert (stream_of(sliced) - expected).abs().max() > 0.1


def test_projection_keeps_the_leading_directions_and_the_mean() -> None:
    table = torch.randn(200, 16, dtype=torch.float64) * torch.linspace(3, 0.1, 16)
    projection = projection_of(table, 6)
    torch.testing.assert_close(projection.T @ projection, torch.eye(6, dtype=torch.float64))
    ones = torch.ones(16, dtype=torch.float64)
    torch.testing.assert_close(projection.T @ ones / 16**0.5, torch.ones(6, dtype=torch.float64) / 6**0.5)
    # what is left of the centred table is what a truncated SVD of 5 directions leaves
    centred = table - table.mean(1, keepdim=True)
    lost = centred - centred @ projection @ projection.T
    assert lost.norm().item() == pytest.approx(torch.linalg.svdvals(centred)[5:].norm().item(), rel=1e-9)
    assert torch.equal(projection_of(table, 6), projection)


# What is refused


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bert", {"hidden_size": 20}, "hidden_size=20 is more than the teacher's 16"),
        ("bert", {"intermediate_size": 25}, "intermediate_size=25 is more than the teacher's 24"),
        ("bert", {"hidden_size": 12}, "hidden_size=12 is not a multiple of the teacher's head size 8"),
        ("bert", {"hidden_size": 12, "num_attention_heads": 1}, "num_attention_heads=1 with hidden_size=12.*take 2"),
        ("bert", {"hidden_size": 8, "embedding_size": 4}, "embedding_size: bert has no such width"),
        ("modernbert", {"hidden_size": 8, "num_attention_heads": 2}, "modernbert rotates them in pairs"),
        ("deberta", {"hidden_size": 8}, "model_type='deberta'.*known are bert, roberta"),
        ("albert", {"hidden_size": 8}, "albert shares one set of weights"),
        ("bert", {"hidden_size": 8, "layers": Layers([2])}, "layers: 2 is out of range; the teacher has 2 layers"),
    ],
)
def test_impossible_widths_are_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Narrower(**settings).build(make_model(name))


def test_invalid_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="give at least one of hidden_size"):
        Narrower()
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        Narrower(0)
    with pytest.raises(ValueError, match="only the layers are taken; set head: new beside layers"):
        Narrower(8, layers=EveryOther(head="new"))
    with pytest.raises(ValueError, match="method must be 'slice' or 'project', got 'pca'"):
        Narrower(8, method="pca")  # type: ignore[arg-type]
