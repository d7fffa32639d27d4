"""restarts: how much the random start of PGD matters, for a standard and for a robust network (Madry et al. 2018, Figure 1)."""

from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.attacks import pgd
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Final losses of PGD from many random starts are concentrated, without outliers, and for adversarially trained networks "
    "far smaller than for standard ones (Madry et al. 2018, Section 3); so a few restarts find what many do."
)
STARTS, STEPS = 20, 40


def run(setting: Setting) -> Finding:
    """Attack test examples from many random starts, and compare the final losses."""
    (x, y), series = setting.examples(), {}
    rows: list[dict[str, Any]] = []
    for name in ("standard", "at"):
        model = setting.trained(name)
        losses, broken = [], []
        for start in range(STARTS):
            last = pgd(model, x, y, setting.threat, steps=STEPS, return_last=True, seed=setting.seed + 1000 * start)
            with torch.no_grad():
                losses.append(F.cross_entropy(model(last.x_adv), y, reduction="none"))
            broken.append(last.success)
        final, fooled = torch.stack(losses).double(), torch.stack(broken)
        ever, once = fooled.any(0), fooled.double().mean(0)
        rows.append(
            {
                "network": name,
                "median loss": float(final.median()),
                "median deviation over starts": float(final.std(0).median()),
                "largest over median loss of an example, median": _typical_ratio(final),
                "broken by one start, %": 100 * float(once.mean()),
                f"broken by any of {STARTS}, %": 100 * float(ever.double().mean()),
            }
        )
        series[name] = final[:, :5].T.tolist()
    standard, robust = rows
    calm, loss = robust["median deviation over starts"], robust["median loss"]
    more = [row[f"broken by any of {STARTS}, %"] - row["broken by one start, %"] for row in (standard, robust)]
    found = (
        f"median final loss {standard['median loss']:.3g} for the standard network and {loss:.3g} for the robust one, whose "
        f"deviation over {STARTS} starts is {calm:.2g}; {STARTS} starts instead of one break {more[0]:.1f} and {more[1]:.1f} "
        "points more"
    )
    agrees = calm < 0.1 * loss < 0.1 * standard["median loss"]
    return Finding("restarts", f"{setting}, {len(y):,} test examples", CLAIM, found, agrees, rows, series)


def _typical_ratio(losses: Tensor) -> float | None:
    """Return the median over examples of the largest loss over the median one; None where it cannot be told.

    Args:
        losses: (starts, examples); an example whose losses are all 0 has no such ratio.
    """
    largest, middle = losses.amax(0), losses.median(0).values
    ratio = float((largest / middle)[largest > 0].median()) if bool((largest > 0).any()) else inf
    return ratio if isfinite(ratio) else None


def draw(finding: Finding) -> "Figure":
    """Final losses of the first five examples, for both networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (name, losses) in zip(figure.subplots(1, 2), finding.series.items(), strict=True):
        for place, values in enumerate(losses):
            axes.scatter(values, [place] * len(values), s=14, alpha=0.5, linewidths=0)
        axes.set(xlabel=f"cross-entropy after {STEPS} steps", ylabel="test example", title=name)
    return figure
