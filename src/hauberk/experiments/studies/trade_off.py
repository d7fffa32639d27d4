"""Studies of what robustness costs, over methods and over the trade-off parameter."""

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from hauberk.core.figures import column_figure, error_bars, line_style, plot_lines, put_legend, same_limits
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, SHORT, strong_caption
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
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
        {"epochs": epoch_curves(context, variants)},
        caption=f"{ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION}",
    )


def _best_less_worst(masks: Tensor) -> Tensor:
    """Return the difference (S, N) of the best and the worst of masks (K, S, N), by their shares in each seed."""
    shares, seeds = masks.double().mean(2), torch.arange(masks.shape[1])
    return masks[shares.argmax(0).cpu(), seeds].double() - masks[shares.argmin(0).cpu(), seeds].double()


def draw_beta_sensitivity(result: StudyResult) -> Figure:
    """Accuracies over β on one scale, and PGD accuracy over epochs for each β."""
    figure, plots = column_figure((1.4, 1.25, 1.25, 1.75, 1.4))
    names = ("mart", "trades")
    for axes, column in zip(plots, ACCURACIES, strict=False):
        rows = {name: [row for row in result.rows if row["method"] == name] for name in names}
        series = {name.upper(): [row[column] for row in some] for name, some in rows.items()}
        errors = {name.upper(): [row[error_of(column)] for row in some] for name, some in rows.items()}
        plot_lines(axes, BETAS, series, errors, xlabel="β", ylabel=SHORT[column] + ", %", xscale="log")
        axes.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend().remove()
    put_legend(plots[0])
    same_limits(plots[:3])
    for axes, name in zip(plots[3:], names, strict=True):
        curves = {f"β {beta:g}": result.series["epochs"][f"{name}, β {beta:g}"] for beta in BETAS}
        draw_epochs(axes, curves, "PGD", columns=4, ylabel=f"{name.upper()}: PGD, %")
    plots[4].legend().remove()
    same_limits(plots[3:])
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
        caption=f"{ERRORS_CAPTION} {strong_caption(context)} The line joins TRADES with β "
        f"{', '.join(f'{beta:g}' for beta in BETAS)}.",
    )


def draw_trade_off(result: StudyResult) -> Figure:
    """Robust against clean accuracy."""
    figure, (axes,) = column_figure((3.0,))
    trades = [row for row in result.rows if row["method"].startswith("trades")]
    others = [row for row in result.rows if row not in trades]
    for k, rows in enumerate([trades, *([row] for row in others)]):
        clean, robust = [row["clean, %"] for row in rows], [row["strong, %"] for row in rows]
        reach = [error_bars([row[name] for row in rows]) for name in ("clean ±", "strong ±")]
        style = line_style(k) | {"linestyle": "-" if k == 0 else "", "linewidth": 0.8, "elinewidth": 0.5}
        label = "TRADES over β" if k == 0 else rows[0]["method"]
        axes.errorbar(clean, robust, xerr=reach[0], yerr=reach[1], markersize=5, label=label, **style)
    for row, corner in ((trades[0], (4, -8)), (trades[-1], (4, 4))):
        label = row["method"].removeprefix("trades, ")
        axes.annotate(label, (row["clean, %"], row["strong, %"]), textcoords="offset points", xytext=corner, fontsize=6.5)
    axes.margins(0.12)
    axes.set(xlabel="clean accuracy, %", ylabel="accuracy under stronger attacks, %")
    put_legend(axes)
    return figure
