"""transfer: perturbations crafted on one network, tried on another (black-box tables of MART; MAIL, Section 4.1)."""

from typing import TYPE_CHECKING, Any

import torch

from hauberk.attacks import pgd
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, percent
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Black-box attacks are relatively easy to defend against (Wang et al. 2021, Section 4.1), by robust networks."
NETWORKS = ("standard", "at", "trades", "mart", "mail-trades")


def run(setting: Setting) -> Finding:
    """Craft PGD-20 on each network, and try it on every one."""
    x, y = setting.examples()
    models = {name: setting.trained(name) for name in NETWORKS}
    stands, rows = {}, []
    for source, crafted_on in models.items():
        last = pgd(crafted_on, x, y, setting.threat, steps=20, step_size="eps/10", return_last=True, seed=setting.seed).x_adv
        with torch.no_grad():
            for target, model in models.items():
                stands[source, target] = (model(last).argmax(1) == y) & (model(x).argmax(1) == y)
        row: dict[str, Any] = {"crafted on": source}
        rows.append(row | {f"{target}, %": percent(stands[source, target]) for target in models})
    robust = NETWORKS[1:]
    pairs = [(stands[a, b], stands[b, b]) for a in NETWORKS for b in robust if a != b]
    worst = {b: min((percent(stands[a, b]), a) for a in NETWORKS if a != b) for b in robust}
    least = ", ".join(
        f"{b} {share:.1f} % (from {a}), white-box {percent(stands[b, b]):.1f} %" for b, (share, a) in worst.items()
    )
    fooled = max(percent(stands[a, "standard"]) for a in robust)
    text = f"the worst transferred PGD-20 leaves {least}; the standard network keeps at most {fooled:.1f} % of any robust one's"
    return Finding("transfer", f"{setting}, {len(y):,} test examples", CLAIM, text, outputs_match(pairs), rows, {})


def draw(finding: Finding) -> "Figure":
    """The matrix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    shares = [[row[f"{target}, %"] for target in NETWORKS] for row in finding.rows]
    axes.imshow(shares, vmin=0, vmax=100, cmap="viridis")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            axes.text(j, i, f"{share:.0f}", ha="center", va="center", color="white" if share < 60 else "black")
    axes.set(xticks=range(len(NETWORKS)), xticklabels=NETWORKS, yticks=range(len(NETWORKS)), yticklabels=NETWORKS)
    axes.set(xlabel="tried on", ylabel="crafted on", title="still right, %")
    axes.tick_params(axis="x", rotation=30)
    return figure
