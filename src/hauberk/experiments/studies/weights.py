"""weights: what slope and bias of MAIL's weights do (MAIL paper, Equation 8)."""

from typing import TYPE_CHECKING

import torch

from hauberk.attacks import pgd
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import percent, said, standing
from hauberk.experiments.studies.setting import Setting
from hauberk.weighting import effective_size, mail, probabilistic_margin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "The bias says how many examples get large weights, the slope how sharply weights change around it (Wang et al. 2021, "
    "Equation 8); 10 and -0.5 for MAIL-AT (Section 4.1)."
)
CHOICES = [(2.0, -0.5), (5.0, -0.5), (10.0, -0.5), (20.0, -0.5), (10.0, -1.0), (10.0, 0.0), (10.0, 0.5)]


def run(setting: Setting) -> Finding:
    """Train MAIL-AT with each slope and bias; attack it, and see on how many training examples the weights rest."""
    (x, y), (train_x, train_y) = setting.examples(), setting.examples("train")
    plain = standing(setting.trained("at"), x, y, setting.threat, setting.seed)
    rows = [plain.row(slope="", bias="", **{"effective examples, %": 100.0})]
    found = {}
    for slope, bias in CHOICES:
        model = setting.trained("mail-at", slope=slope, bias=bias)
        found[slope, bias] = standing(model, x, y, setting.threat, setting.seed)
        seen = pgd(model, train_x, train_y, setting.threat, seed=setting.seed)
        with torch.no_grad():
            weights = mail(probabilistic_margin(model(seen.x_adv), train_y), slope=slope, bias=bias)
        share = 100 * float(effective_size(weights))
        rows.append(found[slope, bias].row(slope=slope, bias=bias, **{"effective examples, %": share}))
    by_slope = [row["effective examples, %"] for row in rows[1:] if row["bias"] == -0.5]
    by_bias = [row["effective examples, %"] for row in sorted(rows[1:], key=lambda row: row["bias"]) if row["slope"] == 10.0]
    usual = found[10.0, -0.5]
    text = (
        f"with slopes 2, 5, 10, 20 the weights rest on {_list(by_slope)} % of the examples (effective size), with biases -1, "
        f"-0.5, 0, 0.5 on {_list(by_bias)} %; slope 10 and bias -0.5 against plain adversarial training, in points: PGD-20 "
        f"{said(usual.pgd, plain.pgd)}, stronger attacks {said(usual.strong, plain.strong)}"
    )
    verdict = by_slope == sorted(by_slope, reverse=True) and by_bias == sorted(by_bias)
    series = {"gap": {f"{s:g}, {b:g}": percent(one.pgd) - percent(one.strong) for (s, b), one in found.items()}}
    return Finding("weights", f"{setting}, {len(y):,} test examples", CLAIM, text, verdict, rows, series)


def draw(finding: Finding) -> "Figure":
    """The weight functions, and accuracies of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    curves, points = figure.subplots(1, 2)
    margins = torch.linspace(-1, 1, 101)
    for slope, bias in CHOICES:
        weights = torch.sigmoid(-slope * (margins - bias))
        curves.plot(margins.tolist(), weights.tolist(), label=f"slope {slope:g}, bias {bias:g}")
    curves.set(xlabel="probabilistic margin", ylabel="weight before normalisation")
    curves.legend(fontsize=7)
    names = ["at", *(f"{slope:g}, {bias:g}" for slope, bias in CHOICES)]
    for column in ("clean, %", "PGD-20, %", "strong, %"):
        points.plot(names, [row[column] for row in finding.rows], marker="o", label=column)
    points.tick_params(axis="x", rotation=45)
    points.set(xlabel="slope, bias")
    points.legend()
    return figure


def _list(shares: list[float]) -> str:
    return ", ".join(f"{share:.0f}" for share in shares)
