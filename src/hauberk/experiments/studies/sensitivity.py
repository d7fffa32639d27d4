"""lambda: how much the trade-off parameter matters to MART and to TRADES (MART paper, Section 3.1)."""

from typing import TYPE_CHECKING

from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, percent, standing
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "For λ from 1/2 to 50, MART is always more robust than TRADES, and varies less (Wang et al. 2020, Section 3.1)."
LAMBDAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
METHODS = ("mart", "trades")


def run(setting: Setting) -> Finding:
    """Train both with each λ, and attack them."""
    x, y = setting.examples()
    found = {
        (name, lam): standing(setting.trained(name, beta=lam), x, y, setting.threat, setting.seed)
        for name in METHODS
        for lam in LAMBDAS
    }
    robust = {name: [percent(found[name, lam].pgd) for lam in LAMBDAS] for name in METHODS}
    strong = {name: [percent(found[name, lam].strong) for lam in LAMBDAS] for name in METHODS}
    spread = {name: max(values) - min(values) for name, values in robust.items()}
    ahead, truly = (sum(a > b for a, b in zip(*way.values(), strict=True)) for way in (robust, strong))
    text = (
        f"MART is ahead for {ahead} of {len(LAMBDAS)} values of λ under PGD-20, and for {truly} under the stronger attacks; "
        f"over λ PGD-20 accuracy varies by {spread['mart']:.1f} points for MART and {spread['trades']:.1f} for TRADES"
    )
    verdict = outputs_match([(found["mart", lam].pgd, found["trades", lam].pgd) for lam in LAMBDAS])
    if spread["mart"] > spread["trades"]:
        verdict = False
    rows = [one.row(method=name, λ=lam) for (name, lam), one in found.items()]
    return Finding("lambda", f"{setting}, {len(y):,} test examples", CLAIM, text, verdict, rows, {})


def draw(finding: Finding) -> "Figure":
    """Accuracies over λ."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, column in zip(figure.subplots(1, 3, sharey=True), ("clean, %", "PGD-20, %", "strong, %"), strict=True):
        for name in METHODS:
            rows = [row for row in finding.rows if row["method"] == name]
            axes.semilogx([row["λ"] for row in rows], [row[column] for row in rows], marker="o", label=name)
        axes.set(xlabel="λ", title=column)
    axes.legend()
    return figure
