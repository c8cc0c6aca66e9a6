"""Work on text in several processes, on this machine, a Ray cluster or a Dask cluster, through joblib.

Results come in the order of the items, whatever the backend and the number of processes. This file imports neither
torch nor transformers, and the functions passed to it should be in files that do not either, because every worker
process imports them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from itertools import chain, islice
from multiprocessing import current_process
from typing import Any, Literal, NamedTuple, TypeVar

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor

from lit_distil.files import hash_of
from lit_distil.messages import check_at_least

Backend = Literal["loky", "ray", "dask"]
"""Where the processes run, by joblib's names: on this machine, on a Ray cluster, on a Dask cluster."""

Item = TypeVar("Item")
Work = Callable[[Any], Any]

_TASKS_AT_ONCE = 32  # per round; more with over 16 processes
_FEW = 4
_SHARED_BYTES = 10_000  # larger arrays are sent to local processes once, through a file


class _Workers(NamedTuple):
    backend: Backend
    number: int


_active: ContextVar[_Workers | None] = ContextVar("workers", default=None)
_work_of: dict[str, Work] = {}  # in a worker process, by the hash of the settings


@contextmanager
def workers(
    num_processes: int | None = None, *, backend: Backend | None = None, address: str | None = None
) -> Iterator[None]:
    """Let `results_in_order` use several processes inside this block; elsewhere it works in the calling process.

    Args:
        num_processes: How many; None takes the number of the surrounding block, or one for each core of the machine or
            cluster.
        backend: Where they run; None takes the backend of the surrounding block, or this machine.
        address: Address of the cluster; None takes the one that `RAY_ADDRESS` or `DASK_SCHEDULER_ADDRESS` names, or
            starts a cluster on this machine.

    Raises:
        ValueError: The backend is not installed, there is no cluster at the address, or a number is below 1.
    """
    check_at_least(1, {"num_processes": num_processes})
    if address is not None and backend not in ("ray", "dask"):
        raise ValueError(f"address: {address!r} needs backend ray or dask, got {backend or 'loky'}")
    outer = _active.get()
    with ExitStack() as stack:
        if backend is None and outer is not None:
            inner = _Workers(outer.backend, num_processes or outer.number)
        elif backend in ("ray", "dask"):
            connect = _connect_ray if backend == "ray" else _connect_dask
            try:
                inner = _Workers(backend, connect(num_processes, address, stack))
            except ImportError as error:
                raise ValueError(f"backend: {backend} needs the extra: pip install 'lit-distil[{backend}]'") from error
            except (OSError, TimeoutError) as error:
                raise ValueError(f"address: no {backend} cluster answers at {address!r} ({error})") from error
        else:
            inner = _Workers("loky", num_processes or joblib.cpu_count())
            if outer is None or outer.backend != "loky":
                stack.callback(lambda: get_reusable_executor().shutdown(wait=True))  # idle processes keep memory
        token = _active.set(inner)
        try:
            yield
        finally:
            _active.reset(token)


def results_in_order(
    make_work: Callable[[str], Work], settings: str, items: Iterable[tuple[Item, Any]]
) -> Iterator[tuple[Item, Any]]:
    """Each item with the result of its work, in the order of the items.

    The calling thread reads the items of one round while the processes work on the previous round, so memory does not
    grow with the number of items. A few items are handled here, since processes take longer to start.

    Args:
        make_work: Called once in each process with the settings; returns the function that does the work.
        settings: A text that may be large, such as a tokenizer's file; every process gets it once.
        items: Each with its payload, which is sent to a process and then forgotten.
    """
    active = _active.get()
    items = iter(items)
    first = list(islice(items, _FEW)) if active is not None and active.number > 1 else []
    items = chain(first, items)
    if active is None or len(first) < _FEW:
        work = make_work(settings)
        for item, payload in items:
            yield item, work(payload)
        return
    shared: Any = np.frombuffer(settings.encode(), dtype=np.uint8)
    if active.backend == "ray":
        import ray

        shared = ray.put(shared)
    # its own backend: the items may come from another call of this function that is still working
    with joblib.parallel_config(active.backend):
        parallel = joblib.Parallel(active.number, batch_size=1, pre_dispatch="all", max_nbytes=_SHARED_BYTES)
    task, key = joblib.delayed(_work), hash_of(settings)
    size = max(_TASKS_AT_ONCE, 2 * active.number)
    current: list[Item] = []
    try:
        with parallel, ThreadPoolExecutor(1) as thread:
            running: Future[list[Any]] = thread.submit(list)
            while following := list(islice(items, size)):
                done = zip(current, running.result(), strict=True)
                running = thread.submit(parallel, [task(make_work, key, shared, payload) for _, payload in following])
                current = [item for item, _ in following]
                del following  # and with it the payloads
                yield from done
            yield from zip(current, running.result(), strict=True)
    except BrokenExecutor as error:
        raise RuntimeError(
            "a worker process ended before its work was done, often for lack of memory: lower num_processes and run "
            f"the same command again ({error})"
        ) from error


def _work(make_work: Callable[[str], Work], key: str, shared: Any, payload: Any) -> Any:
    """In a worker process: the result for one payload."""
    if key not in _work_of:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are shared by processes, not by threads
        if current_process().name.startswith("Loky") and not _work_of:
            end_with_parent()
        if not isinstance(shared, np.ndarray):
            import ray

            shared = ray.get(shared)
        _work_of[key] = make_work(shared.tobytes().decode())
    return _work_of[key](payload)


def end_with_parent(*_: Any) -> None:
    """In a worker process: make it end soon after its parent is killed.

    Otherwise loky would keep it for minutes, and torch forever if it waits to write to a pipe that nobody reads.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _connect_ray(num_processes: int | None, address: str | None, stack: ExitStack) -> int:
    """Connect to a Ray cluster until the stack ends; returns the number of processes to use."""
    import ray
    from ray.util.joblib import register_ray

    own: dict[str, Any] = {}
    if (address or os.environ.get("RAY_ADDRESS", "local")) == "local":
        own = {"num_cpus": num_processes or joblib.cpu_count(), "include_dashboard": False}
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    stack.callback(ray.shutdown)
    register_ray()
    return num_processes or int(ray.cluster_resources()["CPU"])


def _connect_dask(num_processes: int | None, address: str | None, stack: ExitStack) -> int:
    """Connect to a Dask cluster until the stack ends; returns the cluster's number of processes."""
    import dask
    from distributed import Client

    own: dict[str, Any] = {}
    if not address and not dask.config.get("scheduler-address", None):
        own = {"n_workers": num_processes or joblib.cpu_count(), "threads_per_worker": 1, "dashboard_address": None}
    client = Client(address, **own)
    stack.callback(client.close)
    return max(1, sum(client.ncores().values()))
