"""Studies of what robustness costs, over methods and over the trade-off parameter."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hauberk.experiments.figures import error_bars, new_figure, plot_lines
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import ACCURACIES, error_of, trained_masks
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, percent, sentence

BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def beta_sensitivity(context: StudyContext) -> StudyResult:
    """Train MART and TRADES with each β."""
    variants = {f"{name}, β {beta:g}": Variant(name, {"beta": beta}) for name in ("mart", "trades") for beta in BETAS}
    found = trained_masks(context, variants)
    ours, others = (torch.stack([found[f"{name}, β {beta:g}"].pgd for beta in BETAS]) for name in ("mart", "trades"))
    varied = _best_less_worst(others) - _best_less_worst(ours)
    said = [
        sentence(f"at β {beta:g} MART is more robust than TRADES", gain(one, other))
        for beta, one, other in zip(BETAS, ours, others, strict=True)
    ]
    said.append(sentence("over β MART varies less (best less worst PGD-20 accuracy of TRADES, less that of MART)", varied))
    ahead = sum(percent(one) > percent(other) for one, other in zip(ours, others, strict=True))
    return StudyResult(
        f"MART's mean is above TRADES' for {ahead} of {len(BETAS)} values of β under PGD-20; over β it varies by "
        f"{percent(_best_less_worst(ours)):.1f} points, TRADES' by {percent(_best_less_worst(others)):.1f}",
        said,
        [found[name].row(method=one.method, β=one.hyperparameters["beta"]) for name, one in variants.items()],
    )


def _best_less_worst(masks: Tensor) -> Tensor:
    """Return the difference (S, N) of the best and the worst of masks (K, S, N), by their shares in each seed."""
    shares, seeds = masks.double().mean(2), torch.arange(masks.shape[1])
    return masks[shares.argmax(0).cpu(), seeds].double() - masks[shares.argmin(0).cpu(), seeds].double()


def draw_beta_sensitivity(result: StudyResult) -> Figure:
    """Accuracies over β."""
    figure, plots = new_figure(3, 9, sharey=True)
    for axes, column in zip(plots, ACCURACIES, strict=True):
        rows = {name: [row for row in result.rows if row["method"] == name] for name in ("mart", "trades")}
        series = {name: [row[column] for row in some] for name, some in rows.items()}
        errors = {name: [row[error_of(column)] for row in some] for name, some in rows.items()}
        plot_lines(axes, BETAS, series, errors, xlabel="β", title=column, xscale="log")
    return figure


def trade_off(context: StudyContext) -> StudyResult:
    """Train several methods, and TRADES with each β."""
    names, ends = ("standard", "at", "fat", "mart", "mail-at", "mail-trades"), (BETAS[0], BETAS[-1])
    variants = {name: Variant(name, decides=name in ("standard", "at")) for name in names}
    variants |= {f"trades, β {beta:g}": Variant("trades", {"beta": beta}, decides=beta in ends) for beta in BETAS}
    found = trained_masks(context, variants)
    low, high = (found[f"trades, β {beta:g}"] for beta in ends)
    robust, standard = found["at"], found["standard"]
    return StudyResult(
        f"without an attack standard training has {percent(standard.clean):.1f} % right, adversarial training "
        f"{percent(robust.clean):.1f} %; under the stronger attacks {percent(standard.strong):.1f} and "
        f"{percent(robust.strong):.1f} %",
        [
            sentence("adversarial training costs clean accuracy", gain(standard.clean, robust.clean)),
            sentence(f"β {ends[1]:g} in TRADES has less clean accuracy than {ends[0]:g}", gain(low.clean, high.clean)),
            sentence(f"β {ends[1]:g} in TRADES is more robust than {ends[0]:g}", gain(high.strong, low.strong)),
        ],
        [one.row(method=name) for name, one in found.items()],
    )


def draw_trade_off(result: StudyResult) -> Figure:
    """Robust against clean accuracy."""
    figure, (axes,) = new_figure(height=5)
    trades = [row for row in result.rows if row["method"].startswith("trades")]
    places = [row["clean, %"] for row in trades], [row["strong, %"] for row in trades]
    axes.plot(*places, color="0.6", marker="o", label="trades")
    for row in result.rows:
        place, label = (row["clean, %"], row["strong, %"]), row["method"].removeprefix("trades, ")
        axes.errorbar(*place, xerr=error_bars([row["clean ±"]]), yerr=error_bars([row["strong ±"]]), color="0.8", zorder=0)
        if row not in trades:
            axes.scatter(*place)
        axes.annotate(label, place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure
