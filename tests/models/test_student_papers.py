"""DistilBERT's and DistilRoBERTa's initialisation, tensor by tensor, by the authors' rule written out here.

The rule is that of the scripts with which the authors took their students' weights out of bert-base and roberta-base:
layers 0, 2, 4, 7, 9, 11 of 12, word and position embeddings, the embeddings' LayerNorm, the vocabulary projection, and
on request its transform. DistilBERT has no token types and no pooler; DistilRoBERTa copies the token types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distil.models import CrossArchitecture, DistilBertFromBert, EvenlySpaced, FromConfig, Layers

from .helpers import make_model

TEACHER_LAYERS = [0, 2, 4, 7, 9, 11]


def distilbert_by_the_paper(teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's state dict out of BERT's, as the authors' script fills it, with the first segment folded."""
    student: dict[str, Tensor] = {}
    words = teacher["bert.embeddings.word_embeddings.weight"]
    student["distilbert.embeddings.word_embeddings.weight"] = words
    # the authors drop the token types; added to every position they are still there
    segment = teacher["bert.embeddings.token_type_embeddings.weight"][0]
    positions = teacher["bert.embeddings.position_embeddings.weight"]
    student["distilbert.embeddings.position_embeddings.weight"] = positions + segment[None]
    for w in ["weight", "bias"]:
        student[f"distilbert.embeddings.LayerNorm.{w}"] = teacher[f"bert.embeddings.LayerNorm.{w}"]
    for std_idx, teacher_idx in enumerate(TEACHER_LAYERS):
        mine, its = f"distilbert.transformer.layer.{std_idx}", f"bert.encoder.layer.{teacher_idx}"
        for w in ["weight", "bias"]:
            student[f"{mine}.attention.q_lin.{w}"] = teacher[f"{its}.attention.self.query.{w}"]
            student[f"{mine}.attention.k_lin.{w}"] = teacher[f"{its}.attention.self.key.{w}"]
            student[f"{mine}.attention.v_lin.{w}"] = teacher[f"{its}.attention.self.value.{w}"]
            student[f"{mine}.attention.out_lin.{w}"] = teacher[f"{its}.attention.output.dense.{w}"]
            student[f"{mine}.sa_layer_norm.{w}"] = teacher[f"{its}.attention.output.LayerNorm.{w}"]
            student[f"{mine}.ffn.lin1.{w}"] = teacher[f"{its}.intermediate.dense.{w}"]
            student[f"{mine}.ffn.lin2.{w}"] = teacher[f"{its}.output.dense.{w}"]
            student[f"{mine}.output_layer_norm.{w}"] = teacher[f"{its}.output.LayerNorm.{w}"]
    student["vocab_projector.weight"] = teacher["cls.predictions.decoder.weight"]
    student["vocab_projector.bias"] = teacher["cls.predictions.bias"]
    for w in ["weight", "bias"]:
        student[f"vocab_transform.{w}"] = teacher[f"cls.predictions.transform.dense.{w}"]
        student[f"vocab_layer_norm.{w}"] = teacher[f"cls.predictions.transform.LayerNorm.{w}"]
    return student


def distilroberta_by_the_paper(teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    student: dict[str, Tensor] = {}
    for w in ["word_embeddings", "position_embeddings", "token_type_embeddings"]:
        student[f"roberta.embeddings.{w}.weight"] = teacher[f"roberta.embeddings.{w}.weight"]
    for w in ["weight", "bias"]:
        student[f"roberta.embeddings.LayerNorm.{w}"] = teacher[f"roberta.embeddings.LayerNorm.{w}"]
    for std_idx, teacher_idx in enumerate(TEACHER_LAYERS):
        for layer in [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ]:
            for w in ["weight", "bias"]:
                source = teacher[f"roberta.encoder.layer.{teacher_idx}.{layer}.{w}"]
                student[f"roberta.encoder.layer.{std_idx}.{layer}.{w}"] = source
    for layer in ["lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"]:
        student[layer] = teacher[layer]
    for w in ["weight", "bias"]:
        student[f"lm_head.dense.{w}"] = teacher[f"lm_head.dense.{w}"]
        student[f"lm_head.layer_norm.{w}"] = teacher[f"lm_head.layer_norm.{w}"]
    return student


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert value.abs().sum() > 0 or name.endswith("bias"), name  # not vacuous


def test_distilbert_is_filled_by_the_papers_rule() -> None:
    teacher = make_model("bert", num_hidden_layers=12)
    expected = distilbert_by_the_paper(teacher.state_dict())
    assert len(expected) == 4 + 6 * 16 + 6
    assert_equal(DistilBertFromBert().build(teacher)[0].state_dict(), expected)
    spaced = CrossArchitecture(FromConfig("distilbert"), layers=EvenlySpaced(6))
    assert_equal(spaced.build(teacher)[0].state_dict(), expected)


def test_distilroberta_is_filled_by_the_papers_rule() -> None:
    teacher = make_model("roberta", num_hidden_layers=12)
    expected = distilroberta_by_the_paper(teacher.state_dict())
    assert len(expected) == 5 + 6 * 16 + 7
    for student in (Layers(TEACHER_LAYERS), EvenlySpaced(6)):
        assert_equal(student.build(teacher)[0].state_dict(), expected)
