"""Running experiments: one after another, side by side in processes, or on a Slurm cluster."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import count
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.data import Subset, data_digest
from hauberk.data.dataset import in_memory
from hauberk.experiments.experiment import Experiment, is_done, run_experiment


def run_cells(
    cells: Sequence[Experiment],
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    on_progress: Callable[[Experiment, str], None] = lambda cell, what: None,
) -> bool:
    """Run what is not finished.

    Args:
        cells: what to train and evaluate.
        out: folder of the comparison.
        jobs: number of processes side by side; they take the GPUs in turn where there are some.
        threads: CPU threads of each process.
        device: "auto", "cpu", "cuda", ...
        on_progress: called for each cell with "kept", "done" or the reason why it failed.

    Returns:
        Whether all cells are finished; otherwise the same call goes on.

    Raises:
        UserError: if the folder holds other cells, or finished ones whose data have changed since.
    """
    todo = _unfinished(cells, out)
    for cell in cells:
        if cell not in todo:
            on_progress(cell, "kept")
    finished, started = True, count()
    running: dict[Future[bool], Experiment] = {}
    # Even a single job has a process of its own: cells then do not depend on what ran before in theirs.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            while todo or running:
                while todo and len(running) < jobs:  # no more, or a stopped pool would still begin what waits in it
                    cell = todo.pop(0)
                    running[pool.submit(run_experiment, cell, out, _device(device, next(started)), threads)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    said = _outcome(future)
                    on_progress(cell, said)
                    finished &= said == "done"
        except KeyboardInterrupt:  # running cells have heard it, too: they save, and leaving the block waits for them
            return False
        except BrokenProcessPool:  # said already
            return False
    return finished


def run_on_slurm(cells: Sequence[Experiment], out: Path, *, settings: dict[str, Any], cluster: str = "slurm") -> list[Any]:
    """Submit what is not finished, a job for each cell, through submitit.

    Args:
        cells: what to train and evaluate.
        out: folder of the comparison, which all nodes must see.
        settings: those of submitit's executor, e.g. ``{"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}``.
        cluster: "slurm", or "local" to try it on this machine.

    Returns:
        submitit's jobs.

    Raises:
        UserError: if submitit is not installed, and as :func:`run_cells`.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("a Slurm cluster needs submitit; pip install 'hauberk[slurm]'") from error
    executor = AutoExecutor(out / "slurm", cluster=cluster)
    executor.update_parameters(**settings)
    todo = _unfinished(cells, out)
    if not todo:
        return []
    with executor.batch():
        return [executor.submit(run_experiment, cell, out.resolve()) for cell in todo]


def _unfinished(cells: Sequence[Experiment], out: Path) -> list[Experiment]:
    """Return the cells that are not finished; refuse a finished one that was made with other data than there are now."""
    digests: dict[Any, set[str]] = {}
    todo = []
    for cell in cells:
        if not is_done(cell, out):
            todo.append(cell)
            continue
        for split, path in (("train", "run/run.json"), ("test", "evaluation/plan.json")):
            if not (record := cell.folder(out) / path).exists():
                continue
            which = (split, cell.data, cell.subset)
            if which not in digests:
                digests[which] = _data_digests(cell, split)
            known = read_json(record)
            if digests[which] and (known.get("data_digest") or known["data"]["digest"]) not in digests[which]:
                raise UserError(f"{cell.folder(out)} was made with other {split} data; choose another folder by --out")
    return todo


def _data_digests(cell: Experiment, split: str) -> set[str]:
    """Return what records may hold of the data there are now; nothing where they are gone, or not in memory."""
    try:
        source = replace(cell, data=replace(cell.data, verify=False)).load_data(split)
    except UserError:
        return set()
    # A training without validation examples writes down the whole of which its examples are a part.
    wholes = [source, source.dataset] if isinstance(source, Subset) and split == "train" else [source]
    return {data_digest(one) for one in wholes} if in_memory(source) else set()


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
    """Return what became of a cell: "done", "stopped" or the reason why it failed."""
    try:
        return "done" if future.result() else "stopped"
    except UserError as error:
        return str(error)
    except BrokenProcessPool:
        return "its process was killed, perhaps for memory; the same command goes on"
