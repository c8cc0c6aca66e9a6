"""Every configuration that ships: it parses, says what it is, runs, and has the papers' numbers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from lit_distil.data import SegmentPair, TextDataModule, TextFiles, TokenMasking, load_tokenizer
from lit_distil.models import EveryOther
from lit_distil.models.students.base import config_with
from lit_distil.objectives.embedding import SentenceFormat, read_sentence_format
from lit_distil.run import run as run_command
from lit_distil.schedules import LinearRamp
from tests.workspace import REPOSITORY, Workspace, kept_environment, logged, write_config, write_model

CONFIGS = REPOSITORY / "configs"
CLAIMS = CONFIGS / "claims"  # the arms of a claim are tested with the command that runs them
ALL = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.parent != CLAIMS)
PUBLISHED = CONFIGS / "finetune/glue/papers.yaml"
REPORTS = [path for path in ALL if "masked_lm_data" in path.read_text()]


def content_of(path: Path | str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / path).read_text())


RECIPES = [path for path in ALL if path not in REPORTS and "class_path" in content_of(path).get("model", {})]
OVERLAYS = [path for path in ALL if path not in {*REPORTS, *RECIPES, PUBLISHED}]
FINETUNING = "demo/task.yaml"


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves under dotted names, without the class_path and init_args in between."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):  # callbacks
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else key
        leaves.update(flat(value, name))
    return leaves


def print_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with kept_environment(), pytest.raises(SystemExit) as stop:
        run_command(["fit", *arguments, "--print_config"])
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_the_configs_are_found() -> None:
    assert len(RECIPES) >= 12 and len(OVERLAYS) >= 8 and len(REPORTS) == 1


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_config_says_at_its_top_what_it_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 30


def test_every_config_has_a_row_in_the_table_of_configs() -> None:
    table = (CONFIGS / "README.md").read_text()
    missing = [name_of(path) for path in ALL if f"`{name_of(path)}`" not in table]
    assert not missing


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_parses_and_every_value_arrives(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = flat(print_config(["--config", str(path)], capsys))
    for name, value in flat(content_of(path)).items():
        if isinstance(value, str) and value.startswith("lit_distil."):
            shortest = f"lit_distil.{value.rpartition('.')[2]}"  # what the parser writes for an optimizer
            assert {value, shortest} & {parsed.get(name), parsed.get(f"{name}.class_path")}, name
        else:
            assert parsed[name] == value, name


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_overlay_parses_on_top_of_a_recipe_and_wins(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = FINETUNING if path.parent.name == "demo" else "pretrain/roberta-small.yaml"
    parsed = flat(print_config(["--config", str(CONFIGS / base), "--config", str(path)], capsys))
    for name, value in flat(content_of(path)).items():
        assert parsed[name] == value, name


# Recipes that run


def run_small(name: str, workspace: Workspace, folder: Path, **settings: Any) -> Path:
    """Two steps of a recipe as it stands, with tiny text, tokenizer and teacher in place of its own."""
    recipe = content_of(name)
    is_task = "task" in recipe["data"]["init_args"]
    data = (workspace.row_data() if is_task else workspace.text_data())["init_args"]
    tokenizer = settings.pop("tokenizer", workspace.byte_bpe)
    overlay: dict[str, Any] = {
        "data": {"init_args": {"tokenizer": tokenizer, "source": data["source"], "cache_dir": str(folder / "cache")}},
        "trainer": {"default_root_dir": str(folder / "run"), "max_steps": 2, "devices": 1, "strategy": "auto"},
    }
    overlay["trainer"].update(log_every_n_steps=1, enable_progress_bar=False)
    if "val_check_interval" in recipe["trainer"]:
        overlay["trainer"]["val_check_interval"] = 2
    if is_task:
        overlay["data"]["init_args"]["task"] = {
            "class_path": "lit_distil.tasks.TextClassification",
            "init_args": {"text": "text", "label": "label"},
        }
        overlay["trainer"]["max_epochs"] = -1
        overlay["data"]["init_args"]["cache_dir"] = None
    arguments = ["--config", str(CONFIGS / name)]
    arguments += settings.pop("more", [])
    arguments += ["--config", write_config(overlay, folder / "overlay.yaml")]
    for key, value in settings.items():
        arguments += [f"--model.{key.replace('__', '.')}", value]
    with kept_environment():
        run_command(["fit", *arguments])
    losses = logged(folder / "run", "train/loss")
    assert len(losses) == 2 and all(value > 0 for value in losses.values())
    assert (folder / "run" / "export" / "config.json").is_file()
    return folder / "run" / "export"


def test_bert_small_and_its_distilbert_run(workspace: Workspace, tmp_path: Path) -> None:
    teacher = run_small("pretrain/bert-small.yaml", workspace, tmp_path / "bert", tokenizer=workspace.wordpiece)
    # BERT has a next-sentence head and is scored on it
    assert logged(tmp_path / "bert" / "run", "train/loss/next_sentence")
    assert logged(tmp_path / "bert" / "run", "train/next_sentence_accuracy")
    student = run_small(
        "distill/distilbert-small.yaml", workspace, tmp_path / "student", tokenizer=str(teacher), teacher=str(teacher)
    )
    config = json.loads((student / "config.json").read_text())
    assert (config["model_type"], config["n_layers"]) == ("distilbert", 2)


def test_roberta_small_and_its_distilroberta_run(workspace: Workspace, tmp_path: Path) -> None:
    teacher = run_small("pretrain/roberta-small.yaml", workspace, tmp_path / "roberta")
    student = run_small(
        "distill/distilroberta-small.yaml",
        workspace,
        tmp_path / "student",
        tokenizer=str(teacher),
        teacher=str(teacher),
    )
    config = json.loads((student / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("roberta", 2)


@pytest.mark.parametrize("name", ["minilm", "tinybert"])
def test_students_of_the_small_bert_with_another_width_run(name: str, workspace: Workspace, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    config = content_of("pretrain/bert-small.yaml")["model"]["init_args"]["network"]["init_args"]["config"]
    write_model(str(teacher), "bert", load_tokenizer(workspace.wordpiece), **config)
    student = run_small(
        f"distill/{name}-small.yaml", workspace, tmp_path / "student", tokenizer=str(teacher), teacher=str(teacher)
    )
    config = json.loads((student / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 2, 64)


def test_a_sentence_encoder_of_half_the_layers_runs(workspace: Workspace, tmp_path: Path) -> None:
    teacher, whole = tmp_path / "teacher", tmp_path / "whole"
    write_model(str(whole), "bert", load_tokenizer(workspace.wordpiece), num_hidden_layers=6)
    AutoModel.from_pretrained(whole).save_pretrained(teacher)
    load_tokenizer(workspace.wordpiece).save_pretrained(teacher)
    SentenceFormat("mean", 40).write(teacher, 32)
    student = run_small(
        "distill/sentence-encoder.yaml", workspace, tmp_path / "student", tokenizer=str(teacher), teacher=str(teacher)
    )
    config = json.loads((student / "config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == (["BertModel"], 3)
    assert read_sentence_format(str(student)) == SentenceFormat("mean", 40)


def test_a_headless_network_is_adapted_and_gets_a_head(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    AutoModel.from_pretrained(workspace.bert_teacher).save_pretrained(folder)
    load_tokenizer(workspace.bert_teacher).save_pretrained(folder)
    settings = {"tokenizer": str(folder), "network__name_or_path": str(folder), "more": ["--data.max_length", "48"]}
    adapted = run_small("pretrain/adapt.yaml", workspace, tmp_path / "adapted", **settings)
    assert json.loads((adapted / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_the_small_modernbert_its_second_phase_and_its_half_run(workspace: Workspace, tmp_path: Path) -> None:
    first = run_small("pretrain/modernbert-small.yaml", workspace, tmp_path / "first")
    sizes = logged(tmp_path / "first" / "run", "train/tokens_per_step")
    rope = content_of("pretrain/modernbert-long.yaml")["model"]["init_args"]["network"]["init_args"]["config"]
    longer = json.dumps({**rope, "max_position_embeddings": 256})
    more = ["--model.network", "lit_distil.models.Pretrained", "--model.network.name_or_path", str(first)]
    more += ["--model.network.config", longer, "--data.max_length", "256", "--data.batch_tokens", "1024"]
    more += ["--data.masking.rate", "0.05", "--model.schedule.warmup", "0"]
    second = run_small("pretrain/modernbert-small.yaml", workspace, tmp_path / "second", more=more)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (first, second))
    bases = [
        [one["rope_parameters"][kind]["rope_theta"] for one in (before, after)] for kind in rope["rope_parameters"]
    ]
    assert bases == [[10_000, 160_000], [10_000, 10_000]] and after["max_position_embeddings"] == 256
    half = run_small(
        "distill/modernbert-half-small.yaml", workspace, tmp_path / "half", tokenizer=str(second), teacher=str(second)
    )
    student = json.loads((half / "config.json").read_text())
    assert student["layer_types"] == after["layer_types"][:3] == ["full_attention", *["sliding_attention"] * 2]
    assert logged(tmp_path / "half" / "run", "train/loss/relations") and sizes


def test_the_stages_of_the_demo_run_one_after_the_other(workspace: Workspace, tmp_path: Path) -> None:
    teacher = run_small("demo/teacher.yaml", workspace, tmp_path / "teacher")
    student = run_small(
        "demo/student.yaml", workspace, tmp_path / "student", tokenizer=str(teacher), teacher=str(teacher)
    )
    assert json.loads((student / "config.json").read_text())["num_hidden_layers"] == 3
    run_small("demo/task.yaml", workspace, tmp_path / "task", network__name_or_path=str(student))
    unpretrained = ["--config", str(CONFIGS / "demo/unpretrained.yaml")]
    fresh = run_small("demo/task.yaml", workspace, tmp_path / "fresh", more=unpretrained)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (student, fresh))
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert theirs[field] == ours[field], f"{field}: the control is not of the student's size"


def test_a_finetuned_network_teaches_half_of_its_layers(workspace: Workspace, tmp_path: Path) -> None:
    teacher = run_small("demo/task.yaml", workspace, tmp_path / "task", network__name_or_path=workspace.teacher)
    short = ["--data.max_length", "48"]  # what the tiny teacher has positions for
    student = run_small(
        "distill/own-files-task.yaml", workspace, tmp_path / "student", teacher=str(teacher), more=short
    )
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (teacher, student))
    assert ours["id2label"] == theirs["id2label"] and ours["architectures"] == theirs["architectures"]
    assert 2 * ours["num_hidden_layers"] == theirs["num_hidden_layers"]
    for term in ("soft", "task"):
        assert len(logged(tmp_path / "student" / "run", f"train/loss/{term}")) == 2


def test_finetuning_on_own_files_runs_as_the_file_says(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its relative paths are where a user puts the files."""
    folder = tmp_path / "data"
    folder.mkdir()
    for ours, theirs in (("train", "train"), ("validation", "validation"), ("test", "test"), ("predict", "unlabelled")):
        (folder / f"{theirs}.jsonl").write_text((workspace.root / f"{ours}.jsonl").read_text())
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(CONFIGS / "finetune/own-files.yaml"), "--trainer.max_epochs", "1"]
    arguments += ["--model.network.name_or_path", workspace.teacher, "--data.tokenizer", workspace.byte_bpe]
    arguments += ["--data.max_length", "48", "--trainer.accelerator", "cpu", "--data.batch_size", "16"]
    with kept_environment():
        run_command(arguments)
    assert (tmp_path / "runs/own-files/export/config.json").is_file()


def test_debug_overlay_trains_and_validates(workspace: Workspace, tmp_path: Path) -> None:
    config = write_config(
        {**workspace.pretraining(), "trainer": {"default_root_dir": str(tmp_path)}}, tmp_path / "c.yaml"
    )
    with kept_environment():
        run_command(["fit", "--config", config, "--config", str(CONFIGS / "trainer/debug.yaml")])
    assert len(logged(tmp_path, "train/loss")) == 4
    assert len(logged(tmp_path, "val/loss")) == 2


def test_a_mixture_of_text_cut_into_sentences_runs(workspace: Workspace, tmp_path: Path) -> None:
    """The source of the tables of data, over text that is here."""
    source = workspace.text_data()["init_args"]["source"]
    cut = {"class_path": "lit_distil.data.Sentences", "init_args": {"source": source, "language": "en"}}
    mixture = {
        "class_path": "lit_distil.data.Mixture",
        "init_args": {"sources": {"plain": source, "cut": cut}, "weights": {"cut": 2}, "shares": {"plain": 0.5}},
    }
    mixed = {"data": {"init_args": {"source": mixture, "cache_dir": str(tmp_path / "cache")}}}
    config = {**workspace.pretraining(), "trainer": {"default_root_dir": str(tmp_path / "run"), "max_steps": 2}}
    files = [write_config(config, tmp_path / "c.yaml"), write_config(mixed, tmp_path / "mixed.yaml")]
    arguments = [argument for file in files for argument in ("--config", file)]
    with kept_environment():
        run_command(["fit", *arguments, "--config", str(CONFIGS / "trainer/debug.yaml"), "--trainer.max_steps", "2"])
    assert len(logged(tmp_path / "run", "train/loss")) == 2


# What a laptop's twin may change, and nothing else

SIZE = {
    "model.network.config.hidden_size",
    "model.network.config.num_hidden_layers",
    "model.network.config.num_attention_heads",
    "model.network.config.intermediate_size",
    "model.student.layers",
    "data.max_length",
    "data.batch_size",
    "data.eval_batch_size",
    "data.max_eval_sequences",
    "data.masking.max_predictions",  # follows from max_length
}
STEPS = {"trainer.max_steps", "trainer.max_epochs", "trainer.log_every_n_steps", "trainer.val_check_interval"}
PATHS = {"data.tokenizer", "model.teacher", "trainer.default_root_dir"}
HARDWARE = {
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "data.num_workers",
}


@pytest.mark.parametrize("name", ["pretrain/bert", "pretrain/roberta", "distill/distilbert", "distill/distilroberta"])
def test_small_twin_differs_in_size_steps_paths_and_hardware_only(name: str) -> None:
    """A recipe that drifts from its twin would no longer be that paper's recipe."""
    full, small = flat(content_of(f"{name}.yaml")), flat(content_of(f"{name}-small.yaml"))
    missing = object()
    different = {key for key in full | small if full.get(key, missing) != small.get(key, missing)}
    different = {key for key in different if not key.startswith("data.source")}
    assert different <= SIZE | STEPS | PATHS | HARDWARE, different - (SIZE | STEPS | PATHS | HARDWARE)
    assert {"data.max_length", "data.batch_size", "trainer.precision"} <= different


# The papers' numbers

PAPERS: dict[str, dict[str, Any]] = {
    # Devlin et al. 2019: section 3 (BASE), appendix A.2; optimizer, copies and the 77 predictions: the authors' code
    "pretrain/bert.yaml": {
        "model.network.config.hidden_size": 768,
        "model.network.config.num_hidden_layers": 12,
        "model.network.config.num_attention_heads": 12,
        "model.network.config.intermediate_size": 3072,
        "model.network.config.max_position_embeddings": 512,
        "model.optimizer.class_path": "lit_distil.optim.BertAdam",
        "model.optimizer.lr": 1e-4,
        "model.optimizer.betas": [0.9, 0.999],
        "model.optimizer.eps": 1e-6,
        "model.optimizer.weight_decay": 0.01,
        "model.schedule.class_path": "lit_distil.optim.LinearSchedule",
        "model.schedule.warmup": 10_000 / 1_000_000,
        "model.schedule.decay_from_start": True,
        "data.format.class_path": "lit_distil.data.SegmentPair",
        "data.format.short_seq_prob": 0.1,
        "data.format.copies": 10,
        "data.masking.class_path": "lit_distil.data.TokenMasking",
        "data.masking.rate": 0.15,
        "data.masking.patterns": 1,
        "data.max_length": 512,
        "data.batch_size": 256,
        "trainer.max_steps": 1_000_000,
        "trainer.gradient_clip_val": 1.0,
    },
    # Liu et al. 2019: sections 3.1 and 4, table 9 (BASE); positions and eps: the released model
    "pretrain/roberta.yaml": {
        "model.network.config.hidden_size": 768,
        "model.network.config.num_hidden_layers": 12,
        "model.network.config.num_attention_heads": 12,
        "model.network.config.intermediate_size": 3072,
        "model.network.config.max_position_embeddings": 514,
        "model.network.config.type_vocab_size": 1,
        "model.network.config.layer_norm_eps": 1e-5,
        "model.optimizer.lr": 6e-4,
        "model.optimizer.betas": [0.9, 0.98],
        "model.optimizer.eps": 1e-6,
        "model.optimizer.weight_decay": 0.01,
        "model.schedule.class_path": "lit_distil.optim.LinearSchedule",
        "model.schedule.warmup": 24_000 / 500_000,
        "data.format": "lit_distil.data.FullSentences",
        "data.masking.class_path": "lit_distil.data.TokenMasking",
        "data.masking.rate": 0.15,
        "data.max_length": 512,
        "data.batch_size": 8192,
        "trainer.max_steps": 500_000,
        "trainer.gradient_clip_val": None,
    },
    # Sanh et al. 2019: section 3; weights, rates and clipping: the authors' training code
    "distill/distilbert.yaml": {
        "model.student.class_path": "lit_distil.models.DistilBertFromBert",
        "model.student.layers": [0, 2, 4, 7, 9, 11],
        "model.objectives.soft.weight": 5.0,
        "model.objectives.soft.temperature": 2.0,
        "model.objectives.soft.positions": "all",
        "model.objectives.masked_lm.weight": 2.0,
        "model.objectives.cosine.weight": 1.0,
        "model.objectives.cosine.positions": "all",
        "model.freeze_positions": True,
        "model.optimizer.lr": 5e-4,
        "model.optimizer.betas": [0.9, 0.98],
        "model.optimizer.eps": 1e-6,
        "model.optimizer.weight_decay": 0.0,
        "model.schedule.class_path": "lit_distil.optim.LinearSchedule",
        "model.schedule.warmup": 0.05,
        "data.masking.class_path": "lit_distil.data.FrequencyMasking",
        "data.masking.rate": 0.15,
        "data.masking.smoothing": 0.7,
        "data.max_length": 512,
        "data.batch_size": 4096,
        "trainer.max_epochs": 3,
        "trainer.gradient_clip_val": 5.0,
    },
}
# Warner et al. 2024, section 2.2; the rest: modernbert-base-pretrain.yaml of the authors
PAPERS["pretrain/modernbert.yaml"] = {
    "model.network.config.num_hidden_layers": 22,
    "model.network.config.hidden_size": 768,
    "model.network.config.intermediate_size": 1152,
    "model.network.config.local_attention": 128,
    "model.network.config.rope_parameters.full_attention.rope_theta": 10_000.0,
    "model.optimizer.class_path": "lit_distil.optim.StableAdamW",
    "model.optimizer.lr": 8e-4,
    "model.optimizer.betas": [0.9, 0.98],
    "model.optimizer.eps": 1e-6,
    "model.optimizer.weight_decay": 1e-5 / 8e-4,
    "data.masking.rate": 0.3,
    "data.max_length": 1024,
    "data.batch_tokens.start": 768 * 1024,
    "data.batch_tokens.end": 4608 * 1024,
    "trainer.gradient_clip_val": None,
}
PAPERS["pretrain/modernbert-long.yaml"] = {
    "model.network.config.rope_parameters.full_attention.rope_theta": 160_000.0,
    "model.network.config.rope_parameters.sliding_attention.rope_theta": 10_000.0,
    "model.optimizer.lr": 3e-4,
    "model.schedule.shape": "1-sqrt",
    "data.max_length": 8192,
}
PAPERS["distill/distilroberta.yaml"] = {
    **PAPERS["distill/distilbert.yaml"],
    "model.teacher": "FacebookAI/roberta-base",
    "model.student.class_path": "lit_distil.models.Layers",
}

# Sanh et al. 2019, table 2, the row with (D): the authors' code for SQuAD
PAPERS["distill/squad.yaml"] = {
    "model.objectives.soft.temperature": 2.0,
    "model.objectives.soft.weight": 0.5,
    "model.objectives.task.weight": 0.5,
    "model.optimizer.lr": 5e-5,
    "trainer.max_epochs": 3,
}


@pytest.mark.parametrize("name", PAPERS)
def test_recipe_has_the_papers_numbers(name: str) -> None:
    found = flat(content_of(name))
    assert {key: found[key] for key in PAPERS[name]} == PAPERS[name]


def test_static_masks_are_berts_and_dynamic_ones_robertas() -> None:
    """RoBERTa, section 4.1: the whole difference is whether patterns repeat."""
    assert "patterns" in content_of("pretrain/bert.yaml")["data"]["init_args"]["masking"]["init_args"]
    for name in ("pretrain/roberta.yaml", "distill/distilbert.yaml", "distill/distilroberta.yaml"):
        assert "patterns" not in content_of(name)["data"]["init_args"]["masking"]["init_args"]


def test_berts_copies_have_pairs_and_masks_of_their_own_that_stay(workspace: Workspace) -> None:
    """create_pretraining_data.py, dupe_factor: ten masks on pairs that were cut once would be another recipe."""
    recipe = content_of("pretrain/bert-small.yaml")["data"]["init_args"]
    text = {split: str(workspace.root / f"{split}.txt") for split in ("train", "validation")}
    data = TextDataModule(
        workspace.wordpiece,
        TextFiles(**text),
        format=SegmentPair(**recipe["format"]["init_args"]),
        masking=TokenMasking(**recipe["masking"]["init_args"]),
        max_length=48,
        cache_dir=str(workspace.root / "cache"),
        seed=3,
    )
    data.prepare_data()
    data.setup("fit")
    dataset = data.datasets["train"]
    samples = np.arange(len(dataset))
    first, second = (dataset.collate(samples, np.full_like(samples, epoch)) for epoch in (0, 1))
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.masked_labels, second.masked_labels)
    original = first.input_ids[0].clone()
    original[first.masked_positions] = first.masked_labels
    pairs = Counter(tuple(part.tolist()) for part in original.split(list(first.lengths)))
    masked = Counter(tuple(part.tolist()) for part in first.input_ids[0].split(list(first.lengths)))
    assert len(pairs) > 0.8 * len(dataset)  # cut once and masked ten times, each would be there ten times
    assert len(masked) > 0.95 * len(dataset) and len(dataset) > 300


def test_every_batch_size_divides_by_its_accumulation() -> None:
    for path in RECIPES:
        config = flat(content_of(path))
        size = config.get("data.batch_size", 0)  # those with a budget of tokens have none
        assert size % config.get("trainer.accumulate_grad_batches", 1) == 0, name_of(path)
        assert size > 0 or any(key.startswith("data.batch_tokens") for key in config), name_of(path)


def test_modernberts_phases_have_the_tokens_of_the_paper() -> None:
    """3B tokens of warm-up, 50B until the batch is full, 1.7T in all; then 250B and 50B of decay."""
    first, second = (content_of(f"pretrain/modernbert{name}.yaml") for name in ("", "-long"))
    ramp = LinearRamp(**first["data"]["init_args"]["batch_tokens"]["init_args"])
    places = np.arange(first["trainer"]["max_steps"])
    sizes = np.interp(places, [0, ramp.steps], [ramp.start, ramp.end])
    assert [sizes[step] for step in (0, 777, 20_000)] == pytest.approx([ramp.at(step) for step in (0, 777, 20_000)])
    tokens = np.cumsum(sizes) / 1e9
    warmup = first["model"]["init_args"]["schedule"]["init_args"]["warmup"]
    assert tokens[warmup - 1] == pytest.approx(3.0, rel=0.03)
    assert tokens[ramp.steps - 1] == pytest.approx(50, rel=0.02) and tokens[-1] == pytest.approx(1719, rel=0.01)
    step = second["data"]["init_args"]["batch_tokens"] / 1e9
    decay = second["model"]["init_args"]["schedule"]["init_args"]["decay"]
    assert step * decay == pytest.approx(50, rel=0.01)
    assert step * second["trainer"]["max_steps"] == pytest.approx(300, rel=0.01)
    until = second["data"]["init_args"]["masking"]["init_args"]["rate"]["init_args"]["until"]
    assert until == [second["trainer"]["max_steps"] - decay]  # the masks fall with the learning rate


def test_half_of_modernbert_keeps_its_pattern_of_global_layers() -> None:
    """And the block whose relations it learns is global, as the teacher's is."""
    recipe = content_of("distill/modernbert-half.yaml")["model"]["init_args"]
    teacher = AutoConfig.for_model("modernbert")
    layers = EveryOther().pick(teacher.num_hidden_layers)
    kinds = config_with(teacher, layers).layer_types
    assert recipe["student"] == "lit_distil.models.EveryOther" and len(kinds) == 11
    assert kinds == AutoConfig.for_model("modernbert", num_hidden_layers=11).layer_types
    relations = recipe["objectives"]["relations"]["init_args"]
    ends = kinds[relations["student_layer"] - 1], teacher.layer_types[relations["teacher_layer"] - 1]
    assert set(ends) == {"full_attention"} and teacher.hidden_size % relations["relation_heads"] == 0
