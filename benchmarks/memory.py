"""Peak memory of a training step beside that of the passes alone: what tensors take, counted allocation by allocation.

    python benchmarks/memory.py

Prints a table for docs/performance.md. The peak of the process is larger and noisier: it has the interpreter in it, torch's own
code (its optimisers load 70 MiB of it), and what the allocator of the C library keeps.
"""

import torch
import tyro
from common import print_head, print_row
from steps import Floor, ours
from torch.profiler import ProfilerActivity, profile

from hauberk.models import ModelSpec

BATCH, STEPS = 32, 2
METHODS = ("at", "trades", "mart", "mail-trades", "gairat", "at+awp")


def peak(kind: str, method: str, precision: str) -> float:
    """Of two steps, model and optimiser included, in MiB."""
    memory_format = torch.channels_last if precision == "bf16" else torch.contiguous_format
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = ModelSpec("resnet18", (3, 32, 32), 10).build().to(memory_format=memory_format).train()
        x, y = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        if kind == "floor":
            momentum = [torch.ones_like(p) for p in model.parameters()]  # is needed in any case
            floor = Floor(method, precision, model)
            for _ in range(STEPS):
                floor(x, y)
            del momentum
        else:
            step = ours(method, precision, model)
            for _ in range(STEPS):
                step(x, y)
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(torch.tensor(sizes).cumsum(0).max()) / 2**20


def main() -> None:
    """Measure and print peak memory of a training step beside that of the passes alone."""
    torch.set_num_threads(1)
    print_head("method", "precision", "passes alone, MiB", "Hauberk, MiB", "ratio")
    for method in METHODS:
        for precision in ("fp32", "bf16"):
            floor, step = (peak(kind, method, precision) for kind in ("floor", "step"))
            print_row(f"`{method}`", precision, f"{floor:.0f}", f"{step:.0f}", f"{step / floor:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
