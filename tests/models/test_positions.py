"""A longer table of positions: what fitted before is bitwise unchanged, and plain transformers loads the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lit_distil.models import MaskedLMNetwork, Pretrained
from lit_distil.models.positions import Positions, position_range, position_table
from tests.models.helpers import make_batch, make_model
from tests.workspace import Workspace, fit

OLD, NEW = 64, 150


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "electra"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network whose table has room for 64 tokens."""
    made = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(made)
    return str(made)


def table_of(model: Any) -> torch.Tensor:
    table, (first, _) = position_table(model), position_range(model)
    assert table is not None
    return table.weight.detach()[first:]


def test_a_tiled_network_is_bitwise_unchanged_up_to_the_old_length(folder: str) -> None:
    before, after = (
        MaskedLMNetwork(Pretrained(folder, positions=positions).build(None).eval())
        for positions in (None, Positions(NEW))
    )
    assert (before.max_length, after.max_length) == (OLD, NEW)
    batch = make_batch((OLD, 5, 9))
    with torch.no_grad():
        ours, theirs = (network(batch, rows="all", output_hidden_states=True) for network in (before, after))
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(one, other) for one, other in zip(ours.hidden_states, theirs.hidden_states, strict=True))
    rows = table_of(after.model)
    assert torch.equal(rows, table_of(before.model).repeat(3, 1)[:NEW])
    with pytest.raises(ValueError, match=f"has room for {NEW}"):
        after(make_batch((NEW + 1,)))


def test_an_interpolated_table_is_the_old_one_stretched(folder: str) -> None:
    old, new = (
        table_of(Pretrained(folder, positions=positions).build(None))
        for positions in (None, Positions(2 * OLD - 1, "interpolate"))
    )
    torch.testing.assert_close(new[::2], old)  # with twice the gaps, every second position is an old one
    torch.testing.assert_close(new[1::2], (old[1:] + old[:-1]) / 2)  # and the others lie halfway between


@pytest.mark.parametrize("how", ["tile", "interpolate"])
def test_transformers_loads_what_was_written(how: Any, folder: str, tmp_path: Path) -> None:
    network = MaskedLMNetwork(Pretrained(folder, positions={"length": NEW, "how": how}).build(None).eval())
    network.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.max_position_embeddings == NEW + (2 if loaded.config.model_type == "roberta" else 0)
    batch = make_batch((NEW,))
    with torch.no_grad():
        expected = network(batch, rows="all").logits
        found = loaded.eval()(batch.input_ids).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sketch_and_network_agree(folder: str) -> None:
    source = Pretrained(folder, positions=Positions(NEW))
    sketch, built = source.sketch(None), source.build(None)
    assert sketch is not None and position_range(sketch) == position_range(built) != (0, None)
    assert {name: value.shape for name, value in sketch.state_dict().items()} == {
        name: value.shape for name, value in built.state_dict().items()
    }


def test_what_cannot_be_longer_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"positions\.length: 63 tokens are fewer than the 64"):
        Pretrained(folder, positions=Positions(63)).sketch(None)
    make_model("modernbert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"positions: modernbert has no table .* rotary"):
        Pretrained(str(tmp_path), positions=Positions(100)).sketch(None)
    for wrong in ({"length": 0}, {"length": 2.5}, {"length": 9, "how": "copy"}):
        with pytest.raises(ValueError, match=r"positions\."):
            Pretrained(folder, positions=wrong)


def test_the_check_of_the_length_and_the_tokenizers_limit_follow(workspace: Workspace, tmp_path: Path) -> None:
    """The workspace's teacher has 64 positions, and its tokenizer says so."""
    assert AutoTokenizer.from_pretrained(workspace.teacher).model_max_length == 64
    config = workspace.pretraining(network={"class_path": "lit_distil.models.Pretrained"})
    config["model"]["init_args"]["network"]["init_args"] = {"name_or_path": workspace.teacher}
    config["data"]["init_args"].update(max_length=100, format="lit_distil.data.FullSentences")
    with pytest.raises(ValueError, match=r"data\.max_length: 100 tokens are more .* which are 64"):
        fit(config, tmp_path / "short")
    config["model"]["init_args"]["network"]["init_args"]["positions"] = {"length": 128, "how": "tile"}
    export = fit(config, tmp_path / "long") / "export"
    assert AutoTokenizer.from_pretrained(export).model_max_length == 128
    assert AutoModelForMaskedLM.from_pretrained(export).config.max_position_embeddings == 130
    assert AutoTokenizer.from_pretrained(workspace.teacher).model_max_length == 64
