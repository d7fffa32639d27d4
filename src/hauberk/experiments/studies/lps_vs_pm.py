"""lps-vs-pm: least PGD steps take few values, and the largest hides critical examples (MAIL paper, Figures 1b and 4)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hauberk.attacks import apgd, pgd
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.setting import Setting
from hauberk.weighting import probabilistic_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "LPS takes few values; examples with the largest, which no step of PGD breaks, still contain critical ones; margins "
    "differ little between large LPS and spread widely within each (Wang et al. 2021, Section 3.1, Figures 1b and 4)."
)
STEPS = 10


def run(setting: Setting) -> Finding:
    """Measure LPS and margins of training examples, and see which of those with the largest LPS stronger attacks break."""
    model, (x, y) = setting.trained("at"), setting.examples("train")
    seen = pgd(model, x, y, setting.threat, steps=STEPS, step_size="eps/4", seed=setting.seed)
    lps = seen.lps
    with torch.no_grad():
        clean = model(x)
        margins = {"PM nat": probabilistic_margin(clean, y), "PM adv": probabilistic_margin(model(seen.x_adv), y)}
    stronger = [apgd(model, x, y, setting.threat, loss=loss, seed=setting.seed).success for loss in ("ce", "dlr-targeted")]
    critical = (lps == STEPS) & torch.stack(stronger).any(0)
    rows = [_row(value, lps, critical, margins) for value in range(STEPS + 1) if bool((lps == value).any())]
    last = lps == STEPS
    share = 100 * float(critical.sum() / last.sum()) if bool(last.any()) else 0.0
    between, within = _spread(lps, margins["PM nat"])
    explained = 100 * between / (between + within)
    found = (
        f"{100 * float(last.double().mean()):.0f} % of {len(y):,} training examples have the largest LPS, {STEPS}; stronger "
        f"attacks (APGD on cross-entropy, and targeted) break {share:.1f} % of these. LPS explains {explained:.0f} % of the "
        "variance of PM nat"
    )
    series = {"lps": lps.tolist(), "critical": critical.tolist(), **{name: m.tolist() for name, m in margins.items()}}
    agrees = None if not bool(last.any()) else bool(critical.any())
    return Finding("lps-vs-pm", f"{setting}, {len(y):,} of them looked at", CLAIM, found, agrees, rows, series)


def draw(finding: Finding) -> "Figure":
    """How many examples have each LPS, the critical ones marked; and box plots of PM nat for each."""
    from matplotlib.figure import Figure

    lps, critical = torch.tensor(finding.series["lps"]), torch.tensor(finding.series["critical"])
    margins = torch.tensor(finding.series["PM nat"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    bars, boxes = figure.subplots(1, 2)
    counts = lps.bincount(minlength=STEPS + 1)
    bars.bar(range(STEPS + 1), counts.tolist(), color="0.75", label="all")
    bars.bar([STEPS], [int(critical.sum())], color="C3", label="broken by stronger attacks")
    bars.set(xlabel="LPS", ylabel="training examples")
    bars.legend()
    there = [value for value in range(STEPS + 1) if counts[value]]
    boxes.boxplot(
        [margins[lps == value].tolist() for value in there], positions=there, whis=(5, 95), flierprops={"markersize": 2}
    )
    boxes.set(xlabel="LPS", ylabel="PM nat")
    return figure


def _row(value: int, lps: Tensor, critical: Tensor, margins: dict[str, Tensor]) -> dict[str, object]:
    some = lps == value
    low, middle, high = (float(margins["PM nat"][some].quantile(q)) for q in (0.25, 0.5, 0.75))
    return {
        "LPS": value,
        "examples": int(some.sum()),
        "critical": int(critical[some].sum()) if value == STEPS else "",
        "PM nat, lower quartile": low,
        "median": middle,
        "upper quartile": high,
        "median PM adv": float(margins["PM adv"][some].median()),
    }


def _spread(groups: Tensor, values: Tensor) -> tuple[float, float]:
    """Variance of the groups' means, and mean variance within the groups."""
    between = within = 0.0
    for value in groups.unique():
        some = values[groups == value].double()
        between += len(some) / len(values) * float((some.mean() - values.double().mean()) ** 2)
        within += len(some) / len(values) * float(some.var(correction=0))
    return between, max(within, 1e-12)
