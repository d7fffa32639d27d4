"""What runs on the simulated GPU: ``python cases.py GROUP`` prints a line of JSON for each case, with waits and launches."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any
from unittest import mock

from simulated_gpu import CPU, CUDA, SimulatedGpu  # before torch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hauberk as hb
from hauberk.attacks import AttackInputs, ModelQueries, frozen_model
from hauberk.attacks.presets import PRESETS
from hauberk.core.random import ExampleRng
from hauberk.fastpath.frozen_copy import InferenceCopy
from hauberk.methods import get_method_spec
from hauberk.models.resnet import BasicBlock
from hauberk.training.trainer import Trainer

SHAPE, CLASSES, BATCH, LATE = (3, 8, 8), 4, 8, 200
THREATS = {"Linf": hb.Linf("8/255"), "L2": hb.L2(0.5), "L1": hb.L1(5.0), "L0": hb.L0(8)}
_EACH = torch.full(SHAPE, 0.03)
PER_FEATURE = hb.Linf(_EACH, low=0 * _EACH, high=1 + _EACH, frozen=[0, 5], monotone=[[[1.0]], [[-1.0]], [[0.0]]])
UNFIXED = (
    "standard",
    "gaussian",
    "uniform-noise",
    "free-at",
    "fgsm-at",
    "ibp",
    "crown-ibp",
)  # methods whose attack has no number of steps
Case = tuple[str, dict[str, Any]]


RESNET18 = (4, 4, 4, 8, 8, 8, 8, 8, 8)  # as many launches as ResNet-18 has, and less to compute


def network(outputs: int = CLASSES, widths: Sequence[int] = (4, 8), device: torch.device = CUDA) -> nn.Module:
    """A ResNet of one block, or of more."""
    torch.manual_seed(0)
    blocks = [BasicBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs)]
    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, *head).to(device)


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

    def __init__(self, method: hb.Method, widths: Sequence[int]):
        self.method, (self.x, self.y) = method, batch()
        self.model = network(CLASSES + method.extra_outputs, widths).train()
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
        kinds = max(len(self.method.needs), 1)  # an objective that needs none makes one itself
        loss_passes = kinds * (2 if self.method.weight_perturbation is not None else 1)
        looks = ceil(self.out.forwards) - loss_passes - ceil(self.out.backwards)
        self.optimizer.zero_grad()
        for _ in range(ceil(self.out.backwards)):
            point = self.x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.copy(point), self.y), point)
        with torch.no_grad():
            for _ in range(looks):
                self.copy(self.x)
        for _ in range(loss_passes // kinds):
            with self.autocast:
                losses = [F.cross_entropy(self.model(self.x).float(), self.y) for _ in range(kinds)]
            torch.stack(losses).sum().backward()
        self.optimizer.step()


def hand_made(
    name: str, precision: str, steps: int, widths: Sequence[int] = (4, 8), threat: hb.ThreatModel = THREATS["Linf"]
) -> HandMade:
    settings: dict[str, Any] = {} if name in UNFIXED else {"steps": steps}
    settings |= {"burn_in": 0} if "mail" in name or "gair" in name else {}
    if get_method_spec(name).needs_teacher:
        settings["teacher"] = network(widths=widths)
    method = hb.method(name, threat, precision=precision, **settings)
    return HandMade(method.with_schedule(LATE + 1), widths)


def methods(only: str) -> Iterator[Case]:
    """Every method by hand: a step, and what one more step of its attack adds, beside the passes themselves."""
    for name in (*hb.list_methods(), "at+awp", "trades+awp", "at+adr"):
        for precision in ("model", "bf16") if name in ("at", "mail-trades") else ("bf16",):
            if only not in (case := f"{name} {precision}"):
                continue
            with SimulatedGpu() as gpu:
                seen = []
                for steps in (2, 3):
                    one = hand_made(name, precision, steps)
                    found = counted(gpu, one.step)
                    seen.append(found | {"beside": found["launches"] - counted(gpu, one.passes, 1)["launches"]})
            first, second = seen
            more = {f"{key} an attack step": second[key] - first[key] for key in ("beside", "waits")}
            yield case, first | more


def features(only: str) -> Iterator[Case]:
    """Every method by hand, where ε and bounds are given for each feature, and some are frozen or move one way."""
    for name in hb.list_methods():
        if only in name:
            with SimulatedGpu() as gpu:
                yield name, counted(gpu, hand_made(name, "model", 2, threat=PER_FEATURE).step)


def attacks(only: str) -> Iterator[Case]:
    """Every preset in every threat model: three steps of a stream of rows that are not in step."""
    for name, preset in PRESETS.items():
        for kind, threat in (THREATS | {"per feature": PER_FEATURE}).items():
            if only not in (case := f"{name} {kind}") or not preset.attack.defined_in(threat.norm):
                continue
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
            yield case, {"waits": waits, "launches": launches // 3, "where": dict(gpu.waits)}


def training(only: str) -> Iterator[Case]:
    """Steps of ``hb.train`` between two looks, with augmentation, a moving average, class weights, metrics and validation.

    Of a network with as many launches as ResNet-18 has.
    """
    torch.manual_seed(1)
    data = (255 * torch.rand(6 * BATCH, *SHAPE)).byte(), torch.arange(6 * BATCH) % CLASSES
    make_step = Trainer._train_step
    names = ("at", "mart", "mail-trades", "gairat", "fat", "mma", "free-at", "trades+awp")
    for case in ("at fp32", *(f"{name} bf16" for name in names)):
        if only not in case:
            continue
        name, precision = case.split()
        seen: list[tuple[bool, Counter[str], Counter[str]]] = []

        def step(self: Trainer, step: nn.Module, batch: Tensor, look: bool) -> None:
            gpu.reset()
            make_step(self, step, batch, look)
            seen.append((look, Counter(gpu.waits), Counter(gpu.launches)))  # noqa: B023

        with SimulatedGpu() as gpu, mock.patch.object(Trainer, "_train_step", step):
            one = hand_made(name, precision, 2, RESNET18)
            one.step()
            passes = counted(gpu, one.passes, 1)["launches"]
            hb.train(
                one.model, data, method=one.method, epochs=1, batch_size=BATCH, val_size=BATCH, val_steps=1, device="cuda",
                precision=precision, augmentation="crop-flip", ema=0.9, class_weights="balanced", quiet=True,
            )  # fmt: skip
        waits, launches = next((waits, launches) for look, waits, launches in reversed(seen) if not look)
        total = sum(launches.values())
        found = {"waits": sum(waits.values()), "launches": total, "beside": total - passes, "where": dict(waits)}
        yield case, found | {"operations": dict(launches.most_common())}


def recipes(only: str) -> Iterator[Case]:
    """Steps of ``hb.train`` with every augmentation, mixing, extra data with soft labels, other optimizers and averages."""
    torch.manual_seed(1)
    x, y = (255 * torch.rand(6 * BATCH, 3, 12, 12)).byte(), torch.arange(6 * BATCH) % CLASSES
    soft = 0.6 * torch.nn.functional.one_hot(y, CLASSES) + 0.1
    adamw = {"optimizer": "adamw", "clip_grad": 1.0, "filter_bias_and_bn": True, "ema": 0.9, "ema_warmup": True}
    cases: dict[str, dict[str, Any]] = {
        "mixed": {"mixup": 0.5, "cutmix": 1.0, "extra": (x, soft), "augmentation": "crop-flip-reflect", **adamw},
        "labels": {"extra": (x, y), "nesterov": True, "schedule": "triangular", "warmup_epochs": 0.5, "swa_start": 1},
        **{name: {"augmentation": name} for name in hb.data.AUGMENTATIONS},
    }
    make_step = Trainer._train_step
    for case, given in cases.items():
        if only not in case:
            continue
        seen: list[tuple[bool, Counter[str]]] = []

        def step(self: Trainer, step: nn.Module, batch: Tensor, look: bool) -> None:
            gpu.reset()
            make_step(self, step, batch, look)
            seen.append((look, Counter(gpu.waits)))  # noqa: B023

        with SimulatedGpu() as gpu, mock.patch.object(Trainer, "_train_step", step):
            hb.train(
                network(), (x, y), method="trades", threat=THREATS["Linf"], epochs=1, batch_size=BATCH, val_size=BATCH,
                val_steps=1, device="cuda", quiet=True, **given,
            )  # fmt: skip
        waits = next(waits for look, waits in reversed(seen) if not look)
        yield case, {"waits": sum(waits.values()), "where": dict(waits)}


def evaluation(only: str) -> Iterator[Case]:
    """A whole evaluation in each precision: that it runs, and how often it waits."""
    torch.manual_seed(1)
    data = (255 * torch.rand(2 * BATCH, *SHAPE)).byte(), torch.arange(2 * BATCH) % CLASSES
    for precision in ("model", "fp32", "tf32", "bf16"):
        if only in precision:
            with SimulatedGpu() as gpu:
                suite = ["pgd-10", "apgd-ce", "random-100"]
                some = "all" if precision == "fp32" else "cheap"
                how = {"attacks": suite, "diagnostics": some, "batch_size": BATCH, "precision": precision, "quiet": True}
                hb.evaluate(network(), data, threat=THREATS["Linf"], **how)
            waits, launches = gpu.counts
            yield precision, {"waits": waits, "launches": launches, "where": dict(gpu.waits.most_common())}


def certificates(only: str) -> Iterator[Case]:
    """Proofs by each kind of bound, and those of smoothing: how often they wait, and whether they prove what a CPU proves."""
    torch.manual_seed(1)
    x = torch.rand(BATCH, *SHAPE)
    with torch.no_grad():
        y = network(device=CPU).eval()(x).argmax(1)
    data, bounds = (x, y), ["ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"]
    each = hb.Linf(0.8 * _EACH, low=0 * _EACH, high=1 + _EACH, frozen=[0, 5])
    proofs: dict[str, Callable[[nn.Module], list[Any]]] = {
        str(threat): lambda model, threat=threat: (  # type: ignore[misc]
            hb.certify(model, data, threat=threat, methods=bounds, steps=2, branches=20, quiet=True).proved_by
        )
        for threat in (hb.Linf(0.03), hb.L2(0.25), hb.L1(0.6), each)
    }
    how = {"sigma": 1.0, "selection_draws": 10, "draws": 200, "batch_size": 50, "quiet": True}
    proofs["smoothing"] = lambda model: hb.certify_smoothed(model, data, **how).counts.tolist()
    for case, prove in proofs.items():
        if only in case:
            with SimulatedGpu() as gpu:
                there = prove(network().eval())
            waits, launches = gpu.counts
            here = prove(network(device=CPU).eval())
            yield case, {"waits": waits, "launches": launches, "there": there, "here": here, "where": dict(gpu.waits)}


GROUPS: dict[str, Callable[[str], Iterator[Case]]] = {
    one.__name__: one for one in (methods, features, attacks, training, recipes, evaluation, certificates)
}


def main() -> None:
    """Print what the group shows; of a second word, only cases that contain it."""
    torch.set_num_threads(1)
    group, only = (*sys.argv[1:], "")[:2]
    for case, found in GROUPS[group](only):
        print(json.dumps({"case": case, **found}), flush=True)
    # The simulated kernels are Python, also in autograd's threads. One that asks for Python's lock while it is being taken down
    # is ended by force, and the process then aborts ("terminate called"), although all has been printed.
    os._exit(0)


if __name__ == "__main__":
    main()
