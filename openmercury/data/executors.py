"""Runs the same job over many inputs: in processes of this machine, or in the workers of a Ray cluster.

Results stay where the job writes them; what comes back only says how far it is. The order in which jobs end is free.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from openmercury.errors import DataError, OpenMercuryError

InputT = TypeVar("InputT")
NO_RAY = "executor='ray' needs Ray: pip install 'openmercury[cluster]'"
KILLED = (
    "a worker was killed, most often for want of memory: start again with fewer workers, "
    "and it goes on with the work that is finished"
)


def processes(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one. They are fresh: a fork of one that has threads (a progress bar's) may hang."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def run_here(job: Callable[[InputT], int], inputs: Sequence[InputT], workers: int) -> Iterator[int]:
    """Results of `job` as they come. Raises DataError when a worker dies, and what the job raises."""
    if not inputs:
        return
    with processes(min(workers, len(inputs))) as pool:
        waiting = [pool.submit(job, one) for one in inputs]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool:
            raise DataError(KILLED) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(job: Callable[[InputT], int], inputs: Sequence[InputT], workers: int, address: str) -> Iterator[int]:
    """The same through Ray Data, `workers` at a time, on the cluster at `address` ("" starts one here of that size).

    All machines must see the working folder under one path. Raises DataError as `run_here` does.
    """
    if not inputs:
        return
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise DataError(NO_RAY) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address or None, num_cpus=None if address else workers, log_to_driver=False)
        except ConnectionError:
            raise DataError(f"no Ray cluster answers at {address}: correct `address`, or start one there") from None
    ray.data.DataContext.get_current().enable_progress_bars = False

    def one(row: dict[str, InputT]) -> dict[str, int]:
        _settle()
        return {"done": job(row["item"])}

    rows = ray.data.from_items([{"item": one} for one in inputs], override_num_blocks=len(inputs))
    try:
        for row in rows.map(one, concurrency=workers).iter_rows():
            yield row["done"]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, OpenMercuryError):
            raise cause from None
        raise DataError(f"Ray gave up ({' '.join(str(error).split())[:200]}): start again, and it goes on") from None


def _begin() -> None:
    """What a process of ours does before its first job."""
    _settle()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word: the main process tells
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose main process was killed would wait for more work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _settle() -> None:
    """What suits a process that reads many files."""
    # Threads of the tokenizer would only take turns with the other workers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Syntax trees are many objects in no cycle; looking for cycles took half of the time to make them.
    gc.set_threshold(200_000, 50, 50)
