"""Each fast piece can be taken away and put back, and the loss stays what it is."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

import pytest

from lit_distil.commands.pages import with_part
from lit_distil.models import attention, layout
from lit_distil.modules import base
from tests.workspace import REPOSITORY


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    module = importlib.import_module("ablation")
    monkeypatch.setattr(module, "prepare", lambda: None)
    monkeypatch.setattr(module, "MEMORY_ROUNDS", 0)
    return module


def test_every_piece_has_its_turn_with_the_same_loss_and_is_put_back(
    ablation: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ablation.overhead_arguments(tmp_path)
    monkeypatch.setitem(ablation.WORKS, "tiny", ("tiny", arguments, 2, 2))
    before = layout.MAX_WASTE, attention.PLAIN_PRODUCT_MAX_WIDTH, layout._Moved.apply, base.clips_by_plain_norm
    found = ablation.measure("tiny")
    assert set(found["seconds"]) == set(found["losses"]) == {"all", *ablation.PIECES}
    assert {name: len(seconds) for name, seconds in found["new"].items()} == {"rounded": 4, "as they are": 4}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["seconds"].values())
    assert found["losses"] == pytest.approx(dict.fromkeys(found["losses"], found["losses"]["all"]), rel=1e-5)
    after = layout.MAX_WASTE, attention.PLAIN_PRODUCT_MAX_WIDTH, layout._Moved.apply, base.clips_by_plain_norm
    assert after == before


def test_a_piece_that_changes_the_loss_is_refused(
    ablation: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ablation.WORKS, "tiny", ("tiny", ablation.overhead_arguments(tmp_path), 1, 1))

    def other_weights(module: Any) -> Any:
        module.network.model.bert.embeddings.word_embeddings.weight.data.mul_(3.0)
        return contextlib.nullcontext()

    monkeypatch.setattr(ablation, "PIECES", {"the weights": ("others", other_weights)})
    with pytest.raises(ValueError, match="without 'the weights' the loss is"):
        ablation.measure("tiny")


def test_the_overhead_is_of_fit_beside_a_bare_loop(ablation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "OVERHEAD_STEPS", 4)
    monkeypatch.setattr(ablation, "OVERHEAD_TURNS", 2)
    found = ablation.measure("overhead")
    assert len(found["fit"]) == 2 and len(found["bare"]) == 3
    assert min(found["fit"] + found["bare"]) > 0


def test_a_piece_is_worth_the_time_without_it(ablation: Any) -> None:
    seconds = {"all": [1.0, 2.0, 1.0], "fused AdamW": [1.5, 2.0, 1.25]}
    memory = {"kept": [1.0, 1.0], "given back": [1.0, 1.5]}
    results: dict[str, Any] = {"overhead": {"fit": [3e-3, 4e-3], "bare": [2e-3, 2e-3]}}
    results["small"] = {"tokens": 100, "seconds": seconds, "memory": memory}
    text = ablation.pages(results)
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if "|" in line}
    assert rows["fused AdamW"] == "1.25 (1.00 to 1.50)"
    assert rows["all pieces: tokens/s of a core"] == "100"
    assert rows["one pass over the vocabulary"] == "–"
    assert rows["freed memory kept by the process"] == "1.25 (1.00 to 1.50)"
    assert "The median of the turns' differences is 1.50 ms (1.00 to 2.00 over 2 turns)." in text


def test_the_documentation_shows_what_was_measured(ablation: Any) -> None:
    page, speed = ablation.PAGE.read_text(encoding="utf-8"), importlib.import_module("speed")
    assert with_part(page, "ablation", ablation.pages(speed.read_results()["ablation"])) == page
