"""Peak memory of a training step beside that of the passes alone, each in a process of its own (CPU).

    python benchmarks/memory.py

Prints a table for docs/performance.md; what the interpreter and torch take before is not counted.
"""

import resource
import subprocess
import sys

import torch
from steps import Floor, ours

from hauberk.models import ModelSpec

BATCH, REPEATS = 64, 4
METHODS = ("at", "trades", "mart", "at+awp")


def peak(kind: str, method: str, precision: str) -> float:
    """Of a few steps, in MiB; in this process."""
    torch.set_num_threads(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory_format = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = ModelSpec("resnet18", (3, 32, 32), 10).build().to(memory_format=memory_format).train()
    x, y = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    if kind == "floor":
        # The optimiser's momentum, and the gradients, are needed in any case.
        kept = [torch.ones_like(p) for p in model.parameters()]
        floor = Floor(model, precision)
        for _ in range(REPEATS):
            floor(method, x, y)
        assert kept
    else:
        step = ours(method, precision, model)
        for _ in range(REPEATS):
            step(x, y)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure and print."""
    if len(sys.argv) == 4:
        print(peak(*sys.argv[1:]))
        return
    print("| method | precision | passes alone, MiB | Hauberk, MiB | ratio |\n|---|---|---|---|---|")
    for method in METHODS:
        for precision in ("fp32", "bf16"):
            found = []
            for kind in ("floor", "step"):
                words = [sys.executable, __file__, kind, method, precision]
                found.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
            print(f"| `{method}` | {precision} | {found[0]:.0f} | {found[1]:.0f} | {found[1] / found[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
