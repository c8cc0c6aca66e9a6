from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_distil.commands.benchmark import command, latency
from lit_distil.commands.benchmark.command import read_pairs
from lit_distil.commands.benchmark.latency import peak_memory_mb, time_texts
from lit_distil.data import TableFiles
from tests.commands.examples import Machine, finished_run, make_tokenizer

WARM_UP_SECONDS = latency._WARM_UP_SECONDS
PAIRS = [("the cat sat", "a dog ran"), ("birds fly in the sky", "the fish swims"), ("a", "b")]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root, tokenizer = tmp_path_factory.mktemp("networks"), make_tokenizer()
    finished_run(root / "deep", tokenizer, seed=0, layers=2, classifies=True)
    finished_run(root / "shallow", tokenizer, seed=0, layers=1, classifies=True)
    return [str(root / name / "export") for name in ("deep", "shallow")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls warm a network up."""
    monkeypatch.setattr(latency, "_WARM_UP_SECONDS", 0.0)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"first": a, "second": b, "label": 1}) + "\n" for a, b in PAIRS))
    return str(file)


def test_what_was_measured_is_written_beside_the_published_figures(
    networks: list[str], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--networks", str(networks), "--texts", rows, "--text_column", "first", "--pair_column", "second"]
    arguments += ["--length", "8", "--batch_size", "2", "--repeats", "2", "--rounds", "4", "--part", "whole"]
    command.run([*arguments, "--memory", "false", "--out", str(tmp_path / "out")])
    numbers = json.loads((tmp_path / "out/latency.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(networks[0])
    num_tokens = sum(len(tokenizer(*pair)["input_ids"]) for pair in PAIRS)
    passes = [row["texts"] for row in numbers["results"]]
    assert numbers["settings"]["num_texts"] == 3 and [row["num_tokens"] for row in passes] == [num_tokens] * 2
    for row in passes:
        seconds, text = row["seconds"], row["text_ms"]
        assert 0 < seconds["lower"] <= seconds["median"] <= seconds["upper"]
        # a pass is three texts
        assert text["lower"] * 3 / 1000 <= seconds["upper"]
    assert [row["network"] for row in numbers["results"]] == networks
    assert numbers["published"]["DistilBERT"] == {"parameters_m": 66, "seconds": 410}
    text = (tmp_path / "out/latency.md").read_text()
    assert text.strip() in capsys.readouterr().out
    first, second = (row["seconds"]["median"] for row in passes)
    ours = [line for line in text.splitlines() if "measured here" in line]
    assert [line.split("|")[5].strip() for line in ours] == ["1.00", f"{second / first:.2f}"]
    assert "BERT-base, published" in text and "668" in text and "table 3" in text
    assert all(row["peak_memory_mb"] is None for row in numbers["results"]) and "peak memory" not in text


def test_a_pass_does_not_depend_on_which_networks_stand_beside_it(
    networks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = networks
    found = {}
    for names in ([small], [small, large], [large, small]):
        machine = Machine({small: 0.74, large: 0.74 * 16})
        with monkeypatch.context() as patch:
            patch.setattr(latency, "_WARM_UP_SECONDS", WARM_UP_SECONDS)
            patch.setattr(latency, "open_timed", machine.open)
            patch.setattr(latency, "perf_counter", lambda machine=machine: machine.now)
            times = time_texts(names, PAIRS, rounds=3, threads=1, device="cpu", part="encoder")
        found[tuple(names)] = dict(zip(names, times, strict=True))
    for times_of in found.values():
        assert times_of[small].text_ms.upper == pytest.approx(0.74)
        assert times_of[small].seconds.median == pytest.approx(len(PAIRS) * 0.74 / 1000)
    assert found[large, small][large].text_ms.lower == pytest.approx(0.74 * 16)


def test_networks_take_turns_a_pass_each(networks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = latency.timed

    def spy(call, inputs):
        order.append((id(call), inputs["input_ids"].shape[1]))
        return real(call, inputs)

    monkeypatch.setattr(latency, "timed", spy)
    found = time_texts(networks, PAIRS, rounds=2, threads=1, device="cpu", part="encoder")
    size = 2 + len(PAIRS)  # the warm-up is the first two texts
    passes = [order[start : start + size] for start in range(0, len(order), size)]
    assert len(found) == 2 and [len(one) for one in passes] == [size] * 4
    first, second = passes[0][0][0], passes[1][0][0]
    assert first != second
    assert [{who for who, _ in one} for one in passes] == [{first}, {second}] * 2
    lengths = [[length for _, length in one] for one in passes]
    assert lengths == [lengths[0]] * 4 and lengths[0][:2] == lengths[0][2:4] and len(set(lengths[0])) == 3


@pytest.mark.slow
def test_peak_memory_is_of_a_process_of_its_own_and_grows_with_the_batch(networks: list[str]) -> None:
    small, large = (peak_memory_mb(networks[0], length=60, batch_size=size) for size in (1, 1024))
    # the feed-forward layer's activations alone are 60 x 32 x 1024 floats
    assert 0 < small < large and large - small > 60 * 32 * 1024 * 4 / 1e6
    with pytest.raises(ValueError, match=r"measuring '/absent' failed \(.*no folder '/absent'.*--memory false"):
        peak_memory_mb("/absent", length=4, batch_size=1)


def test_any_source_of_rows_will_do_and_mistakes_are_named(networks: list[str], rows: str) -> None:
    source = TableFiles(test=rows)
    assert read_pairs(None, source, "test", "first", None, 2) == [(a, None) for a, _ in PAIRS[:2]]
    assert read_pairs(None, None, "validation", "text", None, None) is None
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no column 'text' .*there are \['first', 'label', 'second'\]"):
        read_pairs(rows, None, "validation", "text", None, None)
    with pytest.raises(ValueError, match="a file or a source, not both"):
        read_pairs(rows, source, "validation", "first", None, None)
    with pytest.raises(ValueError, match="max_texts must be at least 1, got 0"):
        read_pairs(rows, None, "validation", "first", None, 0)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        time_texts(networks, PAIRS, rounds=0, threads=1, device="cpu", part="encoder")
    with pytest.raises(ValueError, match="part must be 'encoder' or 'whole', got 'head'"):
        time_texts(networks, PAIRS, rounds=1, threads=1, device="cpu", part="head")
