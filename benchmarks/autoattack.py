"""Hauberk's AutoAttack beside the official one (PyPI ``pyautoattack``): same network, images, machine, one run.

    python benchmarks/autoattack.py fast_adversarial_mnist_fgsm.pth --data-dir FOLDER --n 1000

FILE is the MNIST network of Wong et al. (2020), or one of the same shape. Prints a table for docs/results.md.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from networks import small_net
from torch import Tensor, nn

import hauberk as hb
from hauberk.provenance import machine


class Counter:
    """Counts the examples that go forward through a model, and backward."""

    def __init__(self, model: nn.Module):
        self.forwards = self.backwards = 0
        model.register_forward_hook(self._forward)

    def _forward(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._backward)

    def _backward(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def official(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> tuple[float, float]:
    """Robust accuracy and seconds of the official code, with its own batch size."""
    from pyautoattack import AutoAttack

    begun = time.perf_counter()
    attack = AutoAttack(model, eps=eps, norm="Linf", seed=seed, version="standard")
    adversarial, _ = attack.run_standard_evaluation(x, y)
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        return float((model(adversarial).argmax(1) == y).float().mean()), seconds


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING)
    model = hb.load(options.file, model=small_net()).eval()
    x, y = hb.data.load_data("mnist", "test", options.data_dir).fetch(torch.arange(options.n))
    print(f"{options.file.name}, Linf {options.eps}, first {options.n} images, {machine(torch.device('cpu'))}")
    print("| seed | | robust % | seconds | forwards | backwards | forwards per robust example |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for name in ("official", "Hauberk"):
            counter = Counter(model)
            if name == "official":
                robust, seconds = official(model, x, y, options.eps, seed)
            else:
                begun = time.perf_counter()
                result = hb.evaluate(model, (x, y), threat=hb.Linf(options.eps), suite="standard", seed=seed, quiet=True)
                robust, seconds = result.robust_accuracy, time.perf_counter() - begun
            passes = f"{counter.forwards:,} | {counter.backwards:,} | {counter.forwards / max(robust * options.n, 1):,.0f}"
            print(f"| {seed} | {name} | {100 * robust:.1f} | {seconds:.1f} | {passes} |", flush=True)
            model._forward_hooks.clear()


if __name__ == "__main__":
    main()
