"""What the three modules share, looked at through the smallest of runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import AdamW

from lit_distil.data import DocSentences, TableFiles, TextDataModule, TextFiles
from lit_distil.models import FromConfig, Pretrained
from lit_distil.models.attention import register
from lit_distil.modules import FineTuningModule, MaskedLMModule
from lit_distil.objectives import SoftTargetLoss
from lit_distil.tasks import TextClassification, TextRegression
from lit_distil.types import Compiling
from tests.modules.test_distillation import make_data, make_trainer
from tests.modules.test_distillation import make_module as make_student
from tests.workspace import TINY, Workspace, network_weights


def make_module(**changes: Any) -> MaskedLMModule:
    network = FromConfig("roberta", config={**TINY, "type_vocab_size": 1, "hidden_dropout_prob": 0.5})
    return MaskedLMModule(network, **{"optimizer": partial(AdamW, lr=1e-3), **changes})


def test_training_without_an_optimizer_names_the_key(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.optimizer"):
        make_trainer(tmp_path).fit(make_module(optimizer=None), datamodule=make_data(workspace))


def test_a_negative_number_of_blocks_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"model\.activation_checkpointing must be 0 or more, got -1"):
        make_module(activation_checkpointing=-1)


def test_objective_that_needs_a_teacher_is_refused_in_pretraining(workspace: Workspace, tmp_path: Path) -> None:
    module = make_module(objectives={"soft": SoftTargetLoss()})
    with pytest.raises(ValueError, match="compares with a teacher"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))


def test_checkpoint_of_somebody_else_is_refused_by_its_content() -> None:
    with pytest.raises(ValueError, match="names no network"):
        make_module().on_load_checkpoint({"state_dict": {}})


def test_module_built_in_python_saves_a_checkpoint_of_plain_types(workspace: Workspace, tmp_path: Path) -> None:
    """Live objects among the hyper-parameters make a run's own checkpoint unreadable."""
    trainer = make_trainer(tmp_path)
    module = make_module()
    trainer.fit(module, datamodule=make_data(workspace))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert network_weights(tmp_path / "own.ckpt").keys() == module.state_dict().keys()
    other = make_module()
    make_trainer(tmp_path, max_steps=3).fit(
        other, datamodule=make_data(workspace), ckpt_path=tmp_path / "own.ckpt", weights_only=True
    )
    assert not torch.equal(
        module.network.model.lm_head.bias,
        other.network.model.lm_head.bias,  # type: ignore[union-attr]
    )


def test_dropout_differs_by_step_and_rank_and_is_the_same_when_repeated(workspace: Workspace, tmp_path: Path) -> None:
    """After `seed_everything` all ranks draw the same dropout, and after a resume none is drawn again."""
    trainer = make_trainer(tmp_path, max_steps=1)
    module = make_module()
    trainer.fit(module, datamodule=make_data(workspace))
    draws = {}
    for step in (0, 1, 0):
        module._seed_dropout(step)
        draw = torch.rand(4)
        if step in draws:
            assert torch.equal(draws[step], draw)
        draws[step] = draw
    assert not torch.equal(draws[0], draws[1])
    rank = type(module).global_rank
    try:
        type(module).global_rank = property(lambda self: 1)  # type: ignore[assignment]
        module._seed_dropout(0)
        assert not torch.equal(torch.rand(4), draws[0])
    finally:
        type(module).global_rank = rank  # type: ignore[assignment]


def test_network_trains_with_dropout_also_where_it_was_pretrained(workspace: Workspace, tmp_path: Path) -> None:
    """`from_pretrained` gives eval mode, and Lightning leaves it at that."""
    module = MaskedLMModule(
        Pretrained(workspace.teacher, config={"hidden_dropout_prob": 0.3}), optimizer=partial(AdamW, lr=1e-3)
    )
    make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))
    dropouts = [m for m in module.network.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(m.training for m in dropouts)
    assert 0.3 in {m.p for m in dropouts}


def test_a_step_without_a_masked_position_has_a_loss_of_zero_and_no_nan(workspace: Workspace, tmp_path: Path) -> None:
    data = make_data(workspace)
    trainer = make_trainer(tmp_path, max_steps=1)
    module = make_module()
    trainer.fit(module, datamodule=data)
    batch = data.datasets["train"].collate(*(2 * [torch.zeros(1, dtype=torch.int64).numpy()]))
    batch.masked_positions = torch.zeros(0, dtype=torch.int64)
    batch.masked_labels = torch.zeros(0, dtype=torch.int64)
    batch.step_counts = {}
    loss = module.training_step(batch, 0)
    loss.backward()
    assert float(loss) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_validation_of_a_regression_is_the_mean_over_all_rows(workspace: Workspace, tmp_path: Path) -> None:
    import json

    rows = [json.loads(line) for line in (workspace.root / "train.jsonl").read_text().splitlines()]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row["text"], "score": len(row["text"]) / 50}) + "\n" for row in rows))
    data = TextDataModule(
        workspace.byte_bpe,
        TableFiles(str(file), validation=str(file)),
        task=TextRegression(label="score"),
        max_length=48,
        batch_size=8,
    )
    module = FineTuningModule(Pretrained(workspace.teacher), optimizer=partial(AdamW, lr=1e-3))
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    module.network.eval()
    with torch.no_grad():
        batches = list(data.val_dataloader())
        values = torch.cat([module(batch).squeeze(-1) for batch in batches])
    targets = torch.cat([batch.labels for batch in batches])
    assert found["val/loss"] == pytest.approx(float(((values - targets) ** 2).mean()), rel=1e-4)
    assert found["val/mse"] == pytest.approx(found["val/loss"], rel=1e-4)
    assert len(values) == len(rows)


def test_finetuning_without_a_task_names_the_key(workspace: Workspace, tmp_path: Path) -> None:
    module = FineTuningModule(Pretrained(workspace.teacher), optimizer=partial(AdamW, lr=1e-3))
    with pytest.raises(ValueError, match=r"data\.task"):
        make_trainer(tmp_path).fit(module, datamodule=make_data(workspace))


def test_head_has_the_tasks_labels(workspace: Workspace, tmp_path: Path) -> None:
    data = TextDataModule(
        workspace.byte_bpe,
        TableFiles(str(workspace.root / "train.jsonl")),
        task=TextClassification(),
        max_length=48,
        batch_size=8,
    )
    module = FineTuningModule(Pretrained(workspace.teacher), optimizer=partial(AdamW, lr=1e-3))
    make_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    assert module.network.config.id2label == {0: "code", 1: "prose", 2: "verse"}
    assert module.network.config.problem_type == "single_label_classification"


def test_evaluation_data_without_masking_cannot_be_predicted_on(workspace: Workspace, tmp_path: Path) -> None:
    text = str(workspace.root / "test.txt")
    source = TextFiles(text, test=text)
    data = TextDataModule(
        workspace.byte_bpe, source, format=DocSentences(), max_length=48, cache_dir=str(tmp_path / "cache")
    )
    trainer: Trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"data\.masking"):
        trainer.predict(MaskedLMModule(Pretrained(workspace.teacher)), datamodule=data)


class NoteGraphs(Callback):
    """Notes after each step how many graphs there are, of how many tokens the batch was, and the loss."""

    def __init__(self) -> None:
        self.graphs: list[int] = []
        self.tokens: set[int] = set()
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        self.tokens.add(batch.num_tokens)
        self.losses.append(float(outputs["loss"]))


def run_compiled(workspace: Workspace, folder: Path, **settings: Any) -> NoteGraphs:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    notes = NoteGraphs()
    module = make_student(workspace.teacher, gradient_shares_every=0, **settings)
    trainer = make_trainer(folder, max_steps=8, callbacks=[notes])
    trainer.fit(module, datamodule=make_data(workspace))
    compiled = [one.__dict__.get("add_gradient") for one in module.objectives.values()]
    compiled += [getattr(one, "_compiled_call_impl", None) for one in module.network.modules()]
    trainer.validate(module, datamodule=make_data(workspace), verbose=False)
    again = [one.__dict__.get("add_gradient") for one in module.objectives.values()]
    again += [getattr(one, "_compiled_call_impl", None) for one in module.network.modules()]
    assert again == compiled and any(compiled) == bool(settings.get("compile"))  # once, whatever comes after
    register()  # attention is as it was for other tests
    return notes


@pytest.mark.parametrize("every", [0, 1])
def test_a_step_is_compiled_once_for_batches_of_all_sizes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traces, and makes no kernels
    plain = run_compiled(workspace, tmp_path / "plain")
    compiled = run_compiled(workspace, tmp_path / "compiled", compile=True, activation_checkpointing=every)
    assert len(compiled.tokens) > 5
    assert plain.graphs[-1] == 0
    assert compiled.graphs[0] >= 4  # of blocks before and after attention, of the teacher's, of two terms
    assert compiled.graphs[2] == compiled.graphs[-1]
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)


def test_graphs_are_begun_anew_in_each_step_and_do_not_accumulate(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU has none, so what is asked for is looked at; tests/gpu replays them."""
    modes: list[str | None] = []
    begun: list[int] = []
    traced = partial(torch.compile, backend="eager")

    def compiled(function: Any, *, mode: str | None = None, **settings: Any) -> Any:
        modes.append(mode)
        return traced(function, **settings)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    plain = run_compiled(workspace, tmp_path / "plain")
    assert not modes and not begun
    graphs = run_compiled(workspace, tmp_path / "graphs", compile="graphs")
    assert modes.count("reduce-overhead") == 2 + 4 and len(begun) == 8  # blocks of student and teacher; steps
    assert graphs.losses == pytest.approx(plain.losses, rel=1e-5)
    trainer = make_trainer(tmp_path / "accumulating", max_steps=1, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"model\.compile: graphs cannot accumulate gradients"):
        trainer.fit(make_student(workspace.teacher, compile="graphs"), datamodule=make_data(workspace))


@pytest.mark.slow  # kernels are made, for a minute
@pytest.mark.parametrize("compiling", [True, "graphs"])
def test_compiled_kernels_train_as_plain_ones(workspace: Workspace, tmp_path: Path, compiling: Compiling) -> None:
    plain = run_compiled(workspace, tmp_path / "plain", student_dropout=False)
    compiled = run_compiled(workspace, tmp_path / "compiled", student_dropout=False, compile=compiling)
    assert compiled.graphs[2] == compiled.graphs[-1] >= 4
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
