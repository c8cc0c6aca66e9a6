from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lit_distil.commands import fill_mask
from lit_distil.commands.networks import MaskedLM, open_masked_lm
from tests.commands.examples import finished_run, make_tokenizer
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    root, tokenizer = tmp_path_factory.mktemp("runs"), make_tokenizer()
    finished_run(root / "teacher", tokenizer, seed=0, layers=2)
    finished_run(root / "student", tokenizer, seed=1, layers=1)
    finished_run(root / "classifier", tokenizer, seed=2, classifies=True)
    return [str(root / name / "export") for name in ("teacher", "student", "classifier")]


def padded_logits(folder: str, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of plain transformers on a padded batch, and where the masks are."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits
    return logits, inputs["input_ids"] == tokenizer.mask_token_id


def check_against_transformers(model: MaskedLM, folder: str, written: list[str], given: list[str]) -> None:
    logits, masks = padded_logits(folder, written)
    found = fill_mask.fill(model, given, places=given, top=4)
    num_masks = 0
    for row, fillings in enumerate(found):
        positions = masks[row].nonzero()[:, 0].tolist()
        assert len(fillings) == len(positions) > 0
        for position, filling in zip(positions, fillings, strict=True):
            expected = logits[row, position].softmax(-1).sort(descending=True)
            assert filling.probabilities == pytest.approx(expected.values[:4].tolist(), abs=1e-5)
            best = model.tokenizer.decode([int(expected.indices[0])]).strip()
            is_shown_as_it_is = best and "\N{REPLACEMENT CHARACTER}" not in best
            assert not is_shown_as_it_is or filling.tokens[0].removeprefix("##") == best.removeprefix("##")
            num_masks += 1
    assert num_masks == 5


def test_fillings_equal_those_of_transformers_however_the_mask_is_written(
    runs: list[str], workspace: Workspace
) -> None:
    given = ["the [MASK] sat on the <mask>", "[MASK]", "a dog ran <mask> the hill [MASK] away"]
    roberta = [text.replace("[MASK]", "<mask>") for text in given]
    check_against_transformers(open_masked_lm(runs[0]), runs[0], roberta, given)
    bert = [text.replace("<mask>", "[MASK]") for text in given]
    check_against_transformers(open_masked_lm(workspace.bert_teacher), workspace.bert_teacher, bert, given)


def test_the_command_prints_a_table_for_every_mask(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("birds [MASK] in the <mask>\n\n")
    models = f"[{runs[0]},{runs[1]}]"
    fill_mask.run(["--model", models, "--top", "3", "--file", str(file), "the cat [MASK]"])
    out = capsys.readouterr().out
    tables = [block.splitlines() for block in out.split("\n\n")]
    assert "the cat [MASK]" in out and "birds [MASK] in the <mask>" in out
    headers = [line for table in tables for line in table if "teacher" in line]
    assert [line.split()[1:3] for line in headers] == [["mask", "|"], ["mask", "1"], ["mask", "2"]]
    assert all("student" in line for line in headers)
    rows = [line for line in out.splitlines() if line.startswith(("| 1 ", "| 2 ", "| 3 "))]
    assert len(rows) == 9


def test_messages_name_what_is_wrong(runs: list[str], tmp_path: Path) -> None:
    model = open_masked_lm(runs[0])
    with pytest.raises(ValueError, match=r"texts: 'the cat': no mask in it; write \[MASK\]"):
        fill_mask.fill_mask(runs[0], ["the cat"])
    with pytest.raises(ValueError, match=r"long: \d+ tokens, and .* takes 64; shorten it"):
        fill_mask.fill(model, ["<mask>" + " cat" * 80], places=["long"])
    with pytest.raises(ValueError, match="top must be between 1 and the"):
        fill_mask.fill(model, ["<mask>"], places=["x"], top=0)
    with pytest.raises(ValueError, match=r"RobertaForSequenceClassification, which has no masked-LM head"):
        fill_mask.fill_mask(runs[2], ["<mask>"])
    with pytest.raises(ValueError, match=r"texts: give at least one"):
        fill_mask.fill_mask(runs[0])
    with pytest.raises(ValueError, match=r"file: no file at"):
        fill_mask.fill_mask(runs[0], file=str(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match=r"could not be loaded.*a run exported"):
        fill_mask.fill_mask(str(tmp_path), ["<mask>"])
