"""Training steps beside the public code's, and beside the passes alone: same weights, batch, ε, K, machine; one run.

    python benchmarks/steps.py --threads 2

Alternates all of them, and prints a table of medians of ratios for docs/performance.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
import tyro
from common import method_at_once, print_head, print_row, where
from library_steps import libraries
from public_steps import EPS, STEPS, steps
from torch import Tensor, nn

import hauberk as hb
from hauberk.fastpath.frozen_copy import InferenceCopy
from hauberk.fastpath.precision import Compiled, PrecisionPolicy
from hauberk.models import ModelSpec


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
    """Times each step is made."""
    forms: tuple[str, ...] = ("fp32", "bf16")
    """Of Hauberk's steps: fp32, bf16, fp32+compile, bf16+compile."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Where."""


class Floor:
    """The passes that a step cannot do without, alone, in the fastest form known."""

    def __init__(self, model: nn.Module, form: str):
        precision, _, compiled = form.partition("+")
        self.model, self.autocast = model, PrecisionPolicy(precision).autocast  # type: ignore[arg-type]
        copy = InferenceCopy(model, torch.bfloat16 if precision == "bf16" else None)
        self.copy = Compiled(copy) if compiled else copy

    def __call__(self, method: str, x: Tensor, y: Tensor) -> None:
        """K passes to the input, a clean one for KL, and the loss's; AWP goes twice through the weights."""
        for _ in range(STEPS):
            point = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.copy(point), y), point)
        parts = hb.method(method, hb.Linf(EPS))
        if getattr(parts.attack, "loss", "") == "kl":
            with torch.no_grad():
                self.copy(x)
        for _ in range(1 if parts.weight_perturbation is None else 2):
            with self.autocast(x):
                logits = [self.model(x) for _ in parts.needs]
            loss = torch.stack([F.cross_entropy(z.float(), y) for z in logits]).sum()
            torch.autograd.grad(loss, list(self.model.parameters()))


def ours(method: str, form: str, model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """Hauberk's step, as the training loop makes it."""
    precision, _, compiled = form.partition("+")
    bound = method_at_once(method, hb.Linf(EPS), steps=STEPS, precision=precision, compiled=bool(compiled))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        out = bound(model, x, y)
        out.loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    x, y = torch.rand(options.batch, 3, 32, 32, device=device), torch.randint(10, (options.batch,), device=device)
    weights = ModelSpec(options.model, (3, 32, 32), 10).build().state_dict()

    def network(last: bool = False) -> nn.Module:
        net = ModelSpec(options.model, (3, 32, 32), 10).build()
        net.load_state_dict(weights)
        return net.to(device, memory_format=torch.channels_last if last else torch.contiguous_format).train()

    def seconds(step: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    print(f"{options.model}, batch {options.batch}, K {STEPS}, {options.threads} threads, {where(options.device)}")
    print_head("method", "form", "Hauberk, s", "of the floor", "public code, s", "times as fast")
    public = steps(network())
    others = libraries(network(), tuple(x.shape[1:]), 10, options.batch)
    beside = []
    for method in options.methods:
        candidates: dict[str, Callable[[], object]] = {}
        if method in public:
            candidates["public"] = lambda m=method: public[m](x, y)
        candidates |= {name: (lambda step=step: step(x, y)) for name, step in others.get(method, {}).items()}
        for form in options.forms:
            last = form.startswith("bf16")
            step, floor = ours(method, form, network(last)), Floor(network(last), form)
            candidates[form] = lambda step=step: step(x, y)
            candidates[f"floor {form}"] = lambda floor=floor, m=method: floor(m, x, y)
        spent: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(options.rounds + 1):
            for name, step in candidates.items():
                spent[name].append(seconds(step))
        times = {name: values[1:] for name, values in spent.items()}  # the first warms up
        for form in options.forms:
            above = median(a / b for a, b in zip(times[form], times[f"floor {form}"], strict=True))
            theirs, faster = "–", "–"
            if method in public:
                theirs = f"{median(times['public']):.3f}"
                faster = f"{median(a / b for a, b in zip(times['public'], times[form], strict=True)):.2f}"
            print_row(f"`{method}`", form, f"{median(times[form]):.3f}", f"{above:.2f}", theirs, faster)
            for name in others.get(method, {}):
                faster = f"{median(a / b for a, b in zip(times[name], times[form], strict=True)):.2f}"
                beside.append((f"`{method}`", name, f"{median(times[name]):.3f}", form, faster))
    print()
    print_head("method", "library", "its step, s", "Hauberk's form", "times as fast")
    for row in beside:
        print_row(*row)


if __name__ == "__main__":
    main()
