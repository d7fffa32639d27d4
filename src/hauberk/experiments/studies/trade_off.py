"""trade-off: clean against robust accuracy, over methods and TRADES's parameter (Zhang et al. 2019; lecture notes)."""

from typing import TYPE_CHECKING

from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, said, standing
from hauberk.experiments.studies.sensitivity import LAMBDAS
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Adversarial training costs accuracy on clean data (lecture notes); a larger λ of TRADES buys robustness with more of it "
    "(Zhang et al. 2019)."
)
METHODS = ("standard", "at", "fat", "mart", "mail-at", "mail-trades")


def run(setting: Setting) -> Finding:
    """Train each, and attack them."""
    x, y = setting.examples()
    found = {
        name: standing(setting.trained(name, judged=name in ("standard", "at")), x, y, setting.threat, setting.seed)
        for name in METHODS
    }
    for lam in LAMBDAS:
        model = setting.trained("trades", beta=lam, judged=lam in (LAMBDAS[0], LAMBDAS[-1]))
        found[f"trades, λ {lam:g}"] = standing(model, x, y, setting.threat, setting.seed)
    low, high = (found[f"trades, λ {lam:g}"] for lam in (LAMBDAS[0], LAMBDAS[-1]))
    text = (
        f"adversarial against standard training, in points: clean {said(found['at'].clean, found['standard'].clean)}, stronger "
        f"attacks {said(found['at'].strong, found['standard'].strong)}; TRADES with λ {LAMBDAS[-1]:g} against "
        f"{LAMBDAS[0]:g}: clean {said(high.clean, low.clean)}, stronger attacks {said(high.strong, low.strong)}"
    )
    claims = [(found["standard"].clean, found["at"].clean), (low.clean, high.clean), (high.strong, low.strong)]
    rows = [one.row(method=name) for name, one in found.items()]
    return Finding("trade-off", f"{setting}, {len(y):,} test examples", CLAIM, text, outputs_match(claims), rows, {})


def draw(finding: Finding) -> "Figure":
    """Robust against clean accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    trades = [row for row in finding.rows if row["method"].startswith("trades")]
    axes.plot(
        [row["clean, %"] for row in trades], [row["strong, %"] for row in trades], color="0.6", marker="o", label="trades"
    )
    for row in finding.rows:
        label = row["method"].removeprefix("trades, ")
        if row not in trades:
            axes.scatter(row["clean, %"], row["strong, %"])
        axes.annotate(label, (row["clean, %"], row["strong, %"]), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure
