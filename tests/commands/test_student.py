from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from lit_distil import cli
from lit_distil.commands import student
from lit_distil.data import DocSentences, TextDataModule, TextFiles, TokenMasking
from lit_distil.models import CrossArchitecture, FirstLayers, FromConfig, Layers, Narrower
from tests.commands.examples import finished_run, make_tokenizer, write_texts
from tests.integration.probes import UnreadTexts


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("teacher")
    return str(finished_run(root / "run", make_tokenizer(), seed=0, layers=4) / "export")


def make_data(teacher: str, folder: Path) -> TextDataModule:
    return TextDataModule(
        teacher,
        TextFiles(**write_texts(folder)),
        format=DocSentences(),
        masking=TokenMasking(0.3),
        max_length=48,
        batch_size=4,
        cache_dir=str(folder / "cache"),
    )


def test_the_folder_holds_the_picked_layers_and_the_teachers_tokenizer(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    student.run(["--teacher", teacher, "--student", "lit_distil.models.EveryOther", "--out", str(out)])
    printed = capsys.readouterr().out
    loaded, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    source = AutoModelForMaskedLM.from_pretrained(teacher)
    for mine, its in ((0, 0), (1, 2)):
        expected = source.roberta.encoder.layer[its].state_dict()
        found = loaded.roberta.encoder.layer[mine].state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(teacher).get_vocab()

    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "layer 1 layer 2 16 16 copied" in lines
    for name, model in (("student", loaded), ("teacher", source)):
        size = sum(p.numel() * 4 for p in model.parameters()) / 1e6
        layers = model.config.num_hidden_layers
        expected_line = (
            f"{name} {model.num_parameters():,} parameters {size:,.1f} MB roberta, {layers} layers, width 32"
        )
        assert expected_line in lines
    assert "44 tensors: 44 copied" in lines and f"written: {out}" in lines
    assert "right after initialisation" not in printed


def test_a_student_with_all_layers_agrees_with_its_teacher_on_text(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(teacher, tmp_path)
    student.student(teacher, FirstLayers(4), str(tmp_path / "all"), data=data)
    printed = capsys.readouterr().out
    assert "they agree on 100.00%; KL(teacher || student) 0.0000 nats" in printed
    student.student(teacher, Layers([0]), str(tmp_path / "one"), data=data, seed=3)
    printed = capsys.readouterr().out
    figures = re.search(r"over (\d+) masked tokens:.*\nstudent +([\d.]+) .*\nteacher +([\d.]+) ", printed, re.DOTALL)
    assert figures is not None and int(figures[1]) > 20
    assert float(figures[2]) != float(figures[3]) and float(figures[3]) > 1
    divergence = re.search(r"KL\(teacher \|\| student\) ([\d.]+)", printed)
    assert divergence is not None and float(divergence[1]) > 0.01


def test_every_kind_of_student_is_written_and_every_tensor_is_shown(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {
        "narrower": (Narrower(16, layers=FirstLayers(1)), "sliced"),
        "projected": (Narrower(16, method="project"), "projected"),
        "distilbert": (CrossArchitecture(FromConfig("distilbert"), layers=FirstLayers(2)), "folded, frozen"),
        "modernbert": (CrossArchitecture(FromConfig("modernbert", config={"num_hidden_layers": 1})), "new"),
    }
    for name, (kind, origin) in kinds.items():
        frozen = name == "distilbert"
        student.student(teacher, kind, str(tmp_path / name), all_tensors=True, freeze_positions=frozen)
        printed = capsys.readouterr().out
        loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / name)
        table = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
        assert set(loaded.state_dict()) <= set(table)
        assert any(f"  {origin}  " in table[tensor] for tensor in loaded.state_dict()), name
        assert ("; 1 frozen" in printed) == frozen


def test_the_same_seed_gives_the_same_new_tensors(teacher: str, tmp_path: Path) -> None:
    kind = CrossArchitecture(FromConfig("modernbert", config={"num_hidden_layers": 1}))
    weights = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        student.student(teacher, kind, str(tmp_path / folder), seed=seed)
        weights.append(AutoModelForMaskedLM.from_pretrained(tmp_path / folder).state_dict())
    name = "model.layers.0.attn.Wqkv.weight"
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])


def test_what_a_distillation_refuses_is_refused_here_and_what_it_accepts_is_made(teacher: str, tmp_path: Path) -> None:
    """A teacher without a head was given a random one in silence."""
    headless = tmp_path / "headless"
    AutoModel.from_pretrained(teacher).save_pretrained(headless)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(headless)
    student.student(str(headless), FirstLayers(2), str(tmp_path / "encoder"))
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["architectures"] == ["RobertaModel"]
    with pytest.raises(
        ValueError, match=r"data: .*headless' has no trained masked-LM head to compare.*lit-distil pretrain"
    ):
        student.student(str(headless), FirstLayers(2), str(tmp_path / "out"), data=make_data(teacher, tmp_path))

    padded = tmp_path / "padded"
    shutil.copytree(teacher, padded)
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**config, "pad_token_id": config["pad_token_id"] + 3}))
    with pytest.raises(ValueError, match=r"its config has pad_token_id=4 and the tokenizer pads with 1"):
        student.student(str(padded), FirstLayers(2), str(tmp_path / "out"))

    data = make_data(teacher, tmp_path)
    data.source, data.max_length = UnreadTexts(**data.source.files), 65  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"data\.max_length: 65 tokens"):
        student.student(teacher, FirstLayers(2), str(tmp_path / "out"), data=data)
    assert not (tmp_path / "out").exists()


def test_mistakes_end_in_a_message_and_leave_no_folder(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ["student", "--teacher", teacher, "--out", str(out)]
    layers = ["--student", "lit_distil.models.Layers", "--student.layers"]
    for arguments, message in (
        ([*common, *layers, "[0, 4]"], "layers: 4 is out of range; the teacher has 4 layers"),
        (
            [*common, "--student", "lit_distil.models.Narrower", "--student.hidden_size", "64"],
            "more than the teacher's",
        ),
        (["student", "--teacher", "/nope", "--out", str(out), *layers, "[0]"], "/nope"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    data = make_data(teacher, tmp_path)
    data.masking = None
    with pytest.raises(ValueError, match=r"give data\.format and data\.masking"):
        student.student(teacher, FirstLayers(1), str(out), data=data)
    assert not out.exists()
