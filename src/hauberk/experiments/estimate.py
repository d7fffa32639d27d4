"""What a comparison will cost: one step of each method and one pass are measured here, the rest is counted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.attacks import find_suite, frozen_model
from hauberk.data import fetch_for, find_dataset
from hauberk.experiments.experiment import Experiment, is_done
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
