"""Exported files that run like networks: OpenVINO's against torch and ONNX Runtime, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_distil.commands.export import export
from lit_distil.models import TaskNetwork
from lit_distil.models.exported import OnnxNetwork, exported_bytes, open_exported
from tests.commands.examples import make_tokenizer, tiny_config
from tests.models.helpers import make_batch


def classifier(folder: Path) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(tokenizer, layers=1, num_labels=5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_openvino_gives_the_logits_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    source = classifier(tmp_path / "model")
    export(str(source), str(tmp_path / "out"), openvino=True)
    network, onnx = (open_exported(tmp_path / "out" / name) for name in ("openvino_model.xml", "model.onnx"))
    assert isinstance(onnx, OnnxNetwork) and network.properties == onnx.properties and network.properties
    assert network.inputs == onnx.inputs
    assert exported_bytes(tmp_path / "out/openvino_model.xml") > (tmp_path / "out/openvino_model.bin").stat().st_size
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    for rows, columns in ((1, 2), (3, 17), (7, 5)):
        ids = torch.randint(5, 200, (rows, columns), generator=torch.Generator().manual_seed(columns))
        mask = torch.ones_like(ids)
        mask[-1, columns // 2 + 1 :] = 0
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        (found,) = network(input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    (tmp_path / "text.xml").write_text("not OpenVINO")
    with pytest.raises(ValueError, match=r"text\.xml' is not a file that OpenVINO can run"):
        open_exported(tmp_path / "text.xml")
    with pytest.raises(ValueError, match=r"no OpenVINO file at .*--openvino true"):
        open_exported(tmp_path / "absent.xml")


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'model\.bin' is no exported file; give one that ends in \.onnx or \.xml"):
        open_exported("model.bin")


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5)])
def test_logits_of_another_task_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    network = TaskNetwork(AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path / "model")))
    network.exported = lambda **inputs: (torch.zeros(shape),)
    with pytest.raises(ValueError, match=re.escape(f"the file gives logits {list(shape)} and the task needs [2, 5]")):
        network(make_batch((4, 3)))
    network.exported = lambda **inputs: (inputs["attention_mask"].sum(1, keepdim=True).expand(2, 5).float(),)
    assert network(make_batch((4, 3))).logits.tolist() == [[4.0] * 5, [3.0] * 5]
