"""Tiny architectures, flat batches, and the padded run of transformers to compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from lit_distil.types import Batch, Vocabulary

VOCABULARY = Vocabulary(
    size=60,
    special_ids={"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "unk_token_id": 3, "mask_token_id": 4},
)
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # so that attention is far from uniform
}
ROBERTA = {**SMALL, "pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
FLAT: dict[str, dict] = {
    "bert": SMALL,
    "roberta": ROBERTA,
    "distilbert": {
        "vocab_size": 60,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    },
    "electra": {**SMALL, "embedding_size": 12},
    "albert": {**SMALL, "embedding_size": 12},
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "modernbert": {
        **SMALL,
        "num_hidden_layers": 3,
        "local_attention": 8,
        "initializer_cutoff_factor": 2.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
PADDED: dict[str, dict] = {
    "deberta": {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "mpnet": {**SMALL, "pad_token_id": 1, "max_position_embeddings": 66},
}
ALL = {**FLAT, **PADDED}
LENGTHS = (7, 19, 3, 18, 30)


def make_config(model_type: str, **changes: object) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **{**ALL[model_type], **changes})


def make_model(model_type: str, auto: type = AutoModelForMaskedLM, **changes: object) -> PreTrainedModel:
    """In eval mode, with transformers' default attention; biases and norms are drawn too, so that none is trivial."""
    torch.manual_seed(0)
    model = auto.from_config(make_config(model_type, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_batch(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0, segments: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(lengths)
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.arange(num_tokens)[torch.randperm(num_tokens, generator=generator)[: num_tokens // 4]]
    positions = positions.sort().values
    token_type_ids = torch.cat([(torch.arange(n) > n // 2).long() for n in lengths])[None] if segments else None
    return Batch(
        input_ids=torch.randint(5, 60, (1, num_tokens), generator=generator),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seq_lens=cu_seq_lens,
        lengths=tuple(lengths),
        sample_ids=torch.arange(len(lengths)),
        token_type_ids=token_type_ids,
        masked_positions=positions,
        masked_labels=torch.randint(5, 60, (len(positions),), generator=generator),
    )


def padded_inputs(batch: Batch, pad_id: int) -> tuple[dict[str, Tensor], Tensor]:
    """What a user of plain transformers would pass, and where the real tokens are, `[S, longest]`."""
    shape = (batch.num_sequences, max(batch.lengths))
    input_ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    token_type_ids = torch.zeros(shape, dtype=torch.long)
    for row, start in enumerate(batch.first_positions.tolist()):
        n = batch.lengths[row]
        input_ids[row, :n] = batch.input_ids[0, start : start + n]
        mask[row, :n] = 1
        if batch.token_type_ids is not None:
            token_type_ids[row, :n] = batch.token_type_ids[0, start : start + n]
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids
    return inputs, mask.bool()
