from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizer,
)

from lit_distil.commands import export
from lit_distil.commands.benchmark.command import main_table, time_texts
from lit_distil.commands.benchmark.latency import measure_networks, peak_memory_mb
from lit_distil.commands.onnx import Agreement, _nearest, compare_with_torch, sample_texts, write_onnx
from lit_distil.models.exported import OnnxNetwork, import_extra
from tests.commands.examples import finished_run, make_tokenizer, tiny_config
from tests.test_documents import blocks
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


class Embeddings:
    """A file that gives an encoder's states and the means of them, altered."""

    properties: ClassVar = {"max_length": 32}

    def __init__(self, network: torch.nn.Module, alter: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.network, self.alter = network, alter

    def __call__(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        states = self.network(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        return [states, self.alter(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))]


def test_an_encoder_is_judged_by_its_embeddings_and_their_neighbours() -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(tokenizer, layers=1), add_pooling_layer=False).eval()
    rotation = torch.linalg.qr(torch.randn(32, 32))[0]

    def compared(alter: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> Agreement:
        with torch.no_grad():
            return compare_with_torch(model, Embeddings(model, alter), tokenizer, pooling="mean", **settings)  # type: ignore[arg-type]

    same = compared(lambda vectors: vectors)
    assert (same.mean_cosine, same.least_cosine) == (pytest.approx(1), pytest.approx(1)) and same.top_agreement == 1
    assert 20 < same.num_choices <= 12 + len(sample_texts())  # a text once
    noisy = compared(lambda vectors: vectors + 0.03 * torch.randn(vectors.shape))
    assert noisy.mean_cosine is not None and noisy.least_cosine is not None
    assert 0.9 < noisy.least_cosine < noisy.mean_cosine < 0.995 and 0.1 < noisy.top_agreement < 0.97
    # turned, they are all wrong and yet have the neighbours that they had
    turned = compared(lambda vectors: vectors @ rotation)
    assert turned.mean_cosine is not None and abs(turned.mean_cosine) < 0.6 and turned.top_agreement > 0.95
    assert re.search(r"cosine of its embeddings to torch's is 1\.0000 on average and 1\.0000 at least", str(same))
    assert "the nearest neighbour is the same for 100.0 % of" in str(same)
    assert math.isnan(compared(lambda vectors: vectors * math.nan).largest_difference)
    with pytest.raises(ValueError, match=r"check_on: 2 of the texts differ, .* give 3 at least"):
        compared(lambda vectors: vectors, texts=["the cat", "a dog", "the cat"])


def test_the_nearest_neighbour_is_another_text() -> None:
    angles = torch.tensor([0.0, 0.3, 0.9, 1.0])
    assert _nearest(torch.stack([angles.cos(), angles.sin()], dim=1)).tolist() == [1, 0, 3, 2]
    vectors = torch.nn.functional.normalize(torch.randn(1100, 8), dim=1)  # more than one block of rows
    expected = (vectors @ vectors.T - 3 * torch.eye(1100)).argmax(1)
    assert (_nearest(vectors) == expected).all()


def test_a_file_that_ignores_segments_does_not_agree() -> None:
    tokenizer = make_tokenizer()
    config = tiny_config(tokenizer, layers=1, type_vocab_size=2)
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config).eval()

    class Network:
        properties: ClassVar = {"max_length": 32}

        def __init__(self, *, ignores: bool) -> None:
            self.ignores = ignores

        def __call__(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
            assert inputs["token_type_ids"].any()
            types = inputs.pop("token_type_ids")
            found = model(**inputs, token_type_ids=types * 0 if self.ignores else types)
            return [found.start_logits, found.end_logits]

    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    with torch.no_grad():
        whole = compare_with_torch(model, Network(ignores=False), tokenizer)  # type: ignore[arg-type]
        deaf = compare_with_torch(model, Network(ignores=True), tokenizer)  # type: ignore[arg-type]
    assert whole.largest_difference == 0 and whole.top_agreement == 1 and deaf.largest_difference > 0.01


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


KINDS = {
    "embeddings": AutoModel,
    "labels": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "spans": AutoModelForQuestionAnswering,
    "masks": AutoModelForMaskedLM,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_exported_compared_timed_and_served(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX, int8 and OpenVINO: each file is compared with torch, and has a row in the table."""
    pytest.importorskip("openvino")
    tokenizer, source, out = make_tokenizer(), tmp_path / "model", tmp_path / "out"
    torch.manual_seed(0)
    KINDS[kind].from_config(tiny_config(tokenizer, layers=1)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    pooling = "mean" if kind == "embeddings" else None
    every = {"onnx": True, "int8": True, "openvino": True}
    export.export(str(source), str(out), pooling=pooling, allow_disagreement=True, **every)
    kept = json.loads((out / "onnx.json").read_text())
    files = ["model.onnx", "model_int8.onnx", "openvino_model.xml"]
    assert sorted(kept) == [*files, "torch_mb"]
    for name in files:
        assert kept[name]["num_choices"] > 20 and kept[name]["top_agreement"] > (0.3 if "int8" in name else 0.999)
        assert (kept[name]["mean_cosine"] is not None) == (kind == "embeddings")
    networks = [str(source), *(str(out / name) for name in files)]
    results = measure_networks(networks, length=8, batch_size=2, repeats=2, part="whole")
    rows = main_table(results, batch_size=2)[1:]
    assert [row[0] for row in rows] == networks and len({row[1] for row in rows}) == 1
    assert all(result.latency_ms.median > 0 and result.size_mb > 0 for result in results)
    assert peak_memory_mb(networks[-1], length=8, batch_size=2) > 0
    check_service(kind, source, out, monkeypatch)


def check_service(kind: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of the guide answers as torch does; FastAPI is left out."""
    app = SimpleNamespace(post=lambda path: lambda function: function)
    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(FastAPI=lambda: app))  # type: ignore[arg-type]
    guide = blocks("docs/guides/export-serving.md", "python")
    (base,) = (block for block in guide if block.startswith("# serve_onnx.py"))
    code = base.replace("runs/reviews/onnx", str(out)).replace("model_int8.onnx", "model.onnx")
    code += "".join(block for block in guide if block.startswith(f"# {'answers' if kind == 'spans' else kind}"))
    serve: dict[str, Any] = {}
    exec(code, serve)
    model, tokenizer, texts = KINDS[kind].from_pretrained(source).eval(), make_tokenizer(), ["the cat sat", "a dog"]
    with torch.no_grad():
        output = model(**tokenizer(texts, padding=True, return_tensors="pt"))
        masked = model(**tokenizer("the <mask> sat<mask>", return_tensors="pt"))
    if kind == "labels":
        assert serve["classify"](texts) == [f"LABEL_{label}" for label in output.logits.argmax(-1).tolist()]
    elif kind == "tags":
        found = serve["tag"](texts)
        assert [len(one) for one in found] == [len(tokenizer.tokenize(text)) for text in texts]
        assert found[0][0][1] == f"LABEL_{int(output.logits[0, 1].argmax())}"
    elif kind == "spans":
        answer = serve["answer"]("what sat?", "the cat sat on the mat with a dog")
        assert answer and answer in "the cat sat on the mat with a dog"
    elif kind == "masks":
        places = tokenizer("the <mask> sat<mask>", return_tensors="pt")["input_ids"] == tokenizer.mask_token_id
        guesses = masked.logits[places].argmax(-1).tolist()
        assert serve["fill"]("the <mask> sat<mask>") == [tokenizer.decode([one]).strip() for one in guesses]
    else:
        first = torch.nn.functional.normalize(output.last_hidden_state[0].mean(0), dim=0)
        torch.testing.assert_close(torch.tensor(serve["embed"](texts)[0]), first, rtol=0, atol=1e-4)


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
