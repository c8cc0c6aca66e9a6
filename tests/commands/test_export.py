from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_distil.commands import export
from lit_distil.models import MaskedLMNetwork, Pretrained, TaskNetwork
from lit_distil.modules import FineTuningModule, MaskedLMModule
from tests.commands.examples import LABELS, make_tokenizer, tiny_config


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def save_checkpoint(folder: Path, module) -> Path:
    """Write a checkpoint as Lightning does: the state dict, and what the module adds."""
    checkpoint = {"state_dict": module.state_dict(), "global_step": 3}
    module.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return path


def masked_lm_module(tokenizer, **fields) -> MaskedLMModule:
    torch.manual_seed(0)
    module = MaskedLMModule(Pretrained("unused"))
    module.network = MaskedLMNetwork(AutoModelForMaskedLM.from_config(tiny_config(tokenizer, **fields)))
    return module


def write_config(run: Path, tokenizer, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    data = {"class_path": "lit_distil.data.TextDataModule", "init_args": {"tokenizer": str(folder)}}
    (run / "config.yaml").write_text(json.dumps({"data": data}))  # JSON is YAML


@torch.no_grad()
def test_the_folder_gives_the_logits_of_the_checkpoint_and_the_runs_tokenizer(tmp_path, tokenizer):
    module = masked_lm_module(tokenizer)
    checkpoint = save_checkpoint(tmp_path, module)
    write_config(tmp_path, tokenizer, tmp_path / "tokenizer")
    out = tmp_path / "out"
    export.run(["--checkpoint", str(checkpoint), "--out", str(out)])

    loaded, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(out)("the cat sat", return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 3
    source = module.network.model.eval()
    source.set_attn_implementation("eager")  # the flat attention wants the layout of a batch
    torch.testing.assert_close(loaded.eval()(**inputs).logits, source(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_fine_tuned_network_keeps_its_head_and_the_names_of_its_labels(tmp_path, tokenizer):
    torch.manual_seed(0)
    module = FineTuningModule(Pretrained("unused"))
    config = tiny_config(tokenizer, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)})
    module.network = TaskNetwork(AutoModelForSequenceClassification.from_config(config))
    module.head = "sequence_classification"
    checkpoint = save_checkpoint(tmp_path, module)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out"
    export.export(str(checkpoint), str(out), tokenizer=str(tmp_path / "tokenizer"))

    loaded = AutoModelForSequenceClassification.from_pretrained(out)
    assert loaded.config.id2label == {0: "land", 1: "water"}
    expected = module.network.model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_a_missing_tokenizer_is_reported_with_the_option_that_names_one(tmp_path, tokenizer):
    checkpoint = save_checkpoint(tmp_path, masked_lm_module(tokenizer))
    with pytest.raises(ValueError, match=r"config\.yaml.*--tokenizer"):
        export.export(str(checkpoint), str(tmp_path / "out"))
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 1}\n")
    with pytest.raises(ValueError, match=r"names none under data.*--tokenizer"):
        export.export(str(checkpoint), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, tokenizer):
    module = masked_lm_module(tokenizer)
    module.network.model.resize_token_embeddings(100)
    checkpoint = save_checkpoint(tmp_path, module)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=rf"{len(tokenizer)} entries.*100 rows"):
        export.export(str(checkpoint), str(tmp_path / "out"), tokenizer=str(tmp_path / "tokenizer"))
