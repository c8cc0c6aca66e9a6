"""The notebooks run from the first cell to the last, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from transformers import AutoConfig, AutoModelForMaskedLM, RobertaTokenizer

from lit_distil.commands.claims.verdicts import load_claim, read_results

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOFT_TARGETS = FOLDER / "01_soft_targets.ipynb"
SENTENCES = [
    "Returns a new tensor with the same shape as the input.",
    "If the argument is not given, the default value is None.",
    "The number of elements in the output.",
]


def test_there_are_notebooks() -> None:
    assert SOFT_TARGETS in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 0
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.slow
def test_soft_targets_trains_its_own_pair_if_there_are_no_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_DISTIL_DEMO", str(tmp_path / "nothing"))
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed, num_figures = execute(SOFT_TARGETS, tmp_path, "TEACHER_STEPS, STUDENT_STEPS = 20, 10")
    assert "training a small pair" in printed
    assert printed.count("layers: 2") == 1
    assert printed.count("layers: 1") == 1
    assert num_figures == 3
    assert len(list(tmp_path.glob("soft-targets-*/student-soft/export/config.json"))) == 1


@pytest.mark.slow
def test_soft_targets_opens_the_exports_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "demo/teacher/export", layers=4)
    export(tmp_path / "demo/student-soft/export", layers=3)
    monkeypatch.setenv("LIT_DISTIL_DEMO", str(tmp_path / "demo"))
    printed, num_figures = execute(SOFT_TARGETS, tmp_path)
    assert "training" not in printed
    assert printed.count("layers: 4") == 1
    assert printed.count("layers: 3") == 1
    assert num_figures == 3
    lines = printed.splitlines()
    kl = next(float(line.split(":")[1]) for line in lines if line.startswith("soft_target_kl with a one-hot teacher"))
    hard = next(float(line.split(":")[1]) for line in lines if line.startswith("cross-entropy on the hard labels"))
    assert kl == pytest.approx(hard, abs=1e-8)
    assert kl > 0


@pytest.mark.slow
def test_masks_and_formats_shows_what_it_says(tmp_path: Path) -> None:
    printed, _ = execute(FOLDER / "02_masks_and_formats.ipynb", tmp_path)
    assert printed.count(" sequences\n") == 4
    assert "different masks in four epochs: dynamic 4, static 2" in printed


@pytest.mark.slow
def test_build_and_distil_makes_two_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    printed, _ = execute(FOLDER / "03_build_and_distil.ipynb", tmp_path, "TEACHER_STEPS, STUDENT_STEPS = 20, 10")
    assert "teacher: layers: 2" in printed and printed.count("layers: 1") == 2


def test_read_a_claim_comes_to_the_commands_verdict(tmp_path: Path) -> None:
    """Of made-up runs, three a seed: what the notebook works out by hand is what `lit-distil claims` says."""
    claim = load_claim(FOLDER.parent / "configs/claims/soft-targets")
    (tmp_path / claim.name).mkdir()
    losses = {"none": (3.40, 3.45, 3.41), "soft": (3.10, 3.12, 3.13), "hard": (3.20, 3.12, 3.10)}
    for arm, values in losses.items():
        for seed, value in enumerate(values, start=1):
            about = {"claim": claim.name, "arm": arm, "seed": seed, "recipe": claim.arms[arm].recipe}
            content = {**about, "metrics": {claim.metric: value}}
            (tmp_path / claim.name / f"{arm}-seed-{seed}.json").write_text(json.dumps(content))
    parameters = f'CONFIGS, RESULTS, CLAIM = Path("{FOLDER.parent}/configs/claims"), Path("{tmp_path}"), "{claim.name}"'
    printed, num_figures = execute(FOLDER / "04_read_a_claim.ipynb", tmp_path, parameters)
    assert "9 runs of 3 arms" in printed and num_figures == 1
    first, second, third = read_results(claim, tmp_path).estimates
    assert (first.verdict, second.verdict, third.verdict) == ("holds", "undecided at this size", "not run")
    for effect, one in zip(claim.effects, (first, second), strict=False):
        assert f"{effect.label}: {one.mean:+.4g} ± {one.half:.2g}, margin 0.03: {one.verdict}\n" in printed


def execute(path: Path, folder: Path, parameters: str = "") -> tuple[str, int]:
    """Run a copy in `folder`, with `parameters` after its first code cell; return its output and number of figures."""
    notebook = nbformat.read(path, as_version=4)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(parameters))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def export(folder: Path, *, layers: int) -> None:
    """Write an export: a random network, and a tokenizer that knows the notebook's words."""
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    blank = RobertaTokenizer(vocab=specials, merges=[], model_max_length=64)
    tokenizer = blank.train_new_from_iterator([SENTENCES], vocab_size=400, show_progress=False, min_frequency=1)
    torch.manual_seed(layers)
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=66,
        initializer_range=0.2,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
