"""Running the cells of a study: one after the other, side by side in processes, or on a Slurm cluster."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import count
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import UserError
from hauberk.experiments.experiment import Experiment, is_done, run_experiment


def run_cells(
    cells: Sequence[Experiment],
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    told: Callable[[Experiment, str], None] = lambda cell, what: None,
) -> bool:
    """Run what is not finished.

    Args:
        cells: of the study.
        out: its folder.
        jobs: processes side by side; each takes a GPU in turn where there are some.
        threads: CPU threads of each.
        device: "auto", "cpu", "cuda", ...
        told: hears of each cell "kept", "done" or the reason why it failed.

    Returns:
        Whether all cells are finished; otherwise the same call goes on.
    """
    todo = []
    for cell in cells:
        if is_done(cell, out):
            told(cell, "kept")
        else:
            todo.append(cell)
    finished, turn = True, count()
    under_way: dict[Future[bool], Experiment] = {}
    # Even a single job has a process of its own: cells then do not depend on what ran before in theirs.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while todo or under_way:
                while todo and len(under_way) < jobs:  # no more, or a stopped pool would still begin what waits in it
                    cell = todo.pop(0)
                    under_way[pool.submit(run_experiment, cell, out, _device(device, next(turn)), threads)] = cell
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    finished &= _ended(future, under_way.pop(future), told)
        except KeyboardInterrupt:  # cells under way have heard it, too: they save, and leaving the block waits for them
            return False
        except BrokenProcessPool:  # said already
            return False
    return finished


def run_on_slurm(cells: Sequence[Experiment], out: Path, *, settings: dict[str, Any], cluster: str = "slurm") -> list[Any]:
    """Submit what is not finished, a job for each cell, through submitit.

    Args:
        cells: of the study.
        out: its folder, which all nodes must see.
        settings: of submitit's executor, e.g. ``{"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}``.
        cluster: "slurm", or "local" to try it on this machine.

    Returns:
        submitit's jobs.

    Raises:
        UserError: if submitit is not installed.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("a Slurm cluster needs submitit; pip install 'hauberk[slurm]'") from error
    executor = AutoExecutor(out / "slurm", cluster=cluster)
    executor.update_parameters(**settings)
    todo = [cell for cell in cells if not is_done(cell, out)]
    if not todo:
        return []
    with executor.batch():
        return [executor.submit(run_experiment, cell, out.resolve()) for cell in todo]


def _device(device: str, turn: int) -> str:
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return f"cuda:{turn % gpus}" if gpus else device


def _ended(future: "Future[bool]", cell: Experiment, told: Callable[[Experiment, str], None]) -> bool:
    try:
        finished = future.result()
    except UserError as error:
        told(cell, str(error))
        return False
    except BrokenProcessPool:
        told(cell, "its process was killed, perhaps for memory; the same command goes on")
        return False
    told(cell, "done" if finished else "stopped")
    return finished
