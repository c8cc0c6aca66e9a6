"""The names under which encoders of one kind keep the same things, so that one can be made out of another."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """The names of one architecture's modules.

    Attributes:
        modules: what stands outside of the layers: `words`, `positions`, `segments`, `embedding_norm`, `widening`
            (ELECTRA's), `transform`, `transform_norm`, `decoder`, `pooler`.
        layer: name of a layer, with `{}` for its number; None where layers are not those of BERT (norms after the
            sums, positions in a table, full attention), so that none can be copied.
        parts: what a layer is made of.
        pads_positions: whether the first real position is that after the padding's.
    """

    modules: dict[str, str]
    layer: str | None = None
    parts: dict[str, str] | None = None
    pads_positions: bool = False

    def first_position(self, config: PretrainedConfig) -> int:
        """Row of the position table that the first token of a sequence takes."""
        return config.pad_token_id + 1 if self.pads_positions else 0

    def names(self, layers: list[int]) -> dict[str, str]:
        """Modules by canonical names; layer i of the list under `layer.i.`."""
        found = dict(self.modules)
        if self.layer is not None:
            for number, layer in enumerate(layers):
                prefix = self.layer.format(layer)
                found.update({f"layer.{number}.{k}": f"{prefix}.{v}" for k, v in (self.parts or {}).items()})
        return found


_BERT_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT_PARTS = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "widen": "ffn.lin1",
    "narrow": "ffn.lin2",
    "output_norm": "output_layer_norm",
}


def _embeddings(prefix: str) -> dict[str, str]:
    return {
        "words": f"{prefix}.embeddings.word_embeddings",
        "positions": f"{prefix}.embeddings.position_embeddings",
        "segments": f"{prefix}.embeddings.token_type_embeddings",
        "embedding_norm": f"{prefix}.embeddings.LayerNorm",
    }


_ROBERTA = Family(
    modules={
        **_embeddings("roberta"),
        "transform": "lm_head.dense",
        "transform_norm": "lm_head.layer_norm",
        "decoder": "lm_head.decoder",
    },
    layer="roberta.encoder.layer.{}",
    parts=_BERT_PARTS,
    pads_positions=True,
)
FAMILIES: dict[str, Family] = {
    "bert": Family(
        modules={
            **_embeddings("bert"),
            "transform": "cls.predictions.transform.dense",
            "transform_norm": "cls.predictions.transform.LayerNorm",
            "decoder": "cls.predictions.decoder",
        },
        layer="bert.encoder.layer.{}",
        parts=_BERT_PARTS,
    ),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Family(
        modules={
            **_embeddings("distilbert"),
            "transform": "vocab_transform",
            "transform_norm": "vocab_layer_norm",
            "decoder": "vocab_projector",
        },
        layer="distilbert.transformer.layer.{}",
        parts=_DISTILBERT_PARTS,
    ),
    "electra": Family(
        modules={
            **_embeddings("electra"),
            "widening": "electra.embeddings_project",
            "transform": "generator_predictions.dense",
            "transform_norm": "generator_predictions.LayerNorm",
            "decoder": "generator_lm_head",
        },
        layer="electra.encoder.layer.{}",
        parts=_BERT_PARTS,
    ),
    "modernbert": Family(
        modules={
            "words": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "transform": "head.dense",
            "transform_norm": "head.norm",
            "decoder": "decoder",
        },
    ),
}


def family_of(model_type: str, role: str) -> Family:
    """The names of an architecture.

    Args:
        model_type: transformers' name of it.
        role: `teacher` or `student`, for the message.

    Raises:
        ValueError: if its modules are not known here.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"{role}: nothing can be copied between {model_type!r} and another architecture; known are "
            f"{', '.join(FAMILIES)}. Give the student the teacher's architecture (Layers, EveryOther, ...), or begin "
            "with new weights (FromConfig)"
        )
    return FAMILIES[model_type]
