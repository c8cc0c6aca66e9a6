from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForMaskedLM

from lit_distil.commands.benchmark import command, latency
from lit_distil.commands.benchmark.latency import Quartiles, TimedNetwork, measure_networks
from tests.commands.examples import Machine, finished_run, make_tokenizer

WARM_UP_SECONDS = latency._WARM_UP_SECONDS


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("networks"), make_tokenizer()
    finished_run(root / "deep", tokenizer, seed=0, layers=2)
    finished_run(root / "shallow", tokenizer, seed=0, layers=1)
    return [str(root / name / "export") for name in ("deep", "shallow")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two calls warm a network up; the test of the warm-up sets the real time."""
    monkeypatch.setattr(latency, "_WARM_UP_SECONDS", 0.0)


def measured_on(machine, networks, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(latency, "_WARM_UP_SECONDS", WARM_UP_SECONDS)
        patch.setattr(latency, "open_timed", machine.open)
        patch.setattr(latency, "perf_counter", lambda: machine.now)
        return measure_networks(networks, length=8, batch_size=4, repeats=10)


def test_a_networks_time_does_not_depend_on_which_ones_stand_beside_it(networks, monkeypatch):
    """A small network beside a large one was measured cold: 1.26 ms for 0.74."""
    large, small = networks
    milliseconds = {small: 0.74, large: 0.74 * 16}
    alone = measured_on(Machine(milliseconds), [small], monkeypatch)[0]
    for order in ([large, small], [small, large]):
        results = {one.network: one for one in measured_on(Machine(milliseconds), order, monkeypatch)}
        beside = results[small]
        for found in (alone.latency_ms, beside.latency_ms):
            assert found.lower == pytest.approx(0.74) and found.upper == pytest.approx(0.74)
        assert beside.sequences_per_second == pytest.approx(alone.sequences_per_second) == pytest.approx(1000 / 0.74)
        ratio = results[large].latency_ms.median / beside.latency_ms.median
        assert ratio == pytest.approx(16) and results[large].latency_ms.upper == pytest.approx(0.74 * 16)


def test_counts_and_sizes_are_those_of_the_files(networks):
    results = measure_networks(networks, length=8, batch_size=2, repeats=3)
    for folder, result in zip(networks, results, strict=True):
        model = AutoModelForMaskedLM.from_pretrained(folder)
        unique = {parameter.data_ptr(): parameter.numel() for parameter in model.parameters()}
        assert result.network == folder
        assert result.parameters == sum(unique.values()) == model.num_parameters()
        assert result.encoder_parameters == model.roberta.num_parameters() < result.parameters
        assert result.size_mb * 1e6 == os.path.getsize(f"{folder}/model.safetensors")
    one_layer = sum(
        p.numel() for p in AutoModelForMaskedLM.from_pretrained(networks[0]).roberta.encoder.layer[0].parameters()
    )
    assert results[0].parameters - results[1].parameters == one_layer


def test_derived_rates_follow_from_the_times_and_ratios_are_to_the_first(networks):
    first, second = measure_networks(networks, length=8, batch_size=4, repeats=5)
    assert first.latency_ratio == first.throughput_ratio == 1
    assert second.latency_ratio == pytest.approx(second.latency_ms.median / first.latency_ms.median)
    for result in (first, second):
        assert 0 < result.latency_ms.lower <= result.latency_ms.median <= result.latency_ms.upper
        assert result.sequences_per_second == pytest.approx(4 / (result.batch_ms.median / 1000))
        assert result.tokens_per_second == pytest.approx(8 * result.sequences_per_second)


def test_a_network_is_timed_on_its_own_and_the_networks_take_turns(networks, monkeypatch):
    calls = []

    def fake_open(name, *, length, device, threads):
        def encoder(input_ids, attention_mask):
            assert torch.is_inference_mode_enabled()
            assert torch.get_num_threads() == threads == 1
            calls.append((name, tuple(input_ids.shape)))

        return TimedNetwork(encoder, encoder, 2, 1, vocab_size=9, max_length=None, has_segments=False)

    monkeypatch.setattr(latency, "open_timed", fake_open)
    measure_networks(networks, length=8, batch_size=4, repeats=9)
    # five blocks of latency and three of throughput, two calls of warm-up before each
    blocks = [[2 + size] * 2 for size in (2, 2, 2, 2, 1)] + [[2 + 1] * 2] * 3
    expected = [name for sizes in blocks for name, size in zip(networks, sizes, strict=True) for _ in range(size)]
    assert [name for name, _ in calls] == expected
    assert [shape for _, shape in calls] == [(1, 8)] * 2 * (5 * 2 + 9) + [(4, 8)] * 2 * (3 * 2 + 3)


def test_quartiles_are_those_of_the_values():
    assert Quartiles.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(median=3.0, lower=2.0, upper=4.0)


def test_threads_are_set_back(networks):
    before = torch.get_num_threads()
    measure_networks(networks[:1], length=4, batch_size=1, repeats=1, threads=before + 1)
    assert torch.get_num_threads() == before


def test_the_command_prints_an_aligned_row_for_every_network(networks, capsys):
    command.run(["--networks", str(networks), "--length", "8", "--batch_size", "2", "--repeats", "2"])
    lines = capsys.readouterr().out.rstrip().split("\n")
    assert [line.split()[0] for line in lines[2:]] == networks
    assert len({len(line) for line in lines[1:]}) == 1


def test_messages_name_what_is_wrong(networks, tmp_path):
    with pytest.raises(ValueError, match=r"could not be loaded.*a run exported"):
        measure_networks([str(tmp_path)])
    with pytest.raises(ValueError, match=r"length 65 does not fit .*room for 64 tokens"):
        measure_networks(networks, length=65)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure_networks(networks, repeats=0)
    with pytest.raises(ValueError, match="at least one folder"):
        measure_networks([])
