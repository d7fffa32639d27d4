"""What runs on the simulated GPU: ``python cases.py GROUP`` prints a line of JSON for each case, with its waits and launches.

The library is that of ``HAUBERK_SIMULATED_GPU``; ``simulated_gpu.build`` makes it.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any
from unittest import mock

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


def counted(gpu: SimulatedGpu, act: Callable[[], Any], times: int = 2) -> dict[str, Any]:
    """Count what an action does when it is done once more: the first time there is more to check."""
    for _ in range(times):
        gpu.reset()
        act()
    waits, launches = gpu.counts
    return {"waits": waits, "launches": launches, "where": dict(gpu.waits), "operations": dict(gpu.launches.most_common())}


class HandMade:
    """A training step by hand, with one of torch's fused optimizers; and the passes of such a step alone."""

    def __init__(self, method: hb.Method):
        self.method, self.model, (self.x, self.y) = method, network(CLASSES + method.extra_outputs).train(), batch()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, fused=True)
        frozen = deepcopy(self.model).eval().requires_grad_(False)
        precision = method.precision
        dtype = torch.bfloat16 if precision is not None and precision.precision == "bf16" else None
        self.copy = (
            frozen if precision is None or getattr(method.attack, "mode", "") != "eval" else InferenceCopy(frozen, dtype)
        )
        self.autocast = nullcontext() if precision is None else precision.autocast(self.x)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.out = self.method(self.model, self.x, self.y, LATE, index=torch.arange(BATCH))
        self.out.loss.backward()
        self.optimizer.step()
        self.method.after_step(self.model)

    def passes(self) -> None:
        """As many passes as the step made, with cross-entropy."""
        loss_passes = len(self.method.needs) * (2 if self.method.weight_perturbation is not None else 1)
        looks = ceil(self.out.forwards) - loss_passes - ceil(self.out.backwards)
        self.optimizer.zero_grad()
        for _ in range(ceil(self.out.backwards)):
            point = self.x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.copy(point), self.y), point)
        with torch.no_grad():
            for _ in range(looks):
                self.copy(self.x)
        for _ in range(loss_passes // len(self.method.needs)):
            with self.autocast:
                losses = [F.cross_entropy(self.model(self.x).float(), self.y) for _ in self.method.needs]
            torch.stack(losses).sum().backward()
        self.optimizer.step()


def methods() -> Iterator[Case]:
    """Every method by hand: a step, and what one more step of its attack adds, beside the passes themselves."""
    for name in (*hb.list_methods(), "at+awp", "trades+awp"):
        for precision in ("model", "bf16"):
            with SimulatedGpu() as gpu:
                seen = []
                for steps in (2, 3):
                    settings = {} if name in UNFIXED else {"steps": steps}
                    one = HandMade(hb.method(name, THREATS["Linf"], precision=precision, **settings))
                    found = counted(gpu, one.step)
                    seen.append(found | {"beside": found["launches"] - counted(gpu, one.passes, 1)["launches"]})
            first, second = seen
            more = {f"{key} an attack step": second[key] - first[key] for key in ("beside", "waits")}
            yield f"{name} {precision}", first | more


def attacks() -> Iterator[Case]:
    """Every preset in every threat model: three steps of a stream of rows that are not in step."""
    for name, preset in PRESETS.items():
        for threat in THREATS.values():
            with SimulatedGpu() as gpu:
                attack = replace(preset.attack, steps=12) if preset.attack.steps > 12 else preset.attack
                surrogate = network().eval() if "transfer" in name else None
                attack, _ = attack.adapted(threat, CLASSES, surrogate=surrogate)
                x, y = batch()
                with frozen_model(network()) as model:
                    queries = ModelQueries(model)
                    rng = ExampleRng(0, torch.arange(BATCH).to(CUDA))
                    inputs = AttackInputs(threat.around(x), y, queries.logits(x), torch.zeros_like(y), rng)
                    state, host_steps = attack.init(inputs), np.zeros(BATCH, dtype=np.int64)
                    for _ in range(2):  # looks at the start, and what is cached
                        attack.step(state, queries, host_steps)
                        host_steps += 1
                    gpu.reset()
                    for _ in range(3):
                        attack.step(state, queries, host_steps)
                        host_steps += 1
            waits, launches = gpu.counts
            yield f"{name} {threat.norm}", {"waits": waits, "launches": launches // 3, "where": dict(gpu.waits)}


def training() -> Iterator[Case]:
    """Steps of ``hb.train`` between two looks, with augmentation, a moving average, metrics and validation."""
    torch.manual_seed(1)
    data = (255 * torch.rand(8 * BATCH, *SHAPE)).byte(), torch.arange(8 * BATCH) % CLASSES
    original = Trainer._train_step
    for name in ("standard", "at", "trades", "mart", "mail-at", "mail-trades", "gairat", "fat", "mma", "free-at", "at+awp"):
        for precision in ("fp32", "bf16"):
            seen: list[tuple[bool, Counter[str], Counter[str]]] = []

            def step(self: Trainer, step: nn.Module, batch: Tensor, look: bool) -> None:
                gpu.reset()
                original(self, step, batch, look)
                seen.append((look, Counter(gpu.waits), Counter(gpu.launches)))  # noqa: B023

            with SimulatedGpu() as gpu, mock.patch.object(Trainer, "_train_step", step):
                settings = {} if name in UNFIXED else {"steps": 2}
                method = hb.method(
                    name, THREATS["Linf"], **{"burn_in": 0} if "mail" in name or "gair" in name else {}, **settings
                )
                hb.train(
                    network(CLASSES + method.extra_outputs), data, method=method, epochs=2, batch_size=BATCH, val_size=BATCH,
                    val_steps=1, device="cuda", precision=precision, augmentation="crop-flip", ema=0.9, quiet=True,
                )  # fmt: skip
            between = [(waits, launches) for look, waits, launches in seen if not look][-2:]
            waits, launches = between[-1]
            yield (
                f"{name} {precision}",
                {
                    "waits": sum(waits.values()),
                    "launches": sum(launches.values()),
                    "where": dict(waits),
                    "operations": dict(launches.most_common()),
                    "steps": len(seen),
                },
            )


def evaluation() -> Iterator[Case]:
    """A whole evaluation of each kind of attack: that it runs, and how often it waits."""
    torch.manual_seed(1)
    data = (255 * torch.rand(2 * BATCH, *SHAPE)).byte(), torch.arange(2 * BATCH) % CLASSES
    for precision in ("model", "fp32", "bf16"):
        with SimulatedGpu() as gpu:
            model = network()
            hb.evaluate(
                model,
                data,
                threat=THREATS["Linf"],
                attacks=["pgd-10", "apgd-ce", "random-100"],
                batch_size=BATCH,
                precision=precision,
                quiet=True,
            )
        waits, launches = gpu.counts
        yield precision, {"waits": waits, "launches": launches, "where": dict(gpu.waits.most_common())}


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {one.__name__: one for one in (methods, attacks, training, evaluation)}


def main() -> None:
    torch.set_num_threads(1)
    for case, found in GROUPS[sys.argv[1]]():
        print(json.dumps({"case": case, **found}), flush=True)


if __name__ == "__main__":
    main()
