"""A teacher with another tokenizer reads the same texts in its own tokens, where nothing depends on tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import lit_distil
from lit_distil.data import DocSentences, LinePerSequence
from lit_distil.models import EveryOther, FromConfig, Pretrained
from lit_distil.modules import DistillationModule, TaskDistillationModule
from lit_distil.objectives import (
    EmbeddingCosineLoss,
    HiddenCosineLoss,
    MaskedLMLoss,
    SoftTargetLoss,
    TaskLoss,
    TaskSoftTargetLoss,
)
from lit_distil.tasks import TokenClassification
from tests.modules.caches import make_data
from tests.modules.test_task_distillation import make_data as make_rows
from tests.modules.test_task_distillation import make_teacher as make_task_teacher
from tests.workspace import TINY, Workspace, fit, logged, make_trainer

LENGTH = 24
BERT = {**TINY, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
COSINE = {"class_path": "lit_distil.objectives.EmbeddingCosineLoss", "init_args": {"pooling": "mean"}}
STUDENT = {"class_path": "lit_distil.models.FromConfig", "init_args": {"model_type": "bert", "config": BERT}}


@pytest.fixture(scope="module")
def texts(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Lines of which one has no token in WordPiece, and some are longer than `LENGTH` in either tokenizer."""
    folder, files = tmp_path_factory.mktemp("texts"), {}
    for split in ("train", "validation"):
        lines = [line for line in (workspace.root / f"{split}.txt").read_text().splitlines() if line]
        lines.insert(3, "\u200b")
        files[split] = str(folder / f"{split}.txt")
        Path(files[split]).write_text("\n".join(lines) + "\n")
    return files


def embeddings(folder: str, lines: list[str]) -> Tensor:
    """Means of the token states, one text after the other, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        encoded = [tokenizer(line, truncation=True, max_length=LENGTH, return_tensors="pt") for line in lines]
        return torch.stack([model(**one).last_hidden_state[0].double().mean(0) for one in encoded])


def expected_loss(student: str, teacher: str, texts: dict[str, str]) -> float:
    lines = Path(texts["validation"]).read_text().splitlines()
    lines.remove("\u200b")
    tokenizers = [AutoTokenizer.from_pretrained(one) for one in (student, teacher)]
    lengths = [[len(tokenizer(line)["input_ids"]) for line in lines] for tokenizer in tokenizers]
    assert lengths[0] != lengths[1] and all(max(one) > LENGTH for one in lengths)
    pair = embeddings(student, lines), embeddings(teacher, lines)
    return float((1 - torch.cosine_similarity(*pair)).mean())


def test_embeddings_from_yaml_are_those_of_each_network_on_the_text_by_itself(
    workspace: Workspace, texts: dict[str, str], tmp_path: Path
) -> None:
    config = workspace.distillation(objectives={"cosine": COSINE}, student=STUDENT)
    source = {"class_path": "lit_distil.data.TextFiles", "init_args": texts}
    config["data"]["init_args"].update(
        tokenizer=workspace.wordpiece,
        source=source,
        format="lit_distil.data.LinePerSequence",
        masking=None,
        max_length=LENGTH,
    )
    run = fit(config, tmp_path / "run", val_check_interval=2, check_val_every_n_epoch=None)
    found = logged(run, "val/loss/cosine")[1]
    assert found == pytest.approx(expected_loss(str(run / "export"), workspace.teacher, texts), rel=1e-4)


def test_embeddings_from_python_take_the_tokenizer_of_a_pretrained_student(
    workspace: Workspace, texts: dict[str, str], tmp_path: Path
) -> None:
    run = lit_distil.distil(
        workspace.teacher,
        texts,
        out=tmp_path / "run",
        kind="embedding",
        student=Pretrained(workspace.bert_teacher),
        objectives={"cosine": EmbeddingCosineLoss("mean")},
        max_steps=2,
        max_length=LENGTH,
        trainer={"accelerator": "cpu", "devices": 1},
    )
    assert type(run.tokenizer).__name__ == "BertTokenizer"
    expected = expected_loss(str(tmp_path / "run" / "export"), workspace.teacher, texts)
    assert run.metrics["val/loss/cosine"] == pytest.approx(expected, rel=1e-4)


def test_a_tasks_teacher_reads_the_same_rows(workspace: Workspace, tmp_path: Path) -> None:
    teacher = make_task_teacher(workspace, tmp_path / "teacher")
    data = make_rows(workspace)
    data._tokenizer = workspace.wordpiece
    module = TaskDistillationModule(
        teacher,
        Pretrained(workspace.bert_teacher),
        {"soft": TaskSoftTargetLoss(2.0, weight=0.5), "task": TaskLoss(weight=0.5)},
    )
    torch.manual_seed(0)
    make_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert module.network is not None
    module.network.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(workspace.wordpiece).save_pretrained(tmp_path / "student")
    rows = [json.loads(line)["text"] for line in (workspace.root / "validation.jsonl").read_text().splitlines()]
    logits = []
    for folder in (teacher, str(tmp_path / "student")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            encoded = [tokenizer(row, truncation=True, max_length=48, return_tensors="pt") for row in rows]
            logits.append(torch.cat([model(**one).logits for one in encoded]).double() / 2)
    p, q = (one.softmax(-1) for one in logits)
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean()
    assert module.latest["val/loss/soft"] == pytest.approx(expected.item(), rel=1e-4) and expected > 0.1
    agreement = (logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean()
    assert module.latest["val/agreement_with_teacher"] == pytest.approx(agreement.item())


TOKEN_BY_TOKEN: dict[str, dict[str, Any]] = {
    "soft": {"soft": SoftTargetLoss(), "mlm": MaskedLMLoss()},
    "hidden": {"hidden": HiddenCosineLoss(positions="all")},
}


@pytest.mark.parametrize("name", TOKEN_BY_TOKEN)
def test_what_is_compared_token_by_token_is_refused_before_the_corpus_is_tokenised(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    module = DistillationModule(workspace.teacher, FromConfig("bert", config=BERT), TOKEN_BY_TOKEN[name])
    data = make_data(workspace, tokenizer=workspace.wordpiece, cache_dir=str(tmp_path / "cache"))
    match = (
        rf"is not the teacher's vocabulary.*model\.objectives\.{name} \(\w+\) compares .* token by token.*entries; .*"
    )
    with pytest.raises(ValueError, match=match + "EmbeddingCosineLoss.*TaskDistillationModule") as refusal:
        make_trainer(tmp_path, 1).fit(module, datamodule=data)
    assert "\n" not in str(refusal.value) and not (tmp_path / "cache" / "corpora").exists()


def test_a_task_with_labels_of_tokens_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    data = make_rows(workspace, TokenClassification())
    data._tokenizer = workspace.wordpiece
    names = {0: "O", 1: "B-a", 2: "I-a"}
    model = Pretrained(workspace.teacher).build(None, head="token_classification", id2label=names)
    model.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(workspace.byte_bpe).save_pretrained(tmp_path / "teacher")
    module = TaskDistillationModule(
        str(tmp_path / "teacher"), FromConfig("bert", config=BERT), {"soft": TaskSoftTargetLoss()}
    )
    with pytest.raises(ValueError, match=r"data\.task compares the two networks token by token"):
        module.check_before_work(data)


@pytest.mark.parametrize("changes", [{"format": DocSentences()}, {"student": "layers"}], ids=["format", "layers"])
def test_texts_that_are_cut_by_their_tokens_and_students_of_the_teachers_layers_are_refused(
    changes: dict[str, Any], workspace: Workspace, tmp_path: Path
) -> None:
    student = EveryOther() if "student" in changes else FromConfig("bert", config=BERT)
    module = DistillationModule(workspace.teacher, student, {"cosine": EmbeddingCosineLoss("mean")})
    data = make_data(
        workspace, tokenizer=workspace.wordpiece, masking=None, format=changes.get("format", LinePerSequence())
    )
    match = "data.format: DocSentences cuts text" if "format" in changes else "use the teacher's tokenizer"
    with pytest.raises(ValueError, match=match):
        module.check_before_work(data)
