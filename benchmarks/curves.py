"""Curves of robust accuracy against ε beside attacks of a given ε, on networks of published checkpoints.

    python benchmarks/curves.py --checkpoints FOLDER --data-dir FOLDER --only wong-Linf

At each ε of the grid, the examples that the curve calls robust are attacked again, from other random draws, by the attacks of
that ε (APGD-CE, then APGD-T; in L0 PGD and sigma-zero): how many of all examples they break is how far the curve is too high.
Prints rows of a table for docs/results.md.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from common import first, print_head, print_row, when
from networks import CHECKPOINTS, load_checkpoint
from torch import nn

import hauberk as hb
from hauberk.attacks import find_attack, run_attack
from hauberk.attacks.presets import AttackLike
from hauberk.data import fetch_for
from hauberk.evaluation.curve import WITHIN_L0
from hauberk.evaluation.robustness_curve import RobustnessCurve
from hauberk.threat import make_threat

OTHER_SEED = 1


CASES = {  # by network, the norm and an ε in the middle of its curve
    "wong-Linf": "0.3", "wong-L2": "1.5", "trades-Linf": "0.3", "trades-L2": "1.5", "convex-Linf": "0.1", "convex-L2": "1.5",
    "cnn-a-Linf": "4/255", "cnn-a-L2": "0.5", "cnn-a-L1": "5", "cnn-a-L0": "8", "wong-L1": "8", "wong-L0": "8",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Measure curves, and how much attacks of a given ε break beyond them."""

    checkpoints: Path
    """Folder of the checkpoints."""
    data_dir: Path = Path("data")
    """Folder of the data."""
    out: Path = Path("runs/curves")
    """Folder of the curves, which are not measured twice."""
    only: tuple[str, ...] = tuple(CASES)
    """Networks and norms."""
    n: Annotated[int, tyro.conf.arg(aliases=("--limit",))] = 100
    """Number of examples."""
    every: int = 2
    """Attack again at every so many-th ε."""
    threads: int = 1
    """CPU threads."""


def main(options: Options) -> None:
    """Measure."""
    torch.set_num_threads(options.threads)
    print(when(options.threads))
    print_head("network", "norm", "n", "CPU s", "passes an example", "ε: curve %, beyond it %", "largest")
    for case in options.only:
        name, norm = case.rsplit("-", 1)
        threat, model = make_threat(norm, CASES[case]), load_checkpoint(name, options.checkpoints)
        test = first(CHECKPOINTS[name].data, "test", options.data_dir, options.n)
        begun = time.process_time()
        curve = hb.robustness_curve(model, test, threat=threat, out=options.out / f"{case}-{options.n}", quiet=True)
        seconds = time.process_time() - begun
        x, y = fetch_for(model, test, torch.arange(len(test)))
        beyond = {eps: broken_beyond(model, x, y, threat, curve, eps) for eps in curve.eps[options.every - 1 :: options.every]}
        points = [
            f"{curve.eps_name(eps)}: {100 * curve.robust_accuracy(eps):.0f}, {100 * more / curve.n:.0f}"
            for eps, more in beyond.items()
        ]
        passes = sum(curve.provenance["passes"].values()) / curve.n
        print_row(name, norm, curve.n, seconds, f"{passes:,.0f}", "; ".join(points), 100 * max(beyond.values()) / curve.n)


def broken_beyond(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, threat: hb.ThreatModel, curve: RobustnessCurve, eps: float
) -> int:
    """Count the examples that attacks of this ε break and the curve does not."""
    rows = torch.from_numpy(curve.distances > eps).nonzero().squeeze(1)
    within = threat.scaled(eps / float(threat.eps))
    attacks: list[AttackLike] = [*WITHIN_L0, "sigma-zero-1000"] if threat.norm.p == 0 else ["apgd-ce", "apgd-t"]
    broken = 0
    for one in attacks:
        if len(rows):
            attack, _ = find_attack(one)[1].adapted(within, 10)
            found = run_attack(attack, model, x[rows], y[rows], within, seed=OTHER_SEED).success
            broken, rows = broken + int(found.sum()), rows[~found]
    return broken


if __name__ == "__main__":
    main(tyro.cli(Options))
