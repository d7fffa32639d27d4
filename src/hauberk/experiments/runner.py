"""Running experiments: one after another, side by side in processes, or on a Slurm cluster."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import find_suite, frozen_model
from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.data import Subset, data_digest, fetch_for, find_dataset
from hauberk.data.dataset import in_memory
from hauberk.experiments.experiment import Experiment, is_done, run_experiment
from hauberk.fastpath.frozen_copy import make_inference_copy
from hauberk.methods import Method
from hauberk.training import pick_device
from hauberk.training.plan import make_plan

_VALIDATION = 1.05  # seconds of a training with its validation, over those of the training alone
_LEAST_EXAMPLES, _FORWARD_SECONDS = 4, 0.1  # of a batch that is measured on a CPU
_LONG_SECONDS = 3.0  # calls that take longer are not repeated
_WEIGHT_COPIES = 8  # on the disk: two checkpoints with momentum and the best weights, and two exports


@dataclass(frozen=True)
class Estimate:
    """What is to be done, and what it will cost.

    Attributes:
        cells: number of runs in all.
        finished: number of those that are finished.
        jobs: number of processes side by side.
        training: seconds until all are trained.
        evaluation: seconds for all evaluations at most, as if every example were robust to every attack.
        disk: bytes of all runs.
    """

    cells: int
    finished: int
    jobs: int
    training: float
    evaluation: float
    disk: int

    def __str__(self) -> str:
        def hours(seconds: float) -> str:
            return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"

        return (
            f"{self.cells - self.finished} of {self.cells} runs to make, {self.jobs} side by side here: training about "
            f"{hours(self.training)}, evaluation at most {hours(self.evaluation)}; about {self.disk / 2**20:,.0f} MiB on disk"
        )


def estimate(cells: Sequence[Experiment], out: Path, *, jobs: int = 1, threads: int = 1, device: str = "auto") -> Estimate:
    """Measure one step of each method, and one pass, and count.

    Args:
        cells: what is to be trained and evaluated.
        out: folder in which finished runs are looked for.
        jobs: number of processes side by side.
        threads: CPU threads of each process.
        device: where it is measured, as everywhere.

    Raises:
        UserError: as :func:`hauberk.experiments.run_experiment` for what does not fit together.
    """
    todo = [cell for cell in cells if not is_done(cell, out)]
    if not todo:
        return Estimate(len(cells), len(cells), jobs, 0.0, 0.0, 0)
    place = pick_device(device)
    torch.set_num_threads(threads)
    some = todo[0]
    train_set, test_size = some.load_data("train"), len(some.load_data("test"))
    training, disk = 0.0, 0
    for cell in {cell.name: cell for cell in todo}.values():
        method, trials = cell.make_method(), sum(other.name == cell.name for other in todo)
        spec = find_dataset(cell.data.name).default_model(
            cell.model.name, train_set, extra=method.extra_outputs, normalize=cell.model.normalize
        )
        plan = make_plan(spec, method, cell.resolved.config, train_set)
        net = spec.build().to(place)
        x, y = fetch_for(net, plan.train, plan.batches(0)[0])
        count = _batch_size(net, x, place)
        step = _seconds(partial(_step, plan.method, net, x[:count], y[:count]), place) * len(x) / count
        training += trials * plan.total_steps * step * _VALIDATION
        disk += trials * _WEIGHT_COPIES * sum(p.nbytes for p in net.parameters())
    x = x[:count]
    with frozen_model(net) as view:
        copy = make_inference_copy(view, x)

        def value_and_gradient() -> None:
            point = x.detach().clone().requires_grad_()
            torch.autograd.grad(copy(point).logsumexp(1).sum(), point)

        suite = find_suite(some.evaluation.suite, some.evaluation.attacks)
        passes = sum(preset.attack.cost() for preset in suite.attacks.values())
        evaluation = len(todo) * test_size * passes * _seconds(value_and_gradient, place) / (2 * len(x))
    return Estimate(len(cells), len(cells) - len(todo), jobs, training / jobs, evaluation / jobs, disk)


def _step(method: Method, net: nn.Module, x: Tensor, y: Tensor) -> None:
    method(net.train(), x, y, epoch=0).loss.backward()


def _batch_size(net: nn.Module, x: Tensor, device: torch.device) -> int:
    """Return how many examples to measure on: on a GPU all of a batch, on a CPU as many as pass in a tenth of a second."""
    if device.type == "cuda":
        return len(x)
    with torch.no_grad():
        one = _seconds(lambda: net(x[:_LEAST_EXAMPLES]), device) / _LEAST_EXAMPLES
    return min(len(x), max(_LEAST_EXAMPLES, int(_FORWARD_SECONDS / one)))


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """Return the least time of three calls after a warm-up, or of one where a call is long."""
    spent: list[float] = []
    for _ in range(4):
        if len(spent) > 1 and sum(spent) > _LONG_SECONDS:
            break
        begun = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - begun)
    return min(spent[1:])


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
