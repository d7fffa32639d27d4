"""The active test on honest networks and on defences that only hide: do attacks find what was planted?

    python benchmarks/active_test.py --checkpoints FOLDER --data-dir FOLDER --cifar FOLDER --table german_credit.npz

Prints a row for each model: what was measured with suite `quick`, and the verdict. Takes two minutes on a CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from broken_defences import BROKEN, Defence
from common import Options, first, parse, print_head, print_row, when
from networks import CHECKPOINTS, load_checkpoint
from torch import Tensor, nn

import hauberk as hb

NAME = "attacks-find-planted-examples"


@dataclass(frozen=True)
class Tested(Options):
    """What is tested."""

    checkpoints: Path = Path("checkpoints")
    """Folder of published networks."""
    cifar: Path = Path("data")
    """Folder of CIFAR-10."""
    table: Path = Path("german_credit.npz")
    """Arrays x (N, D) and y (N,) of a table."""
    test: int = 60
    """Examples."""


def honest(options: Tested) -> Iterator[tuple[str, nn.Module, tuple[Tensor, Tensor], hb.ThreatModel]]:
    """Networks without a defence but their training, with data and threat model."""
    everything = torch.arange(options.test)
    mnist = first("mnist", "test", options.data_dir, options.test).fetch(everything)
    cifar = first("cifar10", "test", options.cifar, options.test).fetch(everything)
    for name, data, eps in (("trades", mnist, 0.3), ("convex", mnist, 0.1), ("wong", mnist, 0.3), ("cnn-a", cifar, "2/255")):
        yield CHECKPOINTS[name].file, load_checkpoint(name, options.checkpoints), data, hb.Linf(eps)
    digits = [hb.data.load_data("digits", split) for split in ("train", "test")]
    run = hb.train("small-cnn", digits[0], method="standard", threat=hb.Linf(0.1), epochs=5, quiet=True)
    yield "small CNN, undefended, digits", run.model, digits[1].fetch(everything), hb.Linf(0.1)
    with np.load(options.table, allow_pickle=False) as arrays:
        x, y = torch.from_numpy(arrays["x"]).float(), torch.from_numpy(arrays["y"]).long()
    x = (x - x.amin(0)) / (x.amax(0) - x.amin(0)).clamp_min(1e-6)
    run = hb.train("mlp", (x[:800], y[:800]), method="at", threat=hb.Linf(0.05), epochs=10, quiet=True)
    yield "MLP, AT, German credit", run.model, (x[800 : 800 + options.test], y[800 : 800 + options.test]), hb.Linf(0.05)


def tested(model: nn.Module, data: tuple[Tensor, Tensor], threat: hb.ThreatModel, **how: Any) -> tuple[str, str, str]:
    """What the active test finds, with suite `quick` unless told otherwise: missed, verdict, and the robust accuracy."""
    found = hb.evaluate(model, data, threat=threat, diagnostics=[NAME], quiet=True, **how)
    robust = f"{100 * found.robust_accuracy:.1f}"
    said = [(d.measured.partition(" miss ")[2].partition(" adversarial")[0], d.verdict) for d in found.diagnostics]
    return (*said[0], robust) if said else ("nothing to be planted", "", robust)


def main() -> None:
    """Test all models."""
    options = parse(Tested)
    print(when(options.threads))
    print_head("model", "missed", "verdict", "robust, quick")
    for name, model, data, threat in honest(options):
        print_row(name, *tested(model, data, threat))
    mnist = first("mnist", "test", options.data_dir, options.test).fetch(torch.arange(options.test))
    net = load_checkpoint("convex", options.checkpoints)
    for name, (rule, how) in BROKEN.items():
        print_row(f"BROKEN {name}", *tested(Defence(net, rule), mnist, hb.Linf(0.15), **how))
    for name in ("jpeg", "quantised", "gradient at the data only", "flipped gradient"):
        defence = Defence(net, BROKEN[name][0])
        print_row(f"{name}, bpda= the network", *tested(defence, mnist, hb.Linf(0.15), bpda=net))
    print_row(
        "logits x 1000, pgd-20 alone",
        *tested(Defence(net, BROKEN["logits x 1000"][0]), mnist, hb.Linf(0.15), attacks=["pgd-20"]),
    )


if __name__ == "__main__":
    main()
