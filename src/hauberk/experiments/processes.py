"""The same work on many things, side by side in processes, each on a GPU of its own where there are some."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from multiprocessing.connection import wait as wait_for_end
from threading import Thread
from typing import TypeVar

import torch

from hauberk.core.errors import UserError

T = TypeVar("T")


def usual_jobs() -> int:
    """Return how many processes use the machine well: one for each GPU, or for each core."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def usual_threads(jobs: int) -> int:
    """Return how many CPU threads each of ``jobs`` processes has."""
    return max(1, (os.cpu_count() or 1) // jobs)


def in_processes(
    work: Callable[..., bool],
    todo: Iterable[T],
    *,
    jobs: int,
    device: str,
    on_end: Callable[[T, str], None],
) -> bool:
    """Call ``work(one, device=...)`` for each of ``todo``, ``jobs`` at a time, and return whether all is finished.

    Args:
        work: a function that can be pickled; returns False if it was asked to stop.
        todo: what to work on, in this order.
        jobs: number of processes side by side; they take the GPUs in turn where there are some.
        device: "auto", "cpu", "cuda", ...
        on_end: called with each and what became of it: "done", "stopped" or the reason why it failed.
    """
    waiting = list(todo)
    finished, started = True, count()
    running: dict[Future[bool], T] = {}
    # Even a single job has a process of its own: experiments then do not depend on what ran before in theirs.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:  # no more, or a stopped pool would still begin what waits in it
                    one = waiting.pop(0)
                    running[pool.submit(work, one, device=_device(device, next(started)))] = one
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    said = _outcome(future)
                    on_end(running.pop(future), said)
                    finished &= said == "done"
        except KeyboardInterrupt:  # what runs has heard it, too: it saves, and leaving the block waits for it
            return False
        except BrokenProcessPool:  # said already
            return False
    return finished


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in workers only

    def watch(sentinel: int = parent.sentinel) -> None:
        wait_for_end([sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _device(device: str, index: int) -> str:
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{index % gpus}" if gpus else device


def _outcome(future: "Future[bool]") -> str:
    """Return what became of some work: "done", "stopped" or the reason why it failed."""
    try:
        return "done" if future.result() else "stopped"
    except UserError as error:
        return str(error)
    except BrokenProcessPool:
        return "its process was killed, perhaps for memory; the same command goes on"
