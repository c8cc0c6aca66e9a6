"""Networks of one tokenizer whose embeddings have other numbers of rows beyond it are compared as if both were cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from lit_distil.data import load_tokenizer
from lit_distil.models import CrossArchitecture, FromConfig, MaskedLMNetwork, Pretrained
from lit_distil.modules import DistillationModule
from lit_distil.modules.checks import compared_entries
from lit_distil.objectives import (
    JensenShannonLoss,
    LogitMSELoss,
    MaskedLMLoss,
    ReverseKLLoss,
    SoftTargetLoss,
    TeacherLabelLoss,
)
from lit_distil.types import Vocabulary
from tests.modules.caches import make_data, make_module, make_trainer, write_cache
from tests.workspace import TIMED, TINY, Workspace

ENTRIES, PADDED, MORE = 320, 328, 352


def objectives(*, cached: bool = False) -> dict[str, Any]:
    """Every objective on logits; a cache has no raw logits."""
    terms: dict[str, Any] = {
        "soft": SoftTargetLoss(temperature=2.0, positions="all"),
        "reverse": ReverseKLLoss(temperature=2.0, positions="all"),
        "js": JensenShannonLoss(0.3, temperature=2.0, positions="unmasked"),
        "label": TeacherLabelLoss(weight=0.5),
        "mlm": MaskedLMLoss(),
    }
    return terms if cached else {**terms, "mse": LogitMSELoss(weight=0.01)}


def with_rows(source: str, num_rows: int, *, seed: int = 0) -> PreTrainedModel:
    """The same network with more or fewer rows in its embedding; new ones are large, so that nobody overlooks them."""
    model = AutoModelForMaskedLM.from_pretrained(source)
    config = model.config.__class__(**{**model.config.to_dict(), "vocab_size": num_rows})
    made, theirs = AutoModelForMaskedLM.from_config(config), model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name, value in made.state_dict().items():
        value.copy_(torch.randn(value.shape, generator=generator))
        both = min(len(value), len(theirs[name]))
        value[:both] = theirs[name][:both]
    return made


@pytest.fixture(scope="module")
def folders(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Teachers and students with each number of rows, and the tokenizer beside them."""
    root = tmp_path_factory.mktemp("networks")
    student = FromConfig("roberta", config={**TINY, "type_vocab_size": 1, "initializer_range": 0.2})
    torch.manual_seed(7)
    student.build(make_data(workspace).vocabulary).save_pretrained(root / "student")
    found = {}
    for role, source in (("teacher", workspace.teacher), ("student", str(root / "student"))):
        for num_rows in (ENTRIES, PADDED, MORE):
            folder = root / f"{role}-{num_rows}"
            with_rows(source, num_rows).save_pretrained(folder)
            load_tokenizer(workspace.byte_bpe).save_pretrained(folder)
            found[f"{role}-{num_rows}"] = str(folder)
    return found


def train(
    workspace: Workspace, folder: Path, teacher: Any, student: str, cache: Path | None = None
) -> tuple[DistillationModule, dict[str, float]]:
    module = make_module(
        workspace, cache, teacher=teacher, student=Pretrained(student), objectives=objectives(cached=cache is not None)
    )
    torch.manual_seed(0)
    make_trainer(folder, 3, val_check_interval=3, check_val_every_n_epoch=None).fit(
        module, datamodule=make_data(workspace)
    )
    return module, {name: value for name, value in module.latest.items() if name not in TIMED}


def assert_same(found: tuple[DistillationModule, dict[str, float]], expected: Any) -> None:
    """Equal in all that was logged, and in all weights over the tokenizer's entries."""
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    theirs = expected[0].network.model.state_dict()
    for name, value in found[0].network.model.state_dict().items():
        torch.testing.assert_close(value[: len(theirs[name])], theirs[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("teacher", "student"), [(PADDED, ENTRIES), (ENTRIES, PADDED), (MORE, PADDED)])
def test_training_is_that_of_networks_cut_by_hand(
    teacher: int, student: int, workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    cut = folders[f"teacher-{ENTRIES}"], folders[f"student-{ENTRIES}"]
    expected = train(workspace, tmp_path, *cut)
    found = train(workspace, tmp_path, folders[f"teacher-{teacher}"], folders[f"student-{student}"])
    assert expected[0].num_entries is None and found[0].num_entries == ENTRIES
    assert_same(found, expected)
    assert found[1]["train/loss/mse"] > 1 and found[1]["val/loss/mlm"] > 1
    start = Pretrained(folders[f"student-{student}"]).build(None)
    name = "roberta.embeddings.word_embeddings.weight"
    before, after = start.state_dict()[name], found[0].network.model.state_dict()[name]
    assert not torch.equal(after[:ENTRIES], before[:ENTRIES])
    assert torch.equal(after[ENTRIES:], before[ENTRIES:])


def test_padding_of_equal_size_stays_in_the_distributions(
    workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    """As before: the rows beyond the tokenizer learn that they never come."""
    module, values = train(workspace, tmp_path, folders[f"teacher-{PADDED}"], folders[f"student-{PADDED}"])
    cut = train(workspace, tmp_path, folders[f"teacher-{ENTRIES}"], folders[f"student-{ENTRIES}"])
    assert module.num_entries is None
    assert values["train/loss/soft"] != pytest.approx(cut[1]["train/loss/soft"], rel=1e-3)


@pytest.mark.parametrize("k", [ENTRIES, 16])
def test_a_cache_of_a_padded_teacher_is_that_of_the_one_cut_by_hand(
    k: int, workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    runs = []
    for rows in (ENTRIES, PADDED):
        teacher = folders[f"teacher-{rows}"]
        module = make_module(workspace, teacher=teacher, objectives=objectives(cached=True))
        cache = write_cache(workspace, tmp_path / f"cache-{rows}", module=module, k=k)
        # the student of the second is padded too
        runs.append(train(workspace, tmp_path, teacher, folders[f"student-{rows}"], cache))
    assert list(runs[1][0].cached_teachers) == ["teacher"] and runs[1][0].num_entries == ENTRIES
    assert_same(runs[1], runs[0])


def test_teachers_of_several_sizes_are_mixed_over_the_entries(
    workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    def run(first: int, second: int) -> tuple[DistillationModule, dict[str, float]]:
        teachers = {"one": folders[f"teacher-{first}"], "two": folders[f"student-{second}"]}
        module = make_module(
            workspace,
            teacher=teachers,
            student=Pretrained(folders[f"student-{ENTRIES}"]),
            objectives={"soft": SoftTargetLoss(temperature=2.0, positions="all")},
        )
        make_trainer(tmp_path, 2, limit_val_batches=0).fit(module, datamodule=make_data(workspace))
        return module, {name: value for name, value in module.latest.items() if name not in TIMED}

    assert_same(run(PADDED, MORE), run(ENTRIES, ENTRIES))


def test_the_students_own_softmax_leaves_out_rows_that_nothing_trained(
    workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    """Else the exported network would predict entries that the tokenizer does not have."""
    module, _ = train(workspace, tmp_path, folders[f"teacher-{ENTRIES}"], folders[f"student-{PADDED}"])
    exported = tmp_path / "export"
    module.network.save_pretrained(exported)
    ids = torch.tensor([[0, 40, 4, 60, 2]])
    with torch.no_grad():
        found, before = (
            torch.softmax(AutoModelForMaskedLM.from_pretrained(folder).eval()(ids).logits, -1)[..., ENTRIES:].sum(-1)
            for folder in (exported, folders[f"student-{PADDED}"])
        )
    assert found.max() < 1e-6 and before.max() > 1e-3


def test_a_student_of_another_architecture_takes_the_rows_that_both_have(
    workspace: Workspace, folders: dict[str, str], tmp_path: Path
) -> None:
    teacher = folders[f"teacher-{MORE}"]
    student = CrossArchitecture(FromConfig("bert", config={"vocab_size": PADDED}))
    module = make_module(workspace, teacher=teacher, student=student, objectives=objectives())
    make_trainer(tmp_path, 1, limit_val_batches=0).fit(module, datamodule=make_data(workspace))
    assert module.num_entries == ENTRIES and module.network.num_logits == PADDED
    small = make_module(
        workspace, teacher=teacher, student=CrossArchitecture(FromConfig("bert", config={"vocab_size": 300}))
    )
    with pytest.raises(ValueError, match=r"tokenizer has 320 entries .* 300 rows"):
        make_trainer(tmp_path).fit(small, datamodule=make_data(workspace))


def test_entries_beyond_the_tokenizer_are_not_predicted(workspace: Workspace, folders: dict[str, str]) -> None:
    network = MaskedLMNetwork(Pretrained(folders[f"student-{PADDED}"]).build(None))
    with torch.no_grad():
        network.model.get_output_embeddings().bias[ENTRIES:] = 50.0
    module = make_module(workspace, teacher=folders[f"teacher-{ENTRIES}"])
    module.network = network
    data = make_data(workspace)
    data.prepare_data()
    data.setup("predict")
    trainer = make_trainer(Path(workspace.root))
    found = trainer.predict(module, datamodule=data)
    ids = [number for batch in found or [] for row in batch for number in row["top_ids"]]
    assert ids and max(ids) < ENTRIES


def test_networks_that_no_padding_explains_are_refused() -> None:
    vocabulary = Vocabulary(ENTRIES, {})
    assert compared_entries(MORE, {"teacher": MORE}, vocabulary) is None
    assert compared_entries(PADDED, {"teacher": MORE}, vocabulary, unnamed=["teacher"]) == ENTRIES
    for student, teacher, role in ((300, 320, "student"), (320, 300, "teacher")):
        with pytest.raises(ValueError, match=rf"model\.{role}: it has 300 logits and the tokenizer 320 entries"):
            compared_entries(student, {"teacher": teacher}, vocabulary)
    assert compared_entries(ENTRIES, {"named": 500}, vocabulary) == ENTRIES  # its tokenizer was compared
    with pytest.raises(ValueError, match=r"in_memory has 500 logits .* more than padding explains"):
        compared_entries(ENTRIES, {"in_memory": 500}, vocabulary, unnamed=["in_memory"])
