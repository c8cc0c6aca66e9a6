"""Sentence encoders: what is measured, and a distilled one from training to its exports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import lit_distil
from lit_distil.commands import embeddings
from lit_distil.commands.embeddings import open_encoder, read_questions, read_scored_pairs, retrieval
from lit_distil.objectives.embedding import SentenceFormat, read_sentence_format
from tests.workspace import Workspace, logged

TEXTS = ["A teacher.", "the student returns a loss and the weights of each batch, twice", "gradient", "a a a a"]


def padded_embeddings(folder: Path | str, texts: list[str], *, max_length: int) -> torch.Tensor:
    """Mean pooling as the cards of sentence encoders on the Hub write it, on plain transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1).expand(states.size()).float()
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), p=2, dim=1)


@pytest.fixture(scope="module")
def teacher(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence encoder as on the Hub: no head, and files that say how it pools."""
    folder = tmp_path_factory.mktemp("encoder")
    AutoModel.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    SentenceFormat("mean", 24).write(folder, 32)
    return str(folder)


@pytest.fixture(scope="module")
def run(teacher: str, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> lit_distil.Run:
    out = tmp_path_factory.mktemp("run")
    text = str(workspace.root / "train.txt")
    return lit_distil.distil(teacher, text, out=out / "run", kind="embedding", max_steps=4, batch_size=8, max_length=24)


def test_a_headless_teacher_distils_into_a_headless_student(run: lit_distil.Run, teacher: str) -> None:
    losses = logged(run.folder, "train/loss/cosine")
    assert losses and all(0 < value < 2 for value in losses.values())
    assert 0 < run.metrics["val/loss/cosine"] < 2
    export = run.folder / "export"
    assert json.loads((export / "config.json").read_text())["architectures"] == ["BertModel"]
    _, info = AutoModel.from_pretrained(export, output_loading_info=True)
    assert not info["unexpected_keys"] and all("pooler" in name for name in info["missing_keys"])
    assert read_sentence_format(str(export)) == SentenceFormat("mean", 24)
    # the last of the teacher's layers makes its embeddings, and so the student's
    settings = (run.folder / "config.yaml").read_text()
    assert "LinePerSequence" in settings and "masking: null" in settings
    import yaml

    assert yaml.safe_load(settings)["model"]["init_args"]["student"]["init_args"]["layers"] == [1, 3]


def test_a_teacher_with_a_head_gives_a_headless_sentence_encoder_too(workspace: Workspace, tmp_path: Path) -> None:
    objectives = {"relation": lit_distil.objectives.EmbeddingRelationLoss(pooling="cls")}
    text = (workspace.root / "train.txt").read_text().splitlines()
    run = lit_distil.distil(
        workspace.teacher,
        text,
        out=tmp_path / "run",
        kind="embedding",
        objectives=objectives,
        max_steps=2,
        batch_size=8,
    )
    assert json.loads((run.folder / "export/config.json").read_text())["architectures"] == ["RobertaModel"]
    assert read_sentence_format(str(run.folder / "export")) == SentenceFormat("cls")
    assert run.metrics["train/loss/relation"] > 0 and "val/masked_accuracy" not in run.metrics


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind: expected masked_lm or embedding, got 'sentence'"):
        lit_distil.distil("x", ["a text"], out=tmp_path / "run", kind="sentence")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_embeddings_equal_those_of_padded_transformers_in_the_order_of_the_texts(
    run: lit_distil.Run, teacher: str, batch_size: int
) -> None:
    for folder in (teacher, run.folder / "export"):
        encoder = open_encoder(str(folder), batch_size=batch_size)
        assert encoder.max_length == 24
        found = encoder(TEXTS)
        torch.testing.assert_close(found, padded_embeddings(folder, TEXTS, max_length=24), rtol=0, atol=1e-6)


def test_the_exported_folder_is_a_sentence_transformer(run: lit_distil.Run) -> None:
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(run.folder / "export"), device="cpu")
    assert theirs.max_seq_length == 24
    long = " ".join(["loss"] * 60)
    found = theirs.encode([*TEXTS, long], convert_to_tensor=True)
    torch.testing.assert_close(found, open_encoder(str(run.folder))([*TEXTS, long]), rtol=0, atol=1e-6)


def test_onnx_gives_the_same_embeddings(
    run: lit_distil.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from lit_distil.commands import export as command
    from lit_distil.commands.export import export
    from lit_distil.models.exported import OnnxNetwork

    export(str(run.folder / "export"), str(tmp_path / "out"), int8=True)
    assert "the cosine of its embeddings to torch's is 1.0000 on average" in capsys.readouterr().out
    assert read_sentence_format(str(tmp_path / "out")) == SentenceFormat("mean", 24)
    network = OnnxNetwork(tmp_path / "out/model.onnx")
    assert [node.name for node in network.session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    expected = padded_embeddings(run.folder / "export", TEXTS, max_length=24)
    torch.testing.assert_close(network(**encoded)[1], expected, rtol=0, atol=1e-5)
    encoder = open_encoder(str(tmp_path / "out/model.onnx"))
    torch.testing.assert_close(encoder(TEXTS), expected, rtol=0, atol=1e-5)
    assert encoder.num_parameters == open_encoder(str(run.folder)).num_parameters
    with pytest.raises(ValueError, match=r"pooling: .* was exported with mean, got 'cls'; export it again"):
        open_encoder(str(tmp_path / "out/model.onnx"), pooling="cls")

    # what is refused, with the same files and without writing them anew
    def copy(name: str) -> Any:
        return lambda *arguments, **settings: arguments[1].write_bytes((tmp_path / "out" / name).read_bytes())

    monkeypatch.setattr(command, "write_onnx", copy("model.onnx"))
    monkeypatch.setattr(command, "quantise", copy("model_int8.onnx"))
    with pytest.raises(ValueError, match=r"int8: .*nearest neighbour.*min_agreement is 0\.8 and min_cosine 1\.01"):
        export(str(run.folder), str(tmp_path / "refused"), int8=True, min_cosine=1.01)
    export(str(run.folder), str(tmp_path / "allowed"), int8=True, min_cosine=1.01, allow_disagreement=True)
    monkeypatch.setattr(command, "write_onnx", copy("model_int8.onnx"))  # a float32 file with too small a cosine
    with pytest.raises(ValueError, match=r"onnx: model\.onnx is not the network: the cosine"):
        export(str(run.folder), str(tmp_path / "refused"), onnx=True, tolerance=1e-6)
    assert not (tmp_path / "refused").exists()


# Measures


def test_retrieval_counts_ranks_as_the_formulas_say() -> None:
    # ranks 1, 3, 12, and a tie that is counted as the worst of its places
    similarities = np.zeros((4, 12))
    similarities[0, 4] = 0.9
    similarities[1, [1, 2, 3]] = [0.9, 0.8, 0.7]
    similarities[2] = np.arange(12) / 12
    similarities[3, :2] = 0.5
    found = retrieval(similarities, [4, 3, 0, 0])
    ndcg = (1 + 1 / math.log2(4) + 0 + 1 / math.log2(3)) / 4
    assert found == pytest.approx({"ndcg": ndcg, "mrr": (1 + 1 / 3 + 0 + 1 / 2) / 4, "first": 1 / 4})
    assert retrieval(np.ones((2, 30)), [0, 1]) == {"ndcg": 0.0, "mrr": 0.0, "first": 0.0}


def squad(paragraphs: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {"context": context, "qas": [{"id": f"{q}", "question": q, "answers": []} for q in questions]}
                    for context, questions in paragraphs.items()
                ],
            }
        ]
    }


def test_the_command_compares_encoders_and_writes_its_table(
    run: lit_distil.Run, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    others = [*TEXTS[1:], TEXTS[0]]
    rows = [{"sentence1": a, "sentence2": b, "label": i} for i, (a, b) in enumerate(zip(TEXTS, others, strict=True))]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(squad({text: [text, f"what is {text}"] for text in TEXTS})))
    networks = [teacher, str(run.folder)]
    options = ["--pairs", str(pairs), "--questions", str(questions), "--out", str(tmp_path / "out")]
    embeddings.run([f"--model=[{','.join(networks)}]", *options])
    report = capsys.readouterr().out
    assert "nDCG@10" in report and "Spearman kept %" in report
    numbers = json.loads((tmp_path / "out/embeddings.json").read_text())
    ours, theirs = numbers[str(run.folder)], numbers[teacher]
    assert theirs["agreement"] is None and -1 <= ours["agreement"] < 1
    assert ours["parameters"] < theirs["parameters"] and ours["ndcg"] >= ours["mrr"] >= ours["first"] >= 0.5

    # the same number from plain transformers
    left, right = (padded_embeddings(teacher, texts, max_length=24) for texts in (TEXTS, others))
    ranks = (left * right).sum(1).numpy().argsort().argsort()
    assert theirs["spearman"] == pytest.approx(np.corrcoef(ranks, range(4))[0, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "label": 1}, r"pairs.jsonl:1: no text in 'sentence1' or 'sentence2'; there are \['label'"),
        ({"sentence1": "a", "sentence2": "b", "label": "much"}, "'label' is no number, got 'much'"),
        ({"sentence1": "a", "sentence2": "b", "label": math.nan}, "'label' must be finite"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, "nothing can be ranked"),
    ],
)
def test_wrong_pairs_are_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_scored_pairs(str(file), ["sentence1", "sentence2", "label"])


def test_other_mistakes_end_in_a_message(workspace: Workspace, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs: no file"):
        embeddings.embeddings(teacher, pairs="nowhere.jsonl")
    with pytest.raises(ValueError, match="give pairs with scores"):
        embeddings.embeddings(teacher)
    with pytest.raises(ValueError, match=r"pooling: nothing says how .* give --pooling mean or cls"):
        open_encoder(workspace.bert_teacher)
    with pytest.raises(ValueError, match="pooling: 'max' is not known"):
        open_encoder(teacher, pooling="max")
    one = tmp_path / "one.json"
    one.write_text(json.dumps(squad({"a paragraph": ["what?"]})))
    with pytest.raises(ValueError, match="has 1 paragraphs"):
        read_questions(str(one))
