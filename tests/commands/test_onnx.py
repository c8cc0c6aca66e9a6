from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizer,
)

from lit_distil.commands import export
from lit_distil.commands.benchmark.command import time_texts
from lit_distil.commands.benchmark.latency import measure_networks
from lit_distil.commands.onnx import compare_with_torch, sample_texts, write_onnx
from lit_distil.models.exported import OnnxNetwork, import_extra
from tests.commands.examples import finished_run, make_tokenizer, tiny_config
from tests.workspace import TINY, Workspace


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An exported masked-LM, and the folder that `lit-distil export --int8` makes from it."""
    root, tokenizer = tmp_path_factory.mktemp("onnx"), make_tokenizer()
    source = finished_run(root / "run", tokenizer, seed=0, layers=1) / "export"
    out = root / "out"
    arguments = ["--checkpoint", str(source), "--out", str(out), "--onnx", "true", "--int8", "true"]
    export.run([*arguments, "--allow_disagreement", "true"])
    return str(source), out


@torch.no_grad()
def test_logits_equal_torchs_on_shapes_that_the_exporter_never_saw(written: tuple[str, Path]) -> None:
    source, out = written
    model = AutoModelForMaskedLM.from_pretrained(source).eval()
    network = OnnxNetwork(out / "model.onnx")
    largest = 0.0
    for rows, columns in ((1, 2), (1, 64), (3, 17), (7, 5)):
        ids = torch.randint(5, 200, (rows, columns), generator=torch.Generator().manual_seed(columns))
        mask = torch.ones_like(ids)
        mask[-1, columns // 2 + 1 :] = 0
        ids = ids.where(mask.bool(), torch.tensor(1))
        expected = model(input_ids=ids, attention_mask=mask).logits
        (found,) = network(input_ids=ids, attention_mask=mask)
        assert found.shape == expected.shape == (rows, columns, model.config.vocab_size)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
        largest = max(largest, float(expected.abs().max()))
    assert largest > 0.5


def test_the_comparison_is_kept_with_the_sizes_of_the_files(written: tuple[str, Path]) -> None:
    _, out = written
    kept = json.loads((out / "onnx.json").read_text())
    plain, small = kept["model.onnx"], kept["model_int8.onnx"]
    assert plain["mb"] * 1e6 == (out / "model.onnx").stat().st_size
    assert small["mb"] * 1e6 == (out / "model_int8.onnx").stat().st_size
    assert small["mb"] < plain["mb"]
    assert 0 < plain["largest_difference"] < 1e-3 < small["largest_difference"]
    assert plain["top_agreement"] == 1.0 and 0.3 < small["top_agreement"] <= 1
    assert plain["num_choices"] > 100 and len({tuple(shape) for shape in plain["shapes"]}) >= 5
    assert (
        AutoModelForMaskedLM.from_pretrained(out).num_parameters()
        == OnnxNetwork(out / "model.onnx").properties["parameters"]
    )


def test_a_file_of_another_network_does_not_agree(written: tuple[str, Path], tmp_path: Path) -> None:
    """The comparison must be able to fail."""
    _, out = written
    tokenizer = make_tokenizer()
    torch.manual_seed(9)
    other = AutoModelForMaskedLM.from_config(tiny_config(tokenizer, layers=1)).eval()
    found = compare_with_torch(other, OnnxNetwork(out / "model.onnx"), tokenizer)
    assert found.top_agreement < 0.5 and found.largest_difference > 0.1
    assert len(sample_texts()) > 20


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_values_and_several_labels_are_compared_as_choices(problem: str) -> None:
    """The largest of one output is always the same, and the largest of several labels says nothing about the others."""
    config = tiny_config(make_tokenizer(), layers=1)
    config.num_labels, config.problem_type = (1 if problem == "regression" else 3), problem
    torch.manual_seed(0)
    model, other = (AutoModelForSequenceClassification.from_config(config).eval() for _ in range(2))

    class Network:
        properties: ClassVar = {"max_length": 32}

        def __init__(self, network: torch.nn.Module) -> None:
            self.network = network

        def __call__(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
            return [self.network(**inputs).logits]

    with torch.no_grad():
        same = compare_with_torch(model, Network(model), make_tokenizer())  # type: ignore[arg-type]
        unlike = compare_with_torch(model, Network(other), make_tokenizer())  # type: ignore[arg-type]
    assert same.top_agreement == 1 and unlike.top_agreement < 0.9
    assert same.num_choices % 3 == 0 or problem == "regression"


def test_a_file_that_disagrees_is_refused_and_leaves_nothing(
    written: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = written
    monkeypatch.setattr(
        export, "write_onnx", lambda model, path, **settings: path.write_bytes((out / "model.onnx").read_bytes())
    )
    with pytest.raises(ValueError, match=r"model\.onnx is not the network: largest difference .* tolerance is 0 of"):
        export.export(source, str(tmp_path / "out"), onnx=True, tolerance=0.0)
    with pytest.raises(ValueError, match=r"int8: .*disagrees too often.*min_agreement is 1\.01.*--allow_disagreement"):
        export.export(source, str(tmp_path / "out"), int8=True, min_agreement=1.01)
    assert list(tmp_path.iterdir()) == []


def test_onnx_files_are_timed_beside_torch(written: tuple[str, Path]) -> None:
    source, out = written
    networks = [source, str(out / "model.onnx"), str(out / "model_int8.onnx")]
    results = measure_networks(networks, length=8, batch_size=2, repeats=2, part="whole")
    assert len({result.parameters for result in results}) == len({r.encoder_parameters for r in results}) == 1
    assert results[2].size_mb * 1e6 == (out / "model_int8.onnx").stat().st_size
    passes = time_texts(networks, [("the cat", None)], rounds=2, threads=1, device="cpu", part="whole")
    assert len({of_network.num_tokens for of_network in passes}) == 1
    with pytest.raises(ValueError, match=r"an exported file, whose encoder cannot be timed alone; give part: whole"):
        measure_networks(networks)
    with pytest.raises(ValueError, match=r"length 65 does not fit .*room for 64"):
        measure_networks(networks[1:], length=65, part="whole")
    with pytest.raises(ValueError, match=r"device: .*is an exported file, which runs on the CPU"):
        measure_networks(networks[1:], device="cuda", part="whole")


def test_messages_name_what_is_wrong(
    written: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"checkpoint: no folder .*absent.*; give a folder that is there, or a name on the Hub"
    ):
        export.export(str(tmp_path / "absent"), str(tmp_path / "out"), onnx=True)
    with pytest.raises(ValueError, match=r"check_on: no file at .*absent\.txt"):
        export.export(written[0], str(tmp_path / "out"), onnx=True, check_on=str(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match=r"no ONNX file at .*--onnx true"):
        OnnxNetwork(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not ONNX")
    with pytest.raises(ValueError, match=r"text\.onnx' is not an ONNX file"):
        OnnxNetwork(tmp_path / "text.onnx")
    choice = AutoModelForMultipleChoice.from_config(tiny_config(make_tokenizer(), layers=1))
    with pytest.raises(ValueError, match="RobertaForMultipleChoice cannot be written; the heads that can"):
        write_onnx(choice, tmp_path / "x.onnx", max_length=0)

    def without(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ValueError, match=r"onnxscript is needed and not installed: pip install 'lit-distil\[onnx\]'"):
        import_extra("onnxscript")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num_outputs"),
    [
        (AutoModelForSequenceClassification, 1),
        (AutoModelForTokenClassification, 1),
        (AutoModelForQuestionAnswering, 2),
        (AutoModelForMaskedLM, 1),
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
def test_every_head_of_several_architectures_is_written(
    kind: type, num_outputs: int, model_type: str, workspace: Workspace, tmp_path: Path
) -> None:
    tokenizer = BertTokenizer.from_pretrained(workspace.wordpiece)
    fields = dict(TINY)
    if model_type == "distilbert":
        fields = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 66}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), initializer_range=0.3, **fields)
    model = kind.from_config(config).eval()
    write_onnx(model, tmp_path / "model.onnx", max_length=64)
    network = OnnxNetwork(tmp_path / "model.onnx")
    found = compare_with_torch(model, network, tokenizer)
    assert found.largest_difference < 1e-4 * max(found.largest_logit, 1) and found.top_agreement == 1
    assert len(network.session.get_outputs()) == num_outputs
    assert ("token_type_ids" in network.inputs) == (model_type == "bert" or (model_type == "roberta"))
