"""Work in several processes gives its results in order on every backend."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_distil.commands.prepare import run
from lit_distil.data.corpus.engine import results_in_order, workers
from tests.commands.examples import make_tokenizer
from tests.data.corpus.work import make_imports, make_square
from tests.workspace import environment


def squares(numbers: range | Iterator[int], settings: str = "") -> Iterator[tuple[int, int]]:
    for _, (square, size, pid) in results_in_order(make_square, settings, ((n, n) for n in numbers)):
        assert size == len(settings)
        yield square, pid


def test_results_come_in_order_and_from_other_processes_only_inside_a_block() -> None:
    alone = list(squares(range(300)))
    with workers(2):
        several = list(squares(range(300), "x" * 200_000))
        few = list(squares(range(3)))
    assert [square for square, _ in alone] == [square for square, _ in several] == [n * n for n in range(300)]
    assert {pid for _, pid in alone} == {pid for _, pid in few} == {os.getpid()}
    assert len({pid for _, pid in several}) == 2 and os.getpid() not in {pid for _, pid in several}


def test_items_may_come_from_another_call_that_is_still_working() -> None:
    with workers(2):
        inner = (square for square, _ in squares(range(200), "inner"))
        assert [square for square, _ in squares(inner, "outer")] == [n**4 for n in range(200)]


def test_items_are_read_at_most_two_rounds_ahead() -> None:
    numbers = iter(range(10_000))
    with workers(2):
        results = squares(numbers)
        for _ in range(10):
            next(results)
        assert next(numbers) < 200
        results.close()  # type: ignore[attr-defined]


def test_an_error_while_reading_items_reaches_the_caller() -> None:
    def numbers() -> Iterator[int]:
        yield from range(100)
        raise OSError("the disk went away")

    with workers(2), pytest.raises(OSError, match="the disk went away"):
        list(squares(numbers()))


def test_worker_processes_import_no_heavy_library() -> None:
    with workers(2):
        found = list(results_in_order(make_imports, "", ((n, n) for n in range(10))))
    assert [names for _, names in found] == [[]] * 10


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie has ended
    except OSError:
        return False


def test_worker_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = """
import sys
from lit_distil.data.corpus.engine import results_in_order, workers
from tests.data.corpus.work import make_square

with workers(2):
    for _, (_, _, pid) in results_in_order(make_square, "", ((n, n) for n in range(10**9))):
        print(pid, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    pids = {int(process.stdout.readline()) for _ in range(40)}
    process.kill()
    process.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rng = random.Random(0)
    words = ["Dr. Who", "came.", "He", "saw 3.5 things!", "Nobody did?", "the layer", "learns", "from it."]
    documents = [
        "\n".join(" ".join(rng.choices(words, k=rng.choice([3, 20, 90]))) for _ in range(5)) for _ in range(90)
    ]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "prepare.yaml").write_text(
        f"""
        source:
          class_path: lit_distil.data.Sentences
          init_args:
            source: {{class_path: lit_distil.data.TextFiles, init_args: {{train: {tmp_path / "text.txt"}}}}}
            language: en
        tokenizer: {tmp_path / "tokenizer"}
        splits: [train]
        shard_characters: 20000
        filters: {{drop_duplicates: true}}
        """
    )
    return ["--config", str(tmp_path / "prepare.yaml")]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("backend", [pytest.param("ray", marks=pytest.mark.slow), "dask", "dask at an address"])
def test_a_corpus_is_the_same_on_every_backend(
    backend: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real cluster of two processes, which also cuts the sentences."""
    monkeypatch.setattr("lit_distil.data.corpus.reading._CHUNK_CHARACTERS", 3_000)
    monkeypatch.setattr("lit_distil.data.sources.sentences._BATCH_CHARACTERS", 3_000)
    run([*arguments, "--out", str(tmp_path / "alone"), "--num_processes", "1"])
    settings = [*arguments, "--out", str(tmp_path / "cluster"), "--backend", backend.split()[0]]
    if backend == "dask at an address":
        from distributed import LocalCluster

        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            run([*settings, "--address", cluster.scheduler_address])
    else:
        run([*settings, "--num_processes", "2"])
    assert hashes(tmp_path / "alone" / "train") == hashes(tmp_path / "cluster" / "train")
    assert len(hashes(tmp_path / "alone" / "train")) > 4


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_missing_backend_names_its_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    message = rf"backend: {backend} needs the extra: pip install 'lit-distil\[{backend}\]'"
    with pytest.raises(ValueError, match=message), workers(2, backend=backend):  # type: ignore[arg-type]
        pass


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_processes must be at least 1, got 0"), workers(0):
        pass
    message = "address: 'tcp://a:1' needs backend ray or dask, got loky"
    with pytest.raises(ValueError, match=message), workers(address="tcp://a:1"):
        pass
