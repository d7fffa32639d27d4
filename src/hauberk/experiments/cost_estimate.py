"""What experiments will cost: seconds of training and of evaluation, measured on a step and a pass, and bytes on disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.attacks import find_suite, frozen_model
from hauberk.core.numerics import float32_mode
from hauberk.data import IndexedDataset, fetch_for
from hauberk.experiments.experiment import Experiment
from hauberk.experiments.runner import is_done
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
        training += trials * training_seconds(one, method, train_set, place, one.load_extra(train_set.classes, device))
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
