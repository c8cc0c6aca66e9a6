"""A network over other entries of its vocabulary is the same network."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from lit_distil.models import MaskedLMNetwork
from lit_distil.models.sources import sketching
from lit_distil.models.students.vocabulary import with_vocabulary
from lit_distil.types import Vocabulary

from .helpers import ALL, make_batch, make_model

BATCH = make_batch()
OLD = 60
FIRST = [*range(5)]  # the special tokens
KEPT = [*FIRST, *sorted(random.Random(0).sample(range(5, OLD), 30))]


def new_vocabulary(model: PreTrainedModel, size: int, **changes: int) -> Vocabulary:
    pad = model.config.pad_token_id
    return Vocabulary(size, {"pad_token_id": pad, "cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 4, **changes})


def kept_batch(kept: list[int]):  # type: ignore[no-untyped-def]
    """A batch of entries that stay, under their old ids and under their new ones."""
    generator = torch.Generator().manual_seed(1)
    new = torch.randint(5, len(kept), BATCH.input_ids.shape, generator=generator)
    old = torch.tensor(kept)[new]
    return dataclasses.replace(BATCH, input_ids=old), dataclasses.replace(BATCH, input_ids=new)


@pytest.mark.parametrize("name", ALL)
def test_hidden_states_are_bitwise_the_same_and_logits_those_of_the_entries_that_stay(
    name: str, tmp_path: Path
) -> None:
    model = make_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = with_vocabulary(model, new_vocabulary(model, len(KEPT)), [(index,) for index in KEPT])
    made.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.vocab_size == len(KEPT) == loaded.get_input_embeddings().weight.shape[0]
    old, new = kept_batch(KEPT)
    theirs = MaskedLMNetwork(model)(old, rows="all", output_hidden_states=True)
    ours = MaskedLMNetwork(loaded.eval())(new, rows="all", output_hidden_states=True)
    for mine, its in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.equal(mine, its)
    torch.testing.assert_close(ours.logits, theirs.logits[:, KEPT], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rows_of_head_and_bias_are_those_of_the_entries() -> None:
    model = make_model("bert", tie_word_embeddings=False)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.copy_(torch.arange(60.0))
    sources = [*[(index,) for index in KEPT], (7, 9, 11)]
    made = with_vocabulary(model, new_vocabulary(model, len(sources)), sources)
    assert made.cls.predictions.decoder.bias.tolist() == [*map(float, KEPT), 9.0]
    decoder, table = model.cls.predictions.decoder.weight, model.get_input_embeddings().weight
    assert not torch.equal(decoder, table)
    for mine, its in ((made.cls.predictions.decoder.weight, decoder), (made.get_input_embeddings().weight, table)):
        assert torch.equal(mine[:-1], its[KEPT])
        torch.testing.assert_close(mine[-1], its[[7, 9, 11]].mean(0))


def test_a_vocabulary_of_the_same_size_and_rows_beyond_the_tokenizer() -> None:
    """Which tensors have a row for each entry does not depend on the sizes; padding is left out."""
    model = make_model("bert", hidden_size=60, num_attention_heads=2, vocab_size=60)
    order = [*FIRST, *reversed(range(5, 60))]
    made = with_vocabulary(model, new_vocabulary(model, 60), [(index,) for index in order])
    ours, theirs = made.state_dict(), model.state_dict()
    changed = {name for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert changed == {
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
        "cls.predictions.decoder.weight",
    }
    assert torch.equal(ours["bert.embeddings.word_embeddings.weight"], model.get_input_embeddings().weight[order])


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_networks_without_a_masked_lm_head_are_cut_too(auto: type) -> None:
    model = make_model("roberta", auto=auto)
    made = with_vocabulary(model, new_vocabulary(model, len(KEPT)), [(index,) for index in KEPT]).eval()
    old, new = (batch.input_ids[:, :40] for batch in kept_batch(KEPT))
    theirs, ours = model(old), made(new)
    assert type(made) is type(model)
    assert all(torch.equal(mine, its) for mine, its in zip(ours.to_tuple(), theirs.to_tuple(), strict=True))


def test_special_ids_follow_their_entries() -> None:
    model = make_model("bert", pad_token_id=9, sep_token_id=50, eos_token_id=3)
    sources = [(index,) for index in (4, 9, 12, 50, 9)]  # the last is a new word
    special = {"pad_token_id": 1, "eos_token_id": 3}
    made = with_vocabulary(model, Vocabulary(5, special), sources)
    assert made.config.pad_token_id == 1 and made.config.sep_token_id == 3
    assert made.config.eos_token_id == 3  # its entry is gone; the tokenizer says what takes its place
    assert made.get_input_embeddings().padding_idx == 1


def test_a_padding_token_that_positions_are_counted_from_may_not_move() -> None:
    model = make_model("roberta")
    with pytest.raises(
        ValueError, match="roberta counts its positions from the padding token, which was 1 and would be 0"
    ):
        with_vocabulary(model, new_vocabulary(model, 30, pad_token_id=0), [(index,) for index in range(1, 31)])


def test_a_sketch_is_cut_as_the_network_is() -> None:
    model = make_model("bert")
    with sketching():
        sketch = type(model)(model.config)
        made = with_vocabulary(sketch, new_vocabulary(model, len(KEPT)), [(index,) for index in KEPT])
    assert made.device.type == "meta" and made.get_output_embeddings().weight.shape[0] == len(KEPT)
