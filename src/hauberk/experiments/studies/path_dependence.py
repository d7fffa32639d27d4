"""path-dependence: the least number of PGD steps depends on the attack (MAIL paper, Figure 1a)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.attacks import AttackResult, lm_pgd, pgd
from hauberk.core.random import ExampleRng
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "LPS depends on the attack's path: PGD gets stuck and takes an example for robust that LM-PGD, from the same start, breaks "
    "(Wang et al. 2021, Section 3.1, Figure 1a). LM-PGD is our construction, as the paper's is not public."
)
STEPS = 50
ATTACKS: dict[str, Callable[..., AttackResult]] = {"PGD": pgd, "LM-PGD": lm_pgd}


def run(setting: Setting) -> Finding:
    """Attack test examples by PGD and LM-PGD from the same starts, and compare the steps they need."""
    model, (x, y) = setting.trained("at"), setting.examples()
    lps = {name: ATTACKS[name](model, x, y, setting.threat, steps=STEPS, seed=setting.seed).lps for name in ATTACKS}
    with torch.no_grad():
        right = model(x).argmax(1) == y
    ours, others = lps["PGD"][right], lps["LM-PGD"][right]
    stuck = (ours == STEPS) & (others < STEPS)
    differ = (ours != others) & ((ours < STEPS) | (others < STEPS))
    broken = (ours < STEPS) | (others < STEPS)
    rows = [_row(name, steps[right], broken) for name, steps in lps.items()]
    # One that PGD is stuck at, else one that is right; of a network that has nothing right, the first.
    places = right.nonzero().squeeze(1)
    shown = int(next(iter([*places[stuck], *places, 0])))
    series = {
        "shown": shown,
        "losses": {name: _losses(name, model, x, y, shown, setting) for name in ATTACKS},
        "lps": {name: steps[right].tolist() for name, steps in lps.items()},
    }
    share = 100 * float(differ.double().sum() / max(int(broken.sum()), 1))
    other_way = int(((others == STEPS) & (ours < STEPS)).sum())
    found = (
        f"of {int(right.sum())} examples that are right without an attack, PGD-{STEPS} takes {int(stuck.sum())} for robust "
        f"that LM-PGD breaks, and LM-PGD {other_way} that PGD breaks; for {share:.0f} % of the {int(broken.sum())} that either "
        "breaks, the least number of steps differs"
    )
    agrees = bool(stuck.any()) if bool(broken.any()) else None
    return Finding("path-dependence", str(setting), CLAIM, found, agrees, rows, series)


def draw(finding: Finding) -> "Figure":
    """Loss over steps for one example, and LPS of one attack against that of the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    curves, cloud = figure.subplots(1, 2)
    for name, losses in finding.series["losses"].items():
        curves.plot(range(len(losses)), losses, label=name)
    curves.set(xlabel="step", ylabel="cross-entropy", title=f"test example {finding.series['shown']}")
    curves.legend()
    lps = finding.series["lps"]
    cloud.plot([0, STEPS], [0, STEPS], color="0.8", zorder=0)
    cloud.scatter(lps["PGD"], lps["LM-PGD"], s=12, alpha=0.4, linewidths=0)
    cloud.set(xlabel="LPS by PGD", ylabel="LPS by LM-PGD", title=f"{STEPS}: not broken")
    return figure


def _row(name: str, steps: Tensor, broken: Tensor) -> dict[str, Any]:
    """Of one attack; ``broken`` (N,) says which examples either breaks."""
    those = steps[steps < STEPS].double()
    return {
        "attack": name,
        "examples": len(steps),
        "broken, %": 100 * len(those) / max(len(steps), 1),
        "median LPS of the broken": float(those.median()) if len(those) else "",
        "stuck, %": 100 * int(((steps == STEPS) & broken).sum()) / max(len(steps), 1),
    }


def _losses(name: str, model: nn.Module, x: Tensor, y: Tensor, shown: int, setting: Setting) -> list[float]:
    """Cross-entropy of one example after 1, 2, ... steps along the same path."""
    one_x, one_y = x[shown : shown + 1], y[shown : shown + 1]
    start = ExampleRng(setting.seed, torch.tensor([shown], device=x.device))  # the same as among the others
    losses = []
    for steps in range(1, STEPS + 1):
        last = ATTACKS[name](model, one_x, one_y, setting.threat, steps=steps, return_last=True, seed=start).x_adv
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(last), one_y)))
    return losses
