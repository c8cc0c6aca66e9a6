from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from transformers import BertForPreTraining, PreTrainedModel

from lit_distil.models import FromConfig, Head, MaskedLMNetwork, NetworkSource, Pretrained, TaskNetwork
from lit_distil.types import Vocabulary

from .helpers import ALL, FLAT, VOCABULARY, make_batch, make_model

BATCH = make_batch()
NO_SIZE = {name: {k: v for k, v in config.items() if k != "vocab_size"} for name, config in ALL.items()}


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "deberta"])
def test_random_network_takes_the_tokenizers_size_and_ids(name: str) -> None:
    ids = {"pad_token_id": 5, "cls_token_id": 6, "sep_token_id": 7, "mask_token_id": 8}
    model = FromConfig(name, config={k: v for k, v in NO_SIZE[name].items() if not k.endswith("_id")}).build(
        Vocabulary(size=61, special_ids=ids)
    )
    assert model.training
    assert model.config.vocab_size == 61
    assert model.get_input_embeddings().weight.shape[0] == 61
    assert model.config.pad_token_id == 5
    assert model.get_input_embeddings().padding_idx == 5
    assert model.config._attn_implementation == ("unpadded" if name in FLAT else "eager")
    for field in ("cls_token_id", "sep_token_id"):
        if hasattr(model.config, field):
            assert getattr(model.config, field) == ids[field]
    if name == "modernbert":  # its defaults lie far outside a small vocabulary
        assert (model.config.bos_token_id, model.config.eos_token_id) == (6, 7)


def test_embedding_may_have_more_rows_than_entries_and_never_fewer() -> None:
    model = FromConfig("bert", config={**NO_SIZE["bert"], "vocab_size": 64}).build(VOCABULARY)
    assert model.config.vocab_size == 64
    with pytest.raises(ValueError, match="vocab_size=50 is smaller than the tokenizer's 60"):
        FromConfig("bert", config={**NO_SIZE["bert"], "vocab_size": 50}).build(VOCABULARY)


def test_pretraining_head_has_both_outputs() -> None:
    model = FromConfig("bert", config=NO_SIZE["bert"]).build(VOCABULARY, head="pretraining")
    assert isinstance(model, BertForPreTraining)
    result = MaskedLMNetwork(model)(BATCH, rows="all")
    assert result.logits is not None and result.logits.shape == (BATCH.num_tokens, 60)
    assert result.next_sentence_logits is not None and result.next_sentence_logits.shape == (BATCH.num_sequences, 2)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert", "albert", "electra"])
def test_architecture_without_next_sentence_head_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no next-sentence head; use a format without pairs"):
        FromConfig(name, config=NO_SIZE[name]).build(VOCABULARY, head="pretraining")


def test_task_heads_have_their_labels() -> None:
    source = FromConfig("bert", config=NO_SIZE["bert"])
    named = source.build(VOCABULARY, head="sequence_classification", id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert named.config.label2id == {"no": 0, "yes": 1, "perhaps": 2}
    assert TaskNetwork(named)(BATCH).logits.shape == (BATCH.num_sequences, 3)  # type: ignore[union-attr]
    counted = source.build(VOCABULARY, head="token_classification", num_labels=5, problem_type="regression")
    assert counted.config.problem_type == "regression"
    assert TaskNetwork(counted)(BATCH).logits.shape == (BATCH.num_tokens, 5)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="num_labels=2 but id2label names 1"):
        source.build(VOCABULARY, head="sequence_classification", num_labels=2, id2label={0: "no"})


def test_attention_can_be_chosen() -> None:
    model = FromConfig("bert", config=NO_SIZE["bert"], attention="eager").build(VOCABULARY)
    assert model.config._attn_implementation == "eager"


def test_misspelt_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type='modernbrt' is not known .*'modernbert'"):
        FromConfig("modernbrt")
    with pytest.raises(ValueError, match="no field 'num_hiden_layers'; did you mean 'num_hidden_layers'"):
        FromConfig("bert", config={"num_hiden_layers": 3})
    FromConfig("modernbert", config={"global_attn_every_n_layers": 2})  # known to transformers, though no field
    with pytest.raises(ValueError, match="head must be one of"):
        FromConfig("bert", config=NO_SIZE["bert"]).build(VOCABULARY, head="mlm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such model for model_type='gpt2'"):
        FromConfig("gpt2").build(None)


@pytest.mark.parametrize("name", ["bert", "modernbert", "mpnet"])
def test_pretrained_network_is_the_saved_one_in_training_mode(name: str, tmp_path: Path) -> None:
    saved = make_model(name)
    saved.save_pretrained(tmp_path)
    model = Pretrained(str(tmp_path)).build(VOCABULARY)
    assert model.training
    assert model.config._attn_implementation == ("unpadded" if name in FLAT else "eager")
    for key, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_pretrained_takes_changes_and_task_heads(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path)
    source = Pretrained(str(tmp_path), config={"hidden_dropout_prob": 0.37})
    model = source.build(VOCABULARY, head="sequence_classification", num_labels=4)
    assert model.bert.embeddings.dropout.p == 0.37
    assert model.classifier.weight.shape == (4, 16)
    with pytest.raises(ValueError, match="did you mean 'hidden_dropout_prob'"):
        Pretrained(str(tmp_path), config={"hidden_droput_prob": 0.1}).build(VOCABULARY)


def test_half_precision_checkpoint_is_trained_in_float32(tmp_path: Path) -> None:
    make_model("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in Pretrained(str(tmp_path)).build(VOCABULARY).parameters()} == {torch.float32}
    teacher = Pretrained(str(tmp_path), dtype="bfloat16").build(VOCABULARY)
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="dtype must be float32"):
        Pretrained(str(tmp_path), dtype="int8")


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    make_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer has 61 entries and the embedding of .* has 60"):
        Pretrained(str(tmp_path)).build(Vocabulary(size=61, special_ids={}))


class Own(NetworkSource):
    """A source of the user's own, which gives whatever it was made with."""

    def __init__(self, made: object) -> None:
        self.made = made

    def load(self, vocabulary: Vocabulary | None, head: Head, labels: dict) -> PreTrainedModel:
        return self.made  # type: ignore[return-value]


def test_a_source_that_gives_no_network_is_named() -> None:
    model = make_model("bert")
    assert Own(model).build(None) is model and model.training
    for given, told in ((None, "NoneType"), (torch.nn.Linear(2, 2), "Linear"), (type(model), "type")):
        with pytest.raises(ValueError, match=rf"^Own\.load must return a transformers model .*, got {told}$"):
            Own(given).build(None)
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(ValueError, match=r"^Own\.load must set every tensor of the model, got .* on the meta device$"):
        Own(empty).build(None)


def test_missing_folders_are_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"name_or_path: no folder .*nowhere' .*give a folder that is there"):
        Pretrained(str(tmp_path / "nowhere")).build(VOCABULARY)
    for name in ("nobody/nothing-of-that-name", str(tmp_path)):
        with pytest.raises(ValueError, match=r"name_or_path=.* is neither a folder .*HF_HUB_OFFLINE=1, fetch it"):
            Pretrained(name).build(VOCABULARY)
    make_model("bert").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"name_or_path=.* is neither a folder"):
        Pretrained(str(tmp_path)).build(VOCABULARY)


def test_pretrained_without_next_sentence_head_is_refused(tmp_path: Path) -> None:
    make_model("distilbert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="distilbert has no next-sentence head"):
        Pretrained(str(tmp_path)).build(VOCABULARY, head="pretraining")


@pytest.mark.parametrize(("name", "first"), [("FromConfig", "model_type=bert"), ("Pretrained", "name_or_path=folder")])
def test_a_field_given_on_the_command_line_keeps_its_type(name: str, first: str) -> None:
    """With an untyped dictionary, `--network.config.hidden_size 256` arrived as the text '256'."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(NetworkSource, "network")
    fields = {"hidden_size": 256, "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "gelu"}
    options = [f"--network.config.{key}={value}" for key, value in fields.items()]
    parsed = parser.parse_args(["--network", f"lit_distil.models.{name}", f"--network.{first}", *options])
    assert parsed.network.init_args.config == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ({"num_labels": 10**12}, "num_labels must be a whole number from 1 to 50,000"),
        ({"num_attention_heads": -1}, "num_attention_heads must be a whole number from 1"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob must lie in \[0, 1\]"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be finite"),
        ({"num_hidden_layers": "two"}, "config: "),
    ],
)
def test_fields_that_nobody_means_are_refused_before_a_network_is_built(fields: dict, message: str) -> None:
    """A huge number of layers or labels took all memory or hours; a share above 1 failed in the first step."""
    with pytest.raises(ValueError, match=message):
        FromConfig("bert", config=fields)
    with pytest.raises(ValueError, match=message):
        Pretrained("somewhere", config=fields)


def test_a_folder_with_fields_that_nobody_means_is_refused(tmp_path: Path) -> None:
    FromConfig("bert", config={"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}).build(
        None
    ).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": -2'))
    with pytest.raises(ValueError, match="num_attention_heads must be a whole number from 1"):
        Pretrained(str(tmp_path)).sketch(None)


def test_an_attention_that_transformers_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="attention='': "):
        FromConfig(
            "bert", config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, attention=""
        ).build(None)
