"""Trained networks are opened from checkpoints, exports and run folders, with their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, RobertaConfig, RobertaForMaskedLM

from lit_distil.commands import fill_mask
from lit_distil.commands.networks import (
    load_checkpoint,
    load_network,
    open_masked_lm,
    open_network,
    read_texts,
    short_names,
    texts_in,
)
from lit_distil.models import Pretrained
from tests.commands.examples import finished_run, make_tokenizer
from tests.commands.test_export import masked_lm_module, save_checkpoint, write_config


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_a_run_folder_stands_for_its_export(tmp_path: Path, tokenizer) -> None:
    run = finished_run(tmp_path / "run", tokenizer, seed=0, layers=1)
    for name in (run, run / "export"):
        network, found = open_network(name)
        assert not network.training and found.get_vocab() == tokenizer.get_vocab()
        expected = AutoModelForMaskedLM.from_pretrained(run / "export").state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_can_be_opened(tmp_path: Path, tokenizer) -> None:
    checkpoint = save_checkpoint(tmp_path, masked_lm_module(tokenizer))
    write_config(tmp_path, tokenizer, tmp_path / "tokenizer")
    model = open_masked_lm(str(checkpoint))
    assert len(fill_mask.fill(model, ["the <mask>"], places=["x"], top=2)[0][0].tokens) == 2


class OwnConfig(RobertaConfig):
    model_type = "own-roberta"


class OwnForMaskedLM(RobertaForMaskedLM):
    config_class = OwnConfig


def test_a_class_that_a_user_registered_is_opened_like_a_built_in_one(tmp_path: Path, tokenizer) -> None:
    AutoConfig.register("own-roberta", OwnConfig, exist_ok=True)
    config = OwnConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
    )
    OwnForMaskedLM(config).save_pretrained(tmp_path / "export")
    tokenizer.save_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match=r"\['OwnForMaskedLM'\].*import the module that registers it first"):
        load_network(tmp_path)
    AutoModelForMaskedLM.register(OwnConfig, OwnForMaskedLM)
    assert type(load_network(tmp_path)) is OwnForMaskedLM


def test_other_files_and_damaged_checkpoints_are_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"no file .*missing\.ckpt"):
        load_checkpoint(tmp_path / "missing.ckpt")
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt' is not a checkpoint of lit_distil"):
        load_checkpoint(text)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.ckpt' was not written by a module of lit_distil"):
        load_checkpoint(foreign)
    content = torch.load(save_checkpoint(tmp_path, masked_lm_module(tokenizer)), weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, tmp_path / "torn.ckpt")
    with pytest.raises(ValueError, match=r"torn\.ckpt' do not fit its network"):
        load_checkpoint(tmp_path / "torn.ckpt")


def test_a_network_that_diverged_is_refused(tmp_path, tokenizer):
    module = masked_lm_module(tokenizer)
    next(iter(module.network.model.parameters())).data[0] = float("nan")
    checkpoint = save_checkpoint(tmp_path, module)
    module.network.model.save_pretrained(tmp_path / "export")
    for name, field in ((checkpoint, "checkpoint"), (tmp_path / "export", "model")):
        with pytest.raises(ValueError, match=f"^{field}: .* has infinite or undefined weights in "):
            load_network(name, field="model")
    with pytest.raises(ValueError, match="has infinite or undefined weights in "):
        Pretrained(str(tmp_path / "export")).build(None)


def test_short_names_still_tell_networks_apart(tmp_path: Path) -> None:
    folders = [tmp_path / run / name / "export" for run in ("a", "b") for name in ("teacher", "student")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert short_names([str(folders[0]), str(folders[1])]) == ["teacher", "student"]
    assert short_names([str(folders[0]), str(folders[2])]) == [str(folders[0]), str(folders[2])]
    assert short_names(["distilbert/distilroberta-base"]) == ["distilbert/distilroberta-base"]


def test_a_file_of_texts_is_read_line_by_line(tmp_path: Path) -> None:
    """A byte order mark is not part of the text, U+2028 does not end a line, and an error names the line."""
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffthe model\r\n\r\na\u2028loss\n".encode())
    assert read_texts([], str(file)) == (["the model", "a\u2028loss"], [f"{file}:1", f"{file}:3"])
    file.write_bytes(b"the model\na caf\xe9\n")
    with pytest.raises(ValueError, match=r"lines\.txt:2: .*UTF-8"):
        read_texts([], str(file))


def test_a_table_is_read_by_its_column_and_never_as_prose(tmp_path: Path) -> None:
    """Lines of JSON are no texts: braces and names of columns would be scored, or compared on, like words."""
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"body": "the  model\\nlearns", "label": 1}\n{"body": " ", "label": 0}\n{"body": "a loss", "label": 0}\n'
    )
    texts = [("the model learns", f"{file}:1"), ("a loss", f"{file}:3")]
    assert texts_in(str(file), "body", field="check_on") == texts
    with pytest.raises(ValueError, match=r"check_on: .*rows\.jsonl' is a table; .*--text_column \['body', 'label'\]"):
        texts_in(str(file), None, field="check_on")
    for column in ("boby", "label"):
        with pytest.raises(ValueError, match=rf"text_column: .*rows\.jsonl:1: no text in column '{column}'; .*'body'"):
            texts_in(str(file), column, field="check_on")
    prose = tmp_path / "lines.txt"
    prose.write_text("the model\n")
    with pytest.raises(ValueError, match=r"text_column: .*lines\.txt' is a text file, which has no columns"):
        read_texts([], str(prose), "body")
