"""Hauberk's AutoAttack beside the official one (PyPI ``pyautoattack``): same network, images, machine, one run.

    python benchmarks/autoattack.py fast_adversarial_mnist_fgsm.pth --data-dir FOLDER --limit 1000

FILE is the MNIST network of Wong et al. (2020), or one of the same shape. Both may use all cores: the official code by
threads, Hauberk as it likes best, by processes of one thread, too. Seconds are those of the evaluation alone, without imports.
Prints a table for docs/results.md.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import print_head, print_row, where
from networks import small_net
from torch import Tensor, nn

import hauberk as hb
from hauberk.core.distributed import init_distributed

WAYS = (("fp32", 1), ("fp32", 0), ("bf16", 1), ("bf16", 0))  # precision and processes, 0: as many as threads


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


def ours(options: argparse.Namespace, precision: str, processes: int, seed: int) -> tuple[float, float, int, int]:
    """Robust accuracy, seconds and passes of Hauberk, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        world = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), __file__, str(options.file)]
        settings = {
            "--data-dir": options.data_dir,
            "--eps": options.eps,
            "--limit": options.limit,
            "--seeds": seed,
            "--ours": found,
            "--precision": precision,
            "--threads": options.threads // processes,
        }
        subprocess.run(world + [str(word) for pair in settings.items() for word in pair], check=True, capture_output=True)
        robust, seconds, forwards, backwards = json.loads(found.read_text())
    return robust, seconds, forwards, backwards


def one_of_ours(options: argparse.Namespace, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """What each process of Hauberk's does."""
    with init_distributed() as world:
        world.all_gather_object(None)  # all begin at once
        begun = time.perf_counter()
        threat, seed, precision = hb.Linf(options.eps), options.seeds[0], options.precision
        result = hb.evaluate(model, (x, y), threat=threat, suite="standard", seed=seed, precision=precision, quiet=True)
        found = [result.robust_accuracy, time.perf_counter() - begun, *result.provenance["passes"].values()]
        if world.is_main:
            options.ours.write_text(json.dumps(found))


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING)
    model = hb.load(options.file, model=small_net()).eval()
    x, y = hb.data.load_data("mnist", "test", options.data_dir).fetch(torch.arange(options.limit))
    if options.ours:
        one_of_ours(options, model, x, y)
        return
    print(f"{options.file.name}, Linf {options.eps}, first {options.limit} images, {where()}")
    print_head("seed", "", "robust %", "seconds", "of official", "forwards", "backwards", "forwards per robust example")

    def row(seed: int, name: str, robust: float, seconds: float, forwards: int, backwards: int) -> None:
        each = f"{forwards / max(robust * options.limit, 1):,.0f}"
        print_row(seed, name, 100 * robust, seconds, f"{seconds / base:.2f}", f"{forwards:,}", f"{backwards:,}", each)

    for seed in options.seeds:
        counter = Counter(model)
        robust, base = official(model, x, y, options.eps, seed)
        row(seed, f"official, {options.threads} threads", robust, base, counter.forwards, counter.backwards)
        model._forward_hooks.clear()
        for precision, processes in dict.fromkeys((p, many or options.threads) for p, many in WAYS):
            name = f"Hauberk, {precision}, {processes} processes of {options.threads // processes} threads"
            row(seed, name, *ours(options, precision, processes, seed))


if __name__ == "__main__":
    main()
