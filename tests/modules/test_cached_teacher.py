"""A cached teacher says what the live one says, or nothing at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_distil.data import EvalLoader, FullSentences, TokenMasking, TrainLoader
from lit_distil.models import FromConfig, MaskedLMNetwork, Pretrained
from lit_distil.modules import CachedTeacher, DistillationModule, FrozenTeacher
from lit_distil.modules.cached_teacher import teacher_identity
from lit_distil.objectives import (
    MaskedLMLoss,
    Objective,
    SoftTargetLoss,
    TopLogits,
)
from lit_distil.schedules import LinearRamp
from tests.modules.caches import make_data, make_module, make_trainer, write_cache
from tests.workspace import TINY, Workspace


@pytest.fixture(scope="module")
def full(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(workspace, tmp_path_factory.mktemp("cache") / "full")


@pytest.fixture(scope="module")
def small(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 tokens in half precision, at the masked positions."""
    module = make_module(workspace, objectives={"soft": SoftTargetLoss(temperature=2.0)})
    out = tmp_path_factory.mktemp("cache") / "small"
    return write_cache(workspace, out, module=module, k=16, positions=None, scores="float16")


def open_cache(workspace: Workspace, folder: Path) -> tuple[CachedTeacher, Any]:
    data = make_data(workspace)
    data.prepare_data()
    data.setup("fit")
    identities = {split: data.identity(split) for split in ("train", "validation")}
    return CachedTeacher(folder, teacher=teacher_identity(workspace.teacher, None, None), data=identities), data


def train(module: DistillationModule, workspace: Workspace, folder: Path, steps: int = 3) -> dict[str, float]:
    trainer = make_trainer(folder, steps, val_check_interval=steps, check_val_every_n_epoch=None)
    torch.manual_seed(0)
    trainer.fit(module, datamodule=make_data(workspace))
    return dict(module.latest)


def test_a_cache_of_all_tokens_trains_as_the_live_teacher_does(
    workspace: Workspace, full: Path, tmp_path: Path
) -> None:
    live, cached = make_module(workspace), make_module(workspace, full)
    start = Pretrained(workspace.teacher).build(None).state_dict()["roberta.embeddings.word_embeddings.weight"]
    expected, found = train(live, workspace, tmp_path), train(cached, workspace, tmp_path)
    assert found.keys() == expected.keys()
    for name in (
        "train/loss",
        "train/loss/soft",
        "train/loss/label",
        "train/grad_norm",
        "val/loss",
        "val/kl_from_teacher_masked",
        "val/kl_from_teacher_unmasked",
        "val/teacher_entropy_masked",
        "val/agreement_with_teacher",
        "val/masked_lm_loss",
    ):
        assert expected[name] > 0
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    theirs = live.network.model.state_dict()
    assert not torch.equal(theirs["roberta.embeddings.word_embeddings.weight"], start)
    for name, value in cached.network.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)


def test_no_teacher_stays_in_memory(workspace: Workspace, full: Path, tmp_path: Path) -> None:
    module = make_module(workspace, full)
    train(module, workspace, tmp_path, steps=1)
    assert not module.teachers and list(module.cached_teachers) == ["teacher"]
    assert not any("teacher" in name for name in module.state_dict())


def test_a_student_of_its_own_needs_no_teacher_loaded(
    workspace: Workspace, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, folder: str) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(DistillationModule, "load_teacher", refuse)
    student = FromConfig("roberta", config={**TINY, "type_vocab_size": 1})
    train(make_module(workspace, full, student=student), workspace, tmp_path, steps=1)
    padded = FromConfig("roberta", config={**TINY, "type_vocab_size": 1, "vocab_size": 328})
    module = make_module(workspace, full, student=padded)
    train(module, workspace, tmp_path, steps=1)
    assert module.num_entries == 320
    monkeypatch.setattr(CachedTeacher, "__call__", refuse)
    cut = FromConfig("roberta", config={**TINY, "type_vocab_size": 1, "vocab_size": 336})
    manifest = json.loads((full / "manifest.json").read_text())
    older = shutil.copytree(full, tmp_path / "older")
    (older / "manifest.json").write_text(json.dumps({**manifest, "vocabulary_size": 328}))
    with pytest.raises(ValueError, match=r"that of teacher holds 328 logits, .* tokenizer's 320 .* write it again"):
        train(make_module(workspace, older, student=cut), workspace, tmp_path)


@pytest.mark.parametrize("kind", ["full", "small"])
def test_every_rank_step_and_epoch_finds_the_rows_of_its_own_sequences(
    kind: str, workspace: Workspace, request: pytest.FixtureRequest
) -> None:
    """Two ranks of two micro-batches, from a step in the middle on, over more epochs than there are masks."""
    cached, data = open_cache(workspace, request.getfixturevalue(kind))
    live = FrozenTeacher(MaskedLMNetwork(Pretrained(workspace.teacher).build(None)))
    dataset = data.datasets["train"]
    first = len(dataset) // 64  # the step that straddles two epochs
    seen = set()
    for rank in range(2):
        arguments: dict[str, Any] = {"batch_size": 64, "rank": rank, "world_size": 2, "accumulate": 2, "seed": 3}
        batches = iter(TrainLoader(dataset, **arguments, first_step=lambda: first))
        for _, batch in zip(range(12), batches, strict=False):
            rows = batch.masked_first if cached.has_all else batch.masked_positions
            assert rows is not None and batch.mask_keys is not None
            logits = live(batch, rows=rows, project=True).logits
            top = cached(batch, "train", rows).projection
            assert logits is not None and isinstance(top, TopLogits)
            expected = TopLogits.of(logits, cached.k, (1.0, 2.0))
            tolerance = 1e-4 if cached.has_all else 2e-3
            torch.testing.assert_close(top.scores, expected.scores, rtol=tolerance, atol=tolerance)
            assert torch.equal(top.ids[:, 0], expected.ids[:, 0])
            if not cached.has_all:
                torch.testing.assert_close(top.rests, expected.rests, rtol=1e-4, atol=1e-4)
            seen |= set(batch.mask_keys)
    assert {pattern for _, pattern in seen} == {0, 1}


def test_evaluation_finds_its_spread_sequences(workspace: Workspace, full: Path) -> None:
    cached, data = open_cache(workspace, full)
    live = FrozenTeacher(MaskedLMNetwork(Pretrained(workspace.teacher).build(None)))
    for batch in EvalLoader(data.datasets["validation"], batch_size=5):
        top = cached(batch, "validation", batch.masked_first).projection
        expected = live(batch, rows=batch.masked_first, project=True).logits
        assert isinstance(top, TopLogits) and expected is not None
        torch.testing.assert_close(top.logits(), expected - expected.amax(-1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert batch.sample_ids.max() > 50  # of 16 sequences


def test_a_resumed_run_goes_on_as_the_unbroken_one(workspace: Workspace, small: Path, tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path | None = None) -> DistillationModule:
        objectives: dict[str, Objective] = {"soft": SoftTargetLoss(temperature=2.0), "mlm": MaskedLMLoss()}
        module = make_module(workspace, small, objectives=objectives)
        trainer = make_trainer(tmp_path, steps, limit_val_batches=0)
        torch.manual_seed(0)
        trainer.fit(module, datamodule=make_data(workspace), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    run(2)
    unbroken, resumed = run(5), run(5, tmp_path / "2.ckpt")
    theirs = unbroken.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert resumed.latest["train/loss/soft"] == unbroken.latest["train/loss/soft"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"data\.train\.seed is 4 here and 3 there"),
        ({"max_length": 40}, r"data\.train\.max_length is 40 here and 48 there"),
        ({"masking": TokenMasking(0.2, patterns=2)}, r"data\.train\.masking\.rate is 0\.2 here and 0\.3 there"),
        ({"masking": TokenMasking(0.3, patterns=3)}, r"masking\.patterns is 3 here and 2 there"),
        ({"max_eval_sequences": 12}, r"data\.validation\.max_eval_sequences is 12 here and 16 there"),
        ({"format": FullSentences()}, r"data\.train\.format\.class is lit_distil\S+FullSentences here"),
        ({"masking": TokenMasking(0.3)}, r"patterns is null: .* none comes twice.*masking\.init_args\.patterns: 4"),
        ({"masking": None}, r"data\.masking is not given"),
    ],
)
def test_other_data_is_refused_by_what_differs(
    changes: dict[str, Any], message: str, workspace: Workspace, full: Path, tmp_path: Path
) -> None:
    module = make_module(workspace, full)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace, **changes))
    assert module.network is None


def test_another_text_or_tokenizer_is_refused(workspace: Workspace, full: Path, tmp_path: Path) -> None:
    """Of the same sizes: one word, and two tokens that change places."""
    text = (workspace.root / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(text.replace("teacher", "student", 1))
    shutil.copytree(workspace.byte_bpe, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (300, 301))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        (r"was written for something else: .*data\.train\.source\S* is ", {"train": tmp_path / "train.txt"}),
        (r"data\.tokenizer: .* is not the teacher's vocabulary.* 2 tokens differ", {"tokenizer": str(file.parent)}),
    )
    for message, change in changes:
        module = make_module(workspace, full)
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).fit(module, datamodule=make_data(workspace, **change))
        assert module.network is None


def test_another_teacher_is_refused(workspace: Workspace, full: Path, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(workspace.teacher, other)
    module = make_module(workspace, full, teacher=str(other))
    make_trainer(tmp_path, 1, limit_val_batches=0).fit(module, datamodule=make_data(workspace))  # only moved
    weights = Pretrained(str(other)).build(None)
    with torch.no_grad():
        weights.get_output_embeddings().bias[7] += 1e-3  # type: ignore[union-attr]
    weights.save_pretrained(other)
    for changes, message in (
        ({"teacher": str(other)}, r"teacher\.weights is \w+\.\.\. here and"),
        ({"teacher_dtype": "bfloat16"}, r"teacher\.dtype is bfloat16 here and null there"),
        ({"teacher": "/nope/teacher"}, r"model\.teacher: .*'/nope/teacher'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path).fit(make_module(workspace, full, **changes), datamodule=make_data(workspace))


def test_a_sequence_masked_in_another_way_is_noticed_whatever_the_manifest_says(
    workspace: Workspace, full: Path
) -> None:
    """As when the code that masks has changed."""
    cached, data = open_cache(workspace, full)
    batch = data.datasets["train"].collate(np.arange(4), np.zeros(4, dtype=np.int64))
    batch.input_ids[0, 5] += 1
    with pytest.raises(ValueError, match=r"sample \d+ of the train split was masked in another way"):
        cached(batch, "train", batch.masked_first)
    batch.mask_keys = ((0, 0), (1, 0), (9999, 0), (3, 0))
    with pytest.raises(ValueError, match="no rows of sample 9999 of the train split under mask 0"):
        cached(batch, "train", batch.masked_first)
    batch.mask_keys = None
    with pytest.raises(ValueError, match="the batch has no static masks"):
        cached(batch, "train", batch.masked_first)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (SoftTargetLoss(temperature=2.0, positions="all"), "the masked positions only.*--positions all"),
        (SoftTargetLoss(temperature=3.0), r"16 most likely tokens at the temperatures \[1\.0, 2\.0\], and .* has 3"),
        (SoftTargetLoss(temperature=LinearRamp(2.0, 1.0, steps=4)), "temperature of SoftTargetLoss changes"),
    ],
)
def test_what_a_small_cache_lacks_is_named_before_the_first_step(
    objective: Objective, message: str, workspace: Workspace, small: Path, tmp_path: Path
) -> None:
    module = make_module(workspace, small, objectives={"soft": objective})
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))
