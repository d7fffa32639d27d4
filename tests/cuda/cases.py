"""What runs on the simulated GPU: ``python cases.py GROUP`` prints a line of JSON for each case, with its waits and launches.

The library is that of ``HAUBERK_SIMULATED_GPU``; ``simulated_gpu.build`` makes it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from simulated_gpu import CUDA, SimulatedGpu  # before torch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hauberk as hb
from hauberk.attacks import AttackInputs, ModelQueries, frozen_model
from hauberk.attacks.presets import PRESETS
from hauberk.core.random import ExampleRng
from hauberk.fastpath.frozen_copy import InferenceCopy
from hauberk.fastpath.precision import PrecisionPolicy
from hauberk.models.resnet import BasicBlock
from hauberk.training.trainer import Trainer

SHAPE, CLASSES, BATCH, LATE = (3, 8, 8), 4, 8, 200
THREATS = {"Linf": hb.Linf("8/255"), "L2": hb.L2(0.5), "L1": hb.L1(5.0)}
UNFIXED = ("standard", "free-at", "fgsm-at")  # methods whose attack has no number of steps
Case = tuple[str, dict[str, Any]]


def network(outputs: int = CLASSES) -> nn.Module:
    """ResNet-18 with few channels: as many launches, less to compute."""
    torch.manual_seed(0)
    widths = [4, 4, 4, 8, 8, 8, 8, 8, 8]
    blocks = [BasicBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs)]
    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, *head).to(CUDA)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(BATCH, *SHAPE).to(CUDA), (torch.arange(BATCH) % CLASSES).to(CUDA)


def counted(gpu: SimulatedGpu, act: Callable[[], Any]) -> dict[str, Any]:
    """Count what an action does when it is done for the third time: the first time there is more to check."""
    for _ in range(3):
        gpu.reset()
        act()
    waits, launches = gpu.counts
    return {"waits": waits, "launches": launches, "where": dict(gpu.waits), "operations": dict(gpu.launches.most_common())}


def step_of(method: hb.Method) -> Callable[[], None]:
    """A training step by hand, with one of torch's fused optimizers."""
    model, (x, y) = network(outputs=CLASSES + method.extra_outputs).train(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    index = torch.arange(BATCH).to(CUDA)

    def step() -> None:
        optimizer.zero_grad()
        method(model, x, y, LATE, index=index).loss.backward()
        optimizer.step()
        method.after_step(model)

    return step


def floor_of(method: hb.Method, precision: str, steps: int) -> Callable[[], None]:
    """The passes of such a step alone, with cross-entropy: K forward and backward to the input, and those of the loss."""
    model, (x, y) = network(outputs=CLASSES + method.extra_outputs).train(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    policy = PrecisionPolicy("fp32" if precision == "model" else precision)
    frozen = network().eval().requires_grad_(False)
    copy = frozen if precision == "model" else InferenceCopy(frozen, torch.bfloat16 if precision == "bf16" else None)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(steps):
            point = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(copy(point), y), point)
        with policy.autocast(x):
            losses = [F.cross_entropy(model(x).float(), y) for _ in method.needs]
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


def methods() -> Iterator[Case]:
    """Every method by hand: a step, and what one more step of its attack adds, beside the network's own launches."""
    for name in hb.list_methods():
        for precision in ("model", "fp32", "bf16"):
            with SimulatedGpu() as gpu:
                seen = []
                for steps in (2, 3):
                    settings = {} if name in UNFIXED else {"steps": steps}
                    method = hb.method(name, THREATS["Linf"], precision=precision, **settings)
                    passes = {"standard": 0, "free-at": 0, "fgsm-at": 1}.get(name, steps)
                    found = counted(gpu, step_of(method))
                    found["beside"] = found["launches"] - counted(gpu, floor_of(method, precision, passes))["launches"]
                    seen.append(found)
            more = {"per attack step": seen[1]["beside"] - seen[0]["beside"], "waits per attack step": seen[1]["waits"] - seen[0]["waits"]}
            yield f"{name} {precision}", seen[0] | more


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {one.__name__: one for one in (methods,)}


def main() -> None:
    torch.set_num_threads(1)
    for case, found in GROUPS[sys.argv[1]]():
        print(json.dumps({"case": case, **found}), flush=True)


if __name__ == "__main__":
    main()
