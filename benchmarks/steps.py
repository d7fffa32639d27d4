"""Training steps beside the public code's, and beside the passes alone: same weights, batch, ε, K, machine; one run.

    python benchmarks/steps.py --threads 2

Alternates all of them, and prints a table of medians of ratios for docs/performance.md. gpu.py measures the same on a GPU.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from common import method_at_once, print_head, print_row, where
from library_steps import libraries
from public_steps import EPS, STEPS, Step, steps
from torch import Tensor, nn

import hauberk as hb
from hauberk.fastpath.frozen_copy import InferenceCopy
from hauberk.fastpath.precision import DTYPES, Compiled, PrecisionPolicy
from hauberk.models import ModelSpec

SHAPE, CLASSES = (3, 32, 32), 10
HEAD = ("public code, {}", "Hauberk, {}", "times as fast", "of the floor")
BLOCK, MOST = 0.3, 20  # seconds of steps in a row between two waits for the device, and how many at most


@dataclass(frozen=True)
class Options:
    """What to measure."""

    methods: tuple[str, ...] = ("at", "mart", "mail-at", "trades", "mail-trades", "gairat", "at+awp")
    """Methods."""
    model: str = "resnet18"
    """Network, on 3×32×32."""
    batch: int = 32
    """Examples."""
    rounds: int = 5
    """Times each step is timed."""
    forms: tuple[str, ...] = ("fp32", "bf16")
    """Of Hauberk's steps: fp32, tf32 or bf16, each perhaps with +compile."""
    threads: int = 2
    """CPU threads."""


class Floor:
    """The passes that a step of a method cannot do without, alone, in the fastest form known."""

    def __init__(self, method: str, form: str, model: nn.Module):
        precision, _, compiled = form.partition("+")
        self.model, self.autocast = model, PrecisionPolicy(precision).autocast  # type: ignore[arg-type]
        copy = InferenceCopy(model, DTYPES[precision])  # type: ignore[index]
        self.copy = Compiled(copy) if compiled else copy
        parts = hb.method(method, hb.Linf(EPS))
        self.steps, self.see_clean = getattr(parts.attack, "steps", 0), getattr(parts.attack, "loss", "") == "kl"
        self.of_loss, self.times = len(parts.needs), 1 if parts.weight_perturbation is None else 2

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """K passes to the input, a clean one for KL, and the loss's; AWP goes twice through the weights."""
        for _ in range(self.steps):
            point = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.copy(point), y), point)
        if self.see_clean:
            with torch.no_grad():
                self.copy(x)
        for _ in range(self.times):
            with self.autocast(x):
                logits = [self.model(x) for _ in range(self.of_loss)]
            loss = torch.stack([F.cross_entropy(z.float(), y) for z in logits]).sum()
            torch.autograd.grad(loss, list(self.model.parameters()))


def ours(method: str, form: str, model: nn.Module) -> Step:
    """Hauberk's step, as the training loop makes it."""
    precision, _, compiled = form.partition("+")
    bound = method_at_once(method, hb.Linf(EPS), precision=precision, compiled=bool(compiled))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        out = bound(model, x, y, 0)
        out.loss.backward()
        optimizer.step()

    return step


def compared(method: str, form: str, model: str, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Time Hauberk's step in one form ("ours"), its "floor", the "public" code's, and those of other libraries, in turns.

    Returns:
        By side: "seconds" of a step, one for each round; and on CUDA "mib", the peak above what lay there before, and "waits",
        how often the host waits for the device in a step.
    """
    torch.manual_seed(0)
    x, y = torch.rand(batch, *SHAPE, device=device), torch.randint(CLASSES, (batch,), device=device)
    spec = ModelSpec(model, SHAPE, CLASSES + hb.method(method, hb.Linf(EPS)).extra_outputs)
    weights = spec.build().state_dict()

    def network(as_is: bool = True) -> nn.Module:
        net = spec.build()
        net.load_state_dict(weights)
        return net.to(device, memory_format=torch.contiguous_format if as_is else torch.channels_last).train()

    as_is = not form.startswith("bf16")
    sides = {"ours": ours(method, form, network(as_is)), "floor": Floor(method, form, network(as_is))}
    if method in (public := steps(network())):
        sides["public"] = public[method]
    sides |= libraries(network(), SHAPE, CLASSES, batch).get(method, {})

    def measure(side: str, what: Callable[..., Any], *how: Any) -> Any:
        # What is not Hauberk's runs as its users run it, with torch's own switches.
        with hb.float32_mode(form.partition("+")[0] if side in ("ours", "floor") else "model"):
            return what(partial(sides[side], x, y), *how)

    times = {}
    for side in sides:
        measure(side, _block, 1, device)  # compiles and warms up
        times[side] = max(1, min(MOST, int(BLOCK / measure(side, _block, 1, device)[0])))
    rows = [{side: measure(side, _block, times[side], device) for side in sides} for _ in range(rounds)]
    found: dict[str, Any] = {"seconds": {side: [row[side][0] for row in rows] for side in sides}}
    if device.type == "cuda":
        found["mib"] = {side: max(row[side][1] for row in rows) for side in sides}
        found["waits"] = {side: measure(side, _waits) for side in sides}
    return found


def _waits(step: Callable[[], None]) -> int:
    """How often the host waits for a CUDA device in a step, as far as torch sees it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def _block(step: Callable[[], None], times: int, device: torch.device) -> tuple[float, float]:
    """Seconds of one of some steps in a row, after which the device is waited for once; and their peak memory in MiB."""
    cuda, before = device.type == "cuda", 0
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    begun = time.perf_counter()
    for _ in range(times):
        step()
    if cuda:
        torch.cuda.synchronize(device)
    spent = (time.perf_counter() - begun) / times
    return spent, (torch.cuda.max_memory_allocated(device) - before) / 2**20 if cuda else 0.0


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of the seconds of one side by those of another."""
    return median(first / second for first, second in zip(seconds[a], seconds[b], strict=True))


def cells(seconds: dict[str, list[float]], unit: float = 1.0) -> list[str]:
    """Return what HEAD names, times in so many seconds."""
    beside = (
        [f"{median(seconds['public']) / unit:.3f}", f"{ratio(seconds, 'public', 'ours'):.2f}"] if "public" in seconds else "––"
    )
    return [beside[0], f"{median(seconds['ours']) / unit:.3f}", beside[1], f"{ratio(seconds, 'ours', 'floor'):.2f}"]


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    print(f"{options.model}, batch {options.batch}, K {STEPS}, {options.threads} threads, {where()}")
    print_head("method", "form", *(name.format("s") for name in HEAD))
    beside = []
    for method in options.methods:
        for form in options.forms:
            seconds = compared(method, form, options.model, options.batch, options.rounds, torch.device("cpu"))["seconds"]
            print_row(f"`{method}`", form, *cells(seconds))
            for side in seconds.keys() - {"ours", "floor", "public"}:
                beside.append(
                    (f"`{method}`", side, f"{median(seconds[side]):.3f}", form, f"{ratio(seconds, side, 'ours'):.2f}")
                )
    print()
    print_head("method", "library", "its step, s", "Hauberk's form", "times as fast")
    for row in beside:
        print_row(*row)


if __name__ == "__main__":
    main()
