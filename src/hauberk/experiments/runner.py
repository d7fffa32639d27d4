"""Running experiments: one after another, side by side in processes, or on a Slurm cluster."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
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
from hauberk.core.numerics import float32_mode
from hauberk.data import IndexedDataset, fetch_for
from hauberk.experiments.experiment import Experiment, is_done, require_same_inputs, run_experiment
from hauberk.fastpath.frozen_copy import make_inference_copy
from hauberk.methods import Method
from hauberk.models import ModelSpec
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
        total: number of experiments.
        finished: number of those that are finished.
        jobs: number of processes side by side.
        training: seconds until all are trained.
        evaluation: seconds for all evaluations at most, as if every example were robust to every attack.
        disk: bytes of all runs.
    """

    total: int
    finished: int
    jobs: int
    training: float
    evaluation: float
    disk: int

    def __str__(self) -> str:
        def hours(seconds: float) -> str:
            return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"

        return (
            f"{self.total - self.finished} of {self.total} runs to make, {self.jobs} side by side here: training about "
            f"{hours(self.training)}, evaluation at most {hours(self.evaluation)}; about {self.disk / 2**20:,.0f} MiB on disk"
        )


def estimate(
    experiments: Sequence[Experiment], out: Path, *, jobs: int = 1, threads: int = 1, device: str = "auto"
) -> Estimate:
    """Measure one step of each method, and one pass, and count. Arguments as in :func:`run_experiments`.

    Raises:
        UserError: as :func:`run_experiment` for what does not fit together.
    """
    todo = [one for one in experiments if not is_done(one, out)]
    if not todo:
        return Estimate(len(experiments), len(experiments), jobs, 0.0, 0.0, 0)
    place = pick_device(device)
    torch.set_num_threads(threads)
    train_set, test_size = todo[0].load_data("train"), len(todo[0].load_data("test"))
    training, disk = 0.0, 0
    for one in {one.name: one for one in todo}.values():
        method, trials = one.make_method(), sum(other.name == one.name for other in todo)
        training += trials * training_seconds(one, method, train_set, place)
        spec = one.model_spec(train_set, method)
        disk += trials * _WEIGHT_COPIES * sum(p.nbytes for p in spec.build().parameters())
    suite = find_suite(todo[0].evaluation.suite, todo[0].evaluation.attacks)
    passes = sum(preset.attack.cost() for preset in suite.attacks.values())
    count = sum(len(one.evaluations) for one in todo)
    evaluation = count * test_size * passes * pass_seconds(spec, train_set, place) / 2
    return Estimate(len(experiments), len(experiments) - len(todo), jobs, training / jobs, evaluation / jobs, disk)


def training_seconds(
    experiment: Experiment, method: Method, source: IndexedDataset, device: torch.device, extra: IndexedDataset | None = None
) -> float:
    """Measure a step of a training, and return how long all of it will take, with its validation.

    Args:
        experiment: network and settings.
        method: how it is trained.
        source: the training examples.
        device: where.
        extra: further examples, or None.
    """
    spec = experiment.model_spec(source, method)
    plan = make_plan(spec, method, experiment.resolved.config, source, extra)
    net = spec.build().to(device)
    index = plan.batches(0)[0]
    x, y = fetch_for(net, plan.examples, index)
    measured = _batch_size(net, x, device)
    some = (part[:measured] for part in (x, y, index.to(device)))
    step = _seconds(partial(_step, plan.method, net, *some), device) * len(x) / measured
    return plan.total_steps * step * _VALIDATION


def pass_seconds(spec: ModelSpec, source: IndexedDataset, device: torch.device) -> float:
    """Measure a pass of an attack, forward and backward, and return the seconds for one example."""
    net = spec.build().to(device)
    x, _ = fetch_for(net, source, torch.arange(min(len(source), 128)))
    x = x[: _batch_size(net, x, device)]
    with frozen_model(net) as view, float32_mode("fp32"):
        copy = make_inference_copy(view, x)

        def value_and_gradient() -> None:
            point = x.detach().clone().requires_grad_()
            torch.autograd.grad(copy(point).logsumexp(1).sum(), point)

        return _seconds(value_and_gradient, device) / len(x)


def _step(method: Method, net: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> None:
    method(net.train(), x, y, index=index, epoch=0).loss.backward()


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


def run_experiments(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str = "auto",
    on_progress: Callable[[Experiment, str], None] = lambda one, what: None,
) -> bool:
    """Run what is not finished.

    Args:
        experiments: what to train and evaluate.
        out: folder of the comparison.
        jobs: number of processes side by side; they take the GPUs in turn where there are some.
        threads: CPU threads of each process.
        device: "auto", "cpu", "cuda", ...
        on_progress: called for each experiment with "kept" (and under which other versions it was made), "done" or the reason
            why it failed.

    Returns:
        Whether all experiments are finished; otherwise the same call goes on.

    Raises:
        UserError: if the folder holds other experiments, or finished ones whose data have changed since.
    """
    todo = _unfinished(experiments, out, threads, on_progress)
    finished, started = True, count()
    running: dict[Future[bool], Experiment] = {}
    # Even a single job has a process of its own: experiments then do not depend on what ran before in theirs.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_end_with_parent) as pool:
        try:
            while todo or running:
                while todo and len(running) < jobs:  # no more, or a stopped pool would still begin what waits in it
                    one = todo.pop(0)
                    running[pool.submit(run_experiment, one, out, _device(device, next(started)), threads)] = one
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    said = _outcome(future)
                    on_progress(running.pop(future), said)
                    finished &= said == "done"
        except KeyboardInterrupt:  # what runs has heard it, too: it saves, and leaving the block waits for it
            return False
        except BrokenProcessPool:  # said already
            return False
    return finished


def run_on_slurm(
    experiments: Sequence[Experiment], out: Path, *, settings: dict[str, Any], cluster: str = "slurm"
) -> list[Any]:
    """Submit what is not finished, a job for each experiment, through submitit, and return its jobs.

    Args:
        experiments: what to train and evaluate.
        out: folder of the comparison, which all nodes must see.
        settings: those of submitit's executor, e.g. ``{"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1}``.
        cluster: "slurm", or "local" to try it on this machine.

    Raises:
        UserError: if submitit is not installed, and as :func:`run_experiments`.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("a Slurm cluster needs submitit; pip install 'hauberk[slurm]'") from error
    executor = AutoExecutor(out / "slurm", cluster=cluster)
    executor.update_parameters(**settings)
    todo = _unfinished(experiments, out)
    if not todo:
        return []
    with executor.batch():
        return [executor.submit(run_experiment, experiment, out.resolve()) for experiment in todo]


def _unfinished(
    experiments: Sequence[Experiment],
    out: Path,
    threads: int = 0,
    on_kept: Callable[[Experiment, str], None] = lambda one, what: None,
) -> list[Experiment]:
    """Return those that are not finished; say what is kept, and refuse what was made with other data than there are now."""
    todo, kept, digests = [], [], dict[Any, str]()
    for one in experiments:
        if is_done(one, out):
            kept.append((one, require_same_inputs(one, out, digests, threads)))
        else:
            todo.append(one)
    for one, was in kept:
        on_kept(one, f"kept, made with {was}" if was else "kept")
    return todo


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
    """Return what became of an experiment: "done", "stopped" or the reason why it failed."""
    try:
        return "done" if future.result() else "stopped"
    except UserError as error:
        return str(error)
    except BrokenProcessPool:
        return "its process was killed, perhaps for memory; the same command goes on"
