"""A student with a part of its teacher's vocabulary learns the teacher's distribution over that part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import lit_distil
from lit_distil.data import TableFiles, TextDataModule
from lit_distil.models import EveryOther, FromConfig, MaskedLMNetwork, Pretrained
from lit_distil.modules import DistillationModule
from lit_distil.objectives import HiddenCosineLoss, MaskedLMLoss, SoftTargetLoss
from lit_distil.tasks import TextClassification
from tests.modules.caches import make_data, make_module, make_trainer, write_cache
from tests.modules.test_distillation_padding import objectives
from tests.modules.test_task_distillation import make_module as make_task_module
from tests.modules.test_task_distillation import make_teacher as make_task_teacher
from tests.workspace import TIMED, TINY, Workspace


@pytest.fixture(scope="module")
def trimmed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The teacher with a vocabulary of some 280 of its 320 entries."""
    folder = tmp_path_factory.mktemp("trimmed")
    part = folder / "part.txt"
    part.write_text("\n".join((workspace.root / "train.txt").read_text().splitlines()[:3]))
    change = lit_distil.vocabulary(workspace.teacher, keep_from=str(part), size=290, out=str(folder / "out"))
    assert change.after.entries == 290 < change.before.entries
    return str(folder / "out")


def fitted(
    workspace: Workspace, folder: Path, tokenizer: str, steps: int = 1, cache: Path | None = None, **changes: Any
) -> DistillationModule:
    module = make_module(workspace, cache, **changes)
    torch.manual_seed(0)
    make_trainer(folder, steps, val_check_interval=steps, check_val_every_n_epoch=None).fit(
        module, datamodule=make_data(workspace, tokenizer=tokenizer)
    )
    return module


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_divergence_from_the_whole_teacher_over_the_shared_entries(
    temperature: float, workspace: Workspace, trimmed: str, tmp_path: Path
) -> None:
    """`KL(p‖q)` with `p_i = exp(z_i / T) / Σ_j exp(z_j / T)`, j over the student's entries, z of the whole teacher."""
    terms = {
        "soft": SoftTargetLoss(temperature, positions="all"),
        "mlm": MaskedLMLoss(),
        "cos": HiddenCosineLoss(positions="all"),
    }
    module = fitted(workspace, tmp_path, trimmed, objectives=terms)
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    batch = next(iter(data.val_dataloader()))
    module.eval()
    with torch.no_grad():
        student, teachers = module.outputs(batch)
        _, sums = module.terms.total(student, teachers, batch, batch.counts)

    whole = MaskedLMNetwork(AutoModelForMaskedLM.from_pretrained(workspace.teacher).eval())
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (workspace.teacher, trimmed))
    to_old = torch.tensor(old.convert_tokens_to_ids(new.convert_ids_to_tokens(list(range(len(new))))))
    assert not torch.equal(to_old, torch.arange(len(new)))
    batch.input_ids = to_old[batch.input_ids]
    with torch.no_grad():
        theirs = whole(batch, rows="all", output_hidden_states=True)
    assert theirs.logits is not None and theirs.logits.shape[1] == len(old) == 320
    assert torch.equal(theirs.last_hidden_state, teachers["teacher"].last_hidden_state)

    batch.input_ids = torch.searchsorted(to_old, batch.input_ids)
    assert module.network is not None
    with torch.no_grad():
        ours = module.network(batch, rows="all")
    z, s = theirs.logits[:, to_old].double() / temperature, ours.logits.double() / temperature
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    q = s.exp() / s.exp().sum(-1, keepdim=True)
    expected = temperature**2 * (p * (p.log() - q.log())).sum()
    assert sums["soft"].item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0.1
    lost = 1 - (theirs.logits.double().softmax(-1)[:, to_old]).sum(-1)
    assert lost.max() > 1e-3  # the whole teacher gives the other entries some mass, which is shared out


def test_a_student_of_the_teachers_layers_has_the_shared_rows(
    workspace: Workspace, trimmed: str, tmp_path: Path
) -> None:
    module = make_module(workspace, student=EveryOther(), objectives={"soft": SoftTargetLoss()})
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(module, datamodule=make_data(workspace, tokenizer=trimmed))
    start, _ = EveryOther().build(Pretrained(trimmed).build(None))
    assert module.network is not None
    ours, theirs = module.network.model.state_dict(), start.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0.2)  # after one step of SGD
    whole = AutoModelForMaskedLM.from_pretrained(workspace.teacher)
    assert len(theirs["lm_head.bias"]) == 290 < len(whole.state_dict()["lm_head.bias"])


@pytest.mark.parametrize("student", ["layers", "folder", "config"])
def test_training_is_that_of_a_teacher_trimmed_by_the_command(
    student: str, workspace: Workspace, trimmed: str, tmp_path: Path
) -> None:
    sources: dict[str, Any] = {
        "layers": EveryOther(),
        "folder": Pretrained(trimmed),
        "config": FromConfig("roberta", config={**TINY, "type_vocab_size": 1}),
    }
    runs = [
        fitted(
            workspace, tmp_path / name, trimmed, 3, teacher=teacher, student=sources[student], objectives=objectives()
        )
        for name, teacher in (("whole", workspace.teacher), ("cut", trimmed))
    ]
    values = [{k: v for k, v in run.latest.items() if k not in TIMED} for run in runs]
    assert values[0] == values[1] and values[0]["train/loss/mse"] > 0
    states = [run.network.model.state_dict() for run in runs if run.network is not None]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_cache_holds_the_shared_entries(workspace: Workspace, trimmed: str, tmp_path: Path) -> None:
    module, data = make_module(workspace), make_data(workspace, tokenizer=trimmed)
    cache = write_cache(workspace, tmp_path / "cache", module=module, data=data, k=290)
    run, live = (fitted(workspace, tmp_path, trimmed, cache=one) for one in (cache, None))
    for name in ("train/loss/soft", "train/loss/label", "val/loss/soft"):
        assert run.latest[name] == pytest.approx(live.latest[name], rel=1e-4), name


def test_a_teacher_that_lacks_an_entry_is_refused(workspace: Workspace, trimmed: str, tmp_path: Path) -> None:
    """A word that was added to the student's vocabulary: the teacher cannot read it."""
    out = str(tmp_path / "extended")
    lit_distil.vocabulary(trimmed, add=["kubelet"], out=out)
    with pytest.raises(ValueError, match=r"is not the teacher's vocabulary .*words that it added must be added to the"):
        fitted(workspace, tmp_path, out)


def test_a_tasks_teacher_reads_the_same_rows_through_the_shared_entries(workspace: Workspace, tmp_path: Path) -> None:
    """A student that is its teacher, trimmed to what the rows need, gives the whole teacher's answers."""
    teacher = make_task_teacher(workspace, tmp_path / "teacher")
    out, root = str(tmp_path / "trimmed"), workspace.root
    lines = (root / "validation.jsonl").read_text().splitlines()[:3]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    (tmp_path / "rows.txt").write_text("\n".join(json.loads(line)["text"] for line in lines))
    change = lit_distil.vocabulary(teacher, keep_from=str(tmp_path / "rows.txt"), out=out)
    assert change.after.entries < change.before.entries
    found = []
    for tokenizer, student in ((out, out), (workspace.byte_bpe, teacher)):
        data = TextDataModule(
            tokenizer,
            TableFiles(str(root / "train.jsonl"), validation=str(tmp_path / "validation.jsonl")),
            task=TextClassification(),
            max_length=48,
            batch_size=8,
            eval_batch_size=4,
        )
        module = make_task_module(teacher, student=Pretrained(student))
        make_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
        found.append(dict(module.latest))
    assert found[0] == found[1] and found[0]["val/agreement_with_teacher"] == 1
    assert abs(found[0]["val/kl_from_teacher"]) < 1e-9
