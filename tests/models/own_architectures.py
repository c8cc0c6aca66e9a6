"""Two encoders that transformers does not ship, written and registered as a user would, in one file.

`plain` computes attention in its own way and takes a padded mask; `flat` goes through transformers' AttentionInterface.
Neither names its parts as the architectures of transformers do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.configuration_utils import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel


class PlainConfig(PretrainedConfig):
    """Fields with names of their own, under transformers' common ones through `attribute_map`."""

    model_type = "plain"
    attribute_map = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads"}

    def __init__(
        self,
        vocab_size: int = 100,
        width: int = 32,
        depth: int = 4,
        heads: int = 2,
        max_position_embeddings: int = 64,
        pad_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.width, self.depth, self.heads = vocab_size, width, depth, heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class PlainBlock(nn.Module):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.mix = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attended, _ = self.attention(hidden, hidden, hidden, key_padding_mask=mask == 0, need_weights=False)
        hidden = self.norm(hidden + attended)
        return hidden + self.mix(hidden).relu()


class PlainModel(PreTrainedModel):
    config_class = PlainConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.token_table = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_token_id)
        self.position_table = nn.Embedding(config.max_position_embeddings, config.width)
        self.stack = nn.ModuleList(PlainBlock(config) for _ in range(config.depth))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_table

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_table = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        hidden = self.token_table(input_ids) + self.position_table(torch.arange(input_ids.shape[1]))
        states = [hidden]
        for block in self.stack:
            hidden = block(hidden, attention_mask)
            states.append(hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None)


class PlainWordGuesser(PreTrainedModel):
    """A masked-LM whose name does not say so, and whose logits come from the embedding matrix itself."""

    config_class = PlainConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.encoder = PlainModel(config)
        self.head = nn.Linear(config.width, config.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.token_table

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> MaskedLMOutput:
        output = self.encoder(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        logits = self.head(output[0]).tanh() @ self.encoder.token_table.weight.T
        return MaskedLMOutput(logits=logits, hidden_states=output.hidden_states)


class PlainSorter(PreTrainedModel):
    """A classifier of texts by their first token."""

    config_class = PlainConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.encoder = PlainModel(config)
        self.sort = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.token_table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.sort(self.encoder(input_ids, attention_mask)[0][:, 0]))


class FlatConfig(PretrainedConfig):
    model_type = "flat"

    def __init__(
        self,
        vocab_size: int = 100,
        hidden_size: int = 32,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 2,
        max_position_embeddings: int = 64,
        pad_token_id: int = 1,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)


class FlatBlock(nn.Module):
    def __init__(self, config: FlatConfig) -> None:
        super().__init__()
        self.config, self.num_heads = config, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        heads = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        attended, _ = attend(self, *heads, mask, scaling=heads.shape[-1] ** -0.5, dropout=0.0, **kwargs)
        return self.norm(hidden + self.out(attended.flatten(2)))


class FlatPreTrainedModel(PreTrainedModel):
    config_class = FlatConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True
    _supports_attention_backend = True


class FlatModel(FlatPreTrainedModel):
    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(FlatBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        hidden = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, mask, **kwargs)
            states.append(hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None)


class FlatForMaskedLM(FlatPreTrainedModel):
    _tied_weights_keys = {"decoder.weight": "trunk.embed_tokens.weight"}

    def __init__(self, config: FlatConfig) -> None:
        super().__init__(config)
        self.trunk = FlatModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.decoder = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        output = self.trunk(input_ids, attention_mask, position_ids, **kwargs)
        return MaskedLMOutput(logits=self.decoder(output[0]), hidden_states=output.hidden_states)


AutoConfig.register("plain", PlainConfig)
AutoModelForMaskedLM.register(PlainConfig, PlainWordGuesser)
AutoModelForSequenceClassification.register(PlainConfig, PlainSorter)
AutoConfig.register("flat", FlatConfig)
AutoModelForMaskedLM.register(FlatConfig, FlatForMaskedLM)
