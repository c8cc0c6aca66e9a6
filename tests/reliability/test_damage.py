"""A flipped bit in a checkpoint, a shard or a teacher's cache is found before what it belongs to is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_distil.callbacks import WholeCheckpoints
from lit_distil.data import EvalLoader, TextFiles, TokenCorpus, load_tokenizer
from lit_distil.data.corpus.preparation import prepare_corpus
from tests.modules.caches import make_module, write_cache
from tests.modules.test_cached_teacher import open_cache
from tests.reliability.harness import cpu_seconds, record, run_configuration
from tests.workspace import Workspace, fit


def flip_bits(files: list[Path], load: Callable[[Path], Any], num_flips: int, seed: str) -> list[str]:
    """Flip one bit after another at random places; returns the flips that loading does not notice."""
    draw, missed = random.Random(seed), []
    for _ in range(num_flips):
        file = draw.choice(files)
        place, bit = draw.randrange(file.stat().st_size), draw.randrange(8)
        with file.open("r+b") as stream:
            stream.seek(place)
            (before,) = stream.read(1)
            stream.seek(place)
            stream.write(bytes([before ^ 1 << bit]))
            stream.flush()
            try:
                load(file)
                missed.append(f"{file.name}, byte {place}, bit {bit}")
            except ValueError as error:
                if "damaged" not in str(error):
                    raise
            stream.seek(place)
            stream.write(bytes([before]))
    load(files[0])  # all is as it was
    return missed


def flips(workspace: Workspace, folder: Path, kind: str, num_flips: int) -> None:
    start = cpu_seconds()
    if kind == "checkpoint":
        run = fit(run_configuration(workspace, "pretraining", 0), folder / "run", limit_val_batches=0)
        files = [run / "checkpoints" / "step-2.ckpt"]

        def load(file: Path) -> None:
            WholeCheckpoints().load_checkpoint(file, weights_only=True)

    elif kind == "shard":
        source, tokenizer = TextFiles(f"{workspace.root}/train.txt"), load_tokenizer(workspace.byte_bpe)
        settings: dict[str, Any] = {"shard_characters": 4000, "num_processes": 1, "progress": False}
        prepare_corpus(source, "train", tokenizer, folder / "corpus", **settings)
        files = [*sorted((folder / "corpus").glob("*.bin")), folder / "corpus" / "token_counts.npy"]
        assert len(files) > 2

        def load(file: Path) -> None:
            TokenCorpus.load(file.parent, verify=True)

    else:
        write_cache(workspace, folder / "cache", module=make_module(workspace), k=8, scores="float16")
        files = [folder / "cache" / "validation" / f"{name}.npy" for name in ("ids", "scores", "rests", "sums")]

        def load(file: Path) -> None:
            cached, data = open_cache(workspace, folder / "cache")
            for batch in EvalLoader(data.datasets["validation"], batch_size=8):
                cached(batch, "validation", batch.masked_positions)

    missed = flip_bits(files, load, num_flips, f"flips {kind}")
    record("bit-flips", kind, start, cases=num_flips, missed=len(missed))
    assert not missed, missed


@pytest.mark.parametrize("kind", ["checkpoint", "shard"])
def test_a_flipped_bit_is_found(kind: str, workspace: Workspace, tmp_path: Path) -> None:
    flips(workspace, tmp_path, kind, 20)


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize(("kind", "num_flips"), [("checkpoint", 1000), ("shard", 900), ("cache", 100)])
def test_flipped_bits_are_found(kind: str, num_flips: int, workspace: Workspace, tmp_path: Path) -> None:
    flips(workspace, tmp_path, kind, num_flips)
