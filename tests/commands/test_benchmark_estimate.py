"""Estimates: operations as the closed formula has them, hours that follow from them, and every stage fed by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lit_distil.cli import main
from lit_distil.commands.benchmark import estimate
from lit_distil.commands.benchmark.estimate import Chain, Stage, rate_of
from lit_distil.data import PreparedCorpus
from lit_distil.models import MaskedLMNetwork
from tests.models.helpers import make_batch, make_model
from tests.workspace import REPOSITORY, Workspace, kept_environment

CONFIGS = REPOSITORY / "configs"


def read(chain: Chain, *options: str) -> Stage:
    with kept_environment():
        stage = chain.read(["fit", *(word for option in options for word in option.split(" "))])
    assert stage is not None
    return stage


def test_bert_base_costs_what_the_closed_formula_says() -> None:
    """Forward and twice that backward: 24 h² + 4 h n a layer and token, and the head at 15 % of the tokens."""
    hidden, layers, entries, length = 768, 12, 30_522, 512
    stage = read(Chain(), f"--config {CONFIGS}/pretrain/bert.yaml", "--trainer.devices 8")
    head = 0.15 * (2 * hidden**2 + 2 * hidden * entries)
    forward = layers * (24 * hidden**2 + 4 * hidden * length) + head
    assert stage.flops / stage.tokens == pytest.approx(3 * forward, rel=2e-4)  # with the pooler and its head of two
    assert (stage.steps, stage.tokens, stage.micro_batches, stage.devices) == (1_000_000, 256 * 512, 1, 8)
    assert stage.parameters == pytest.approx(110e6, rel=0.01)  # Devlin et al. 2019, section 3
    weights = 18 * stage.parameters  # fp32, gradient, two moments, and a copy in bf16
    logits = 0.15 * 2 * 4 * entries / 2  # and their gradients, of half of the masked rows at once
    kept = estimate.KEPT_BYTES["half"] * hidden * layers
    assert stage.memory == pytest.approx(weights + (kept + logits) * stage.tokens / 8, rel=1e-4)
    assert stage.fixed + stage.per_token * stage.largest(80) == pytest.approx(0.9 * 80e9, rel=1e-4)
    assert stage.largest(1) == 0  # its weights alone take two

    recomputed = read(
        Chain(), f"--config {CONFIGS}/pretrain/bert.yaml --trainer.devices 8 --model.activation_checkpointing 1"
    )
    kept = (estimate.KEPT_BYTES["half"] + layers * estimate.INPUT_BYTES) * hidden
    assert recomputed.per_token == pytest.approx(kept + logits, rel=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("half", torch.bfloat16)])
@pytest.mark.parametrize("every", [0, 1, 2])
def test_blocks_keep_as_many_bytes_as_is_estimated(precision: str, dtype: torch.dtype, every: int) -> None:
    """Counted on what autograd saves, in two depths, so that embeddings and head drop out."""
    width, depths, kept = 64, (2, 6), []
    for depth in depths:
        model = make_model("bert", hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth)
        network = MaskedLMNetwork(model).train()
        network.checkpoint_activations(every)
        batch = make_batch((2,) * 512)  # many tokens, since copies of the weights in bf16 are saved, too
        parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        saved: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, into: dict[int, torch.Tensor] = saved) -> torch.Tensor:
            into[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", dtype):
            network(batch)
        kept.append(sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in parameters))
    each = (kept[1] - kept[0]) / (depths[1] - depths[0]) / (batch.num_tokens * width)
    full, again = estimate.KEPT_BYTES[precision], estimate.INPUT_BYTES
    expected = full if not every else (again + (every - 1) * full) / every
    assert each == pytest.approx(expected, rel=0.1)


def test_a_student_is_made_of_the_network_that_an_earlier_run_exports(tmp_path: Path) -> None:
    chain = Chain(num_devices=4)
    small = json.dumps({"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}).replace(" ", "")
    bert = f"--config {CONFIGS}/pretrain/bert.yaml --model.network.config {small}"
    teacher = read(chain, f"{bert} --trainer.default_root_dir {tmp_path}/a")
    distil = f"--config {CONFIGS}/distill/distilbert.yaml --trainer.max_steps 9 --model.teacher {tmp_path}"
    student = read(chain, f"{distil}/a/export --trainer.default_root_dir {tmp_path}/b")
    task = f"--config {CONFIGS}/finetune/glue/rte.yaml --model.network.name_or_path {tmp_path}/b/export"
    tuned = read(chain, f"{task} --trainer.default_root_dir {tmp_path}/c")
    assert (teacher.distils, student.distils, tuned.distils) == (False, True, False)
    assert (student.kind, student.steps, student.devices, tuned.devices) == ("bert", 9, 4, 1)
    assert teacher.parameters > student.parameters > tuned.parameters > 2_000_000
    # six of twelve layers, trained, and all of the teacher's, once; every token needs logits of both
    head = 2 * 64**2 + 2 * 64 * 30_522
    layer = 8 * 64**2 + 4 * 64 * 96 + 4 * 64 * 512
    assert student.flops / student.tokens == pytest.approx(12 * layer + head + 3 * (6 * layer + head), rel=1e-3)
    half = read(chain, f"{distil}/a/export --model.teacher_dtype bfloat16 --trainer.default_root_dir {tmp_path}/d")
    whole = read(chain, f"{distil}/a/export --model.teacher_dtype float32 --trainer.default_root_dir {tmp_path}/e")
    assert whole.fixed == student.fixed
    copies = 2 if student.precision.startswith("bf16") else 0  # of weights in fp32, for the products
    assert student.fixed - half.fixed == pytest.approx((2 + copies) * teacher.parameters, rel=0.01)
    assert tuned.steps == 10 * 156  # of 2,490 rows, 16 at a time
    with pytest.raises(ValueError, match="name_or_path"):  # neither exported before nor here
        chain._config(f"{tmp_path}/elsewhere/export")


def test_epochs_are_counted_on_the_corpus_that_is_there_or_will_be(workspace: Workspace, tmp_path: Path) -> None:
    files, chain = {"train": f"{workspace.root}/train.txt"}, Chain()
    source = json.dumps({"class_path": "lit_distil.data.TextFiles", "init_args": files})
    assert chain.read(["prepare", "--source", source, "--tokenizer", "x", "--out", f"{tmp_path}/corpus"]) is None
    corpus = f"--data.source lit_distil.data.PreparedCorpus --data.source.folder {tmp_path}/corpus"
    recipe = f"--config {CONFIGS}/distill/distilroberta.yaml --data.batch_size 2 --data.max_length 16 {corpus}"
    recipe += " --trainer.accumulate_grad_batches 1"
    tokens = (workspace.root / "train.txt").stat().st_size / estimate.BYTES_PER_TOKEN
    assert read(chain, recipe).steps == -(-3 * tokens // 32)
    assert any("GB of text" in note for note in chain.notes)
    with pytest.raises(ValueError, match="its size is unknown before it is read; give"):
        Chain()._tokens(PreparedCorpus(f"{tmp_path}/corpus"))


STAGE = Stage("a", "bert", True, 512, 100, 1000, 3e15, 5, 1e9, 1.0, 2, 4, "bf16-mixed")


def test_hours_follow_from_operations_devices_and_share() -> None:
    rate, origin = rate_of(STAGE, "A100", mfu=0.5, results=Path("none"))
    assert rate == 156e12 and "50 % are as given" in origin
    assert STAGE.seconds(rate) == pytest.approx(100 * 3e15 / (4 * 156e12))
    assert STAGE.seconds(1e20) == 100 * 2 * estimate.LEAST_SECONDS  # small steps wait for the host
    assert rate_of(STAGE, "H100", mfu=None, results=Path("none"))[0] == estimate.ASSUMED_MFU * 989e12
    assert "measured here" in rate_of(STAGE, "cpu", mfu=None, results=Path("none"))[1]
    with pytest.raises(ValueError, match="no data sheet of 'K80' in bf16-mixed; give H100"):
        rate_of(STAGE, "K80", mfu=None, results=Path("none"))


def test_a_measured_share_of_the_nearest_case_is_taken(tmp_path: Path) -> None:
    cases = {"bert-base MLM, 512, packed": 0.6, "bert-base → 6 layers, all positions, 128, natural": 0.4}
    cases |= {"bert-base → 6 layers, all positions, 512, packed": 0.45, "roberta-base MLM, 512, packed": 0.7}
    rows = [{"case": case, "ours": {"mfu": mfu}} for case, mfu in cases.items()]
    (tmp_path / "speed.json").write_text(json.dumps({"hardware": {"device": "NVIDIA H200"}, "rows": rows}))
    rate, origin = rate_of(STAGE, "H100", mfu=None, results=tmp_path / "speed.json")
    assert rate == 0.45 * 989e12 and "45 % were measured on NVIDIA H200 (bert-base → 6 layers" in origin
    assert rate_of(STAGE, "H100", mfu=0.1, results=tmp_path / "speed.json")[0] == 0.1 * 989e12


def test_the_command_prints_a_table_and_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_float32_matmul_precision("medium")
    with kept_environment():
        main(["benchmark", "estimate", "--devices", "8", "--gpu", "A100", "--config", "recipe:pretrain/roberta"])
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("runs/roberta")).split("  ")
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells[3:7] == ["4,194,304", "500,000", "2,097.152 G", "8"]
    hours = 2.097152e12 * float(cells[2].split()[0]) * 1e9
    hours /= 8 * 312e12 * estimate.ASSUMED_MFU * 3600
    assert float(cells[-1]) == pytest.approx(hours, rel=2e-3)
    assert "35 % are assumed" in said and "46 bytes a token" in said
    assert said.count("runs/roberta") == 2  # its largest micro-batches, too


def test_what_fills_micro_batches_up_takes_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmark", "estimate", "--gpu", "A100", "--devices", "8", "--config", "recipe:pretrain/bert"]
    found = []
    for settings in ([], ["--data.pad_to_multiple_of", "33280"]):
        with kept_environment():
            main([*command, *settings])
        said = capsys.readouterr().out
        rows = [line.split() for line in said.splitlines() if line.startswith("runs/bert")]
        found.append((float(rows[0][-1].replace(",", "")), int(rows[1][1].replace(",", ""))))  # hours, tokens on 16 GB
    times = 33_280 / 16_384
    assert "data.pad_to_multiple_of makes 16,384 tokens of a micro-batch 33,280" in said
    assert found[1][0] == pytest.approx(times * found[0][0], rel=0.02)
    assert found[1][1] == pytest.approx(found[0][1] / times, rel=0.02)


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ("--trainer.devices 2", 2),
        ("--trainer.devices [0,1,5]", 3),
        ("--trainer.devices 0,1,2", 3),
        ("--trainer.devices auto", 4),
        ("--trainer.devices 2 --trainer.num_nodes 3", 6),
    ],
)
def test_devices_are_counted_as_the_trainer_does(trainer: str, number: int) -> None:
    recipe = f"--config {CONFIGS}/pretrain/roberta.yaml --data.batch_size {32 * 12}"
    assert read(Chain(num_devices=4), f"{recipe} {trainer}").devices == number


def test_a_step_that_does_not_divide_is_refused_as_fit_refuses_it() -> None:
    recipe = f"--config {CONFIGS}/pretrain/roberta.yaml --data.batch_size 64"
    assert read(Chain(), f"{recipe} --trainer.accumulate_grad_batches 4").micro_batches == 4
    with pytest.raises(ValueError, match=r"must be divisible by devices × accumulate_grad_batches = 1 × 3 = 3"):
        read(Chain(), f"{recipe} --trainer.accumulate_grad_batches 3")


def test_a_run_ends_at_its_steps_or_its_epochs_whichever_is_first(workspace: Workspace) -> None:
    source = json.dumps(
        {"class_path": "lit_distil.data.TextFiles", "init_args": {"train": f"{workspace.root}/train.txt"}}
    )
    recipe = f"--config {CONFIGS}/pretrain/roberta.yaml --data.source {source.replace(' ', '')} --data.batch_size 2 "
    recipe += "--trainer.accumulate_grad_batches 1"
    epochs = read(Chain(), f"{recipe} --trainer.max_steps -1 --trainer.max_epochs 2").steps
    assert read(Chain(), f"{recipe} --trainer.max_steps 100000 --trainer.max_epochs 2").steps == epochs
    assert read(Chain(), f"{recipe} --trainer.max_steps 1 --trainer.max_epochs 2").steps == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "0"], "devices must be at least 1, got 0"),
        (["--mfu", "nan"], r"mfu must lie in \(0, 1\], got nan"),
        (["--mfu", "5"], r"mfu must lie in \(0, 1\], got 5"),
        (["--results", "/"], "results: '/' is a folder; give the speed"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate.run([*options, "--config", "recipe:bert"])


def test_a_file_that_make_gpu_did_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(ValueError, match="text is not what make gpu writes"):
        rate_of(STAGE, "h100", mfu=None, results=tmp_path / "text")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no CUDA here"):
            rate_of(STAGE, "cuda", mfu=0.5, results=tmp_path / "none")


def test_published_networks_are_those_of_the_recipes() -> None:
    """Their defaults are the architecture's; a recipe that names another one would be estimated by its folder."""
    for name, fields in estimate.PUBLISHED.items():
        config = AutoConfig.for_model(**fields)
        assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (12, 768, 3072), name
