"""The names under which encoders of one kind keep a task's head, so that it can go from one to another."""

from __future__ import annotations

_ROBERTA_LIKE = ("roberta", "camembert", "xlm-roberta")


def task_head_names(model_type: str, head: str) -> dict[str, str]:
    """Modules of a task's head by canonical names; none where nothing like them is in other architectures.

    `pooled` is the layer that the first token passes, `labels` what gives the logits. DistilBERT follows the first with
    a ReLU where BERT and RoBERTa have a tanh and ELECTRA a GELU, so that a head that goes there is a beginning and not
    the same function. ModernBERT pools and normalises in ways of its own.

    Args:
        model_type: transformers' name of the architecture.
        head: `question_answering`, `token_classification`, `sequence_classification` or `multiple_choice`.
    """
    if model_type == "modernbert":
        return {}
    if head == "question_answering":
        return {"labels": "qa_outputs"}
    if head == "token_classification":
        return {"labels": "classifier"}
    if head == "sequence_classification" and model_type in (*_ROBERTA_LIKE, "electra"):
        return {"pooled": "classifier.dense", "labels": "classifier.out_proj"}
    if head not in ("sequence_classification", "multiple_choice") or model_type == "electra":
        return {}
    prefix = "roberta" if model_type in _ROBERTA_LIKE else model_type
    return {
        "pooled": "pre_classifier" if model_type == "distilbert" else f"{prefix}.pooler.dense",
        "labels": "classifier",
    }
