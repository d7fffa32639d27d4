"""Studies of what PGD's path and its random starts say of an example."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn

from hauberk.attacks import AttackResult, lm_pgd, pgd
from hauberk.core.figures import COLOURS, FAINT, INK, column_figure, plot_lines, put_legend
from hauberk.core.random import ExampleRng
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, number_or_none, number_text, only, sentence

PATH_STEPS = 50
PATHS: dict[str, Callable[..., AttackResult]] = {"PGD": pgd, "LM-PGD": lm_pgd}
STARTS, START_STEPS = 20, 40
SHOWN, MANY = 5, 500  # examples of the picture, and starts for each of them


def path_dependence(context: StudyContext) -> StudyResult:
    """Attack test examples by PGD and LM-PGD from the same starts, and compare the steps they need."""
    x, y = context.examples()
    lps: dict[str, list[Tensor]] = {name: [] for name in PATHS}
    correct, curves, shown = [], {}, 0
    for _, one, model in context.networks({"at": Variant("at")}):
        with torch.no_grad():
            correct.append(model(x).argmax(1) == y)
        for name, attack in PATHS.items():
            lps[name].append(attack(model, x, y, context.threat, steps=PATH_STEPS, seed=one.seed).lps)
        if one.seed == context.seed:
            # Of those that are right, the one that PGD needs most more steps for: one that it is stuck at, if there is one.
            more = (lps["PGD"][0] - lps["LM-PGD"][0]).where(correct[0], -PATH_STEPS - 1)
            shown = int(more.argmax())
            curves = {name: _path_losses(name, model, x, y, shown, one) for name in PATHS}
    right, steps = torch.stack(correct), {name: torch.stack(some) for name, some in lps.items()}
    ours, others = steps.values()
    broken = right & ((ours < PATH_STEPS) | (others < PATH_STEPS))
    stuck = {name: broken & (some == PATH_STEPS) for name, some in steps.items()}
    differ = only(broken, ours != others)
    return StudyResult(
        f"of {int(right.sum())} examples (of all seeds) that are right without an attack, PGD-{PATH_STEPS} takes "
        f"{int(stuck['PGD'].sum())} for robust that LM-PGD breaks, and LM-PGD {int(stuck['LM-PGD'].sum())} that PGD breaks; "
        f"either breaks {int(broken.sum())}, of which the least number of steps differs for "
        f"{number_text(100 * float(differ.nanmean()))} %",
        [
            sentence("the least number of steps that breaks an example differs between PGD and LM-PGD", differ),
            sentence("PGD takes examples for robust that LM-PGD breaks", only(right, stuck["PGD"])),
        ],
        [_path_row(name, some, right, stuck[name]) for name, some in steps.items()],
        {
            "shown": shown,
            "stuck": bool(stuck["PGD"][0, shown]),
            "steps": {name: int(some[0, shown]) for name, some in steps.items()},
            "losses": curves,
            "lps": {name: some[0][right[0]].tolist() for name, some in steps.items()},
        },
        caption="Above: one example of the first seed, that which PGD needs most more steps for; the ring is the first step "
        "after "
        "which it is misclassified. Below: least number of steps (LPS) of the examples of the first seed that are right "
        "without "
        "an attack; the area of a circle is their number.",
    )


def _path_row(name: str, steps: Tensor, right: Tensor, stuck: Tensor) -> dict[str, Any]:
    """Describe one attack; all are (S, N)."""
    those = steps[right & (steps < PATH_STEPS)].double()
    cells = accuracies({"broken, %": only(right, steps < PATH_STEPS), "stuck, %": only(right, stuck)})
    return {"attack": name, "examples": int(right.sum()), "median LPS of the broken": _median(those), **cells}


def _median(values: Tensor) -> float | None:
    return number_or_none(float(values.nanmedian())) if len(values) else None


def _path_losses(name: str, model: nn.Module, x: Tensor, y: Tensor, shown: int, context: StudyContext) -> list[float]:
    """Cross-entropy of one example after 1, 2, ... steps along the same path."""
    one_x, one_y = x[shown : shown + 1], y[shown : shown + 1]
    start = ExampleRng(context.seed, torch.tensor([shown], device=x.device))  # the same as among the others
    losses = []
    for steps in range(1, PATH_STEPS + 1):
        last = PATHS[name](model, one_x, one_y, context.threat, steps=steps, return_last=True, seed=start).x_adv
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(last), one_y)))
    return losses


def draw_path_dependence(result: StudyResult) -> Figure:
    """Loss over steps for one example, and LPS of one attack against that of the other."""
    figure, (curves, cloud) = column_figure((2.0, 2.6))
    plot_lines(curves, range(1, PATH_STEPS + 1), result.series["losses"], xlabel="after step", ylabel="cross-entropy")
    for k, (name, losses) in enumerate(result.series["losses"].items()):
        step = result.series["steps"][name]
        look: dict[str, Any] = {"markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.2}
        if 0 < step < PATH_STEPS:
            curves.plot([step], [losses[step - 1]], marker="o", color=COLOURS[k], **look)
    number = result.series["shown"]
    told = {name: "not broken" if step == PATH_STEPS else f"{step} steps" for name, step in result.series["steps"].items()}
    found = "PGD is stuck" if result.series["stuck"] else "PGD is stuck at none"
    title = f"test example {number} ({found}):\n" + ", ".join(f"{name} {what}" for name, what in told.items())
    curves.set_title(title, pad=16)
    put_legend(curves)
    pairs = Counter(zip(result.series["lps"]["PGD"], result.series["lps"]["LM-PGD"], strict=True))
    cloud.plot([0, PATH_STEPS], [0, PATH_STEPS], color=FAINT, zorder=0)
    if pairs:
        x, y = zip(*pairs, strict=True)
        each = min(8.0, 800 / max(pairs.values()))  # the largest circle stays inside the axes
        sizes = [each * count for count in pairs.values()]
        cloud.scatter(x, y, s=sizes, facecolor="none", edgecolor=COLOURS[0], linewidths=0.8)
        for place, count in pairs.items():
            if each * count > 60:  # room for its number
                cloud.annotate(f"{count}", place, ha="center", va="center", fontsize=6)
    ticks = [0, 1, 2, 5, 10, 20, PATH_STEPS]  # most examples need few steps
    cloud.set(xlabel="LPS by PGD", ylabel="LPS by LM-PGD")
    for axis, scale in ((cloud.xaxis, cloud.set_xscale), (cloud.yaxis, cloud.set_yscale)):
        scale("symlog", linthresh=1, linscale=0.3)
        axis.set_ticks(ticks, [*map(str, ticks[:-1]), "not\nbroken"])
        axis.set_minor_locator(NullLocator())
    cloud.margins(0.15)
    return figure


def restarts(context: StudyContext) -> StudyResult:
    """Attack test examples from many random starts, and compare the final losses."""
    x, y = context.examples()
    variants = {name: Variant(name) for name in ("standard", "at")}
    losses: dict[str, list[Tensor]] = {name: [] for name in variants}
    broken: dict[str, list[Tensor]] = {name: [] for name in variants}
    shown: dict[str, list[list[float]]] = {}
    for name, one, model in context.networks(variants):
        final, fooled = [], []
        for start in range(STARTS):
            last = pgd(model, x, y, context.threat, steps=START_STEPS, return_last=True, seed=one.seed + 1000 * start)
            with torch.no_grad():
                final.append(F.cross_entropy(model(last.x_adv), y, reduction="none"))
            fooled.append(last.success)
        shown.setdefault(name, _many_losses(model, x[:SHOWN], y[:SHOWN], one))
        losses[name].append(torch.stack(final, 1).double())
        broken[name].append(torch.stack(fooled, 1))
    seen = {name: _Restarts(torch.stack(losses[name]), torch.stack(broken[name])) for name in variants}
    standard, robust = seen["standard"], seen["at"]
    said = [
        sentence(f"{_HALF} of the standard network's", standard.mean / 2 - robust.mean, "nats"),
        sentence("they vary less over starts than the standard network's", standard.deviation - robust.deviation, "nats"),
        sentence(
            "they are concentrated: over starts they vary by less than a tenth", robust.mean / 10 - robust.deviation, "nats"
        ),
        sentence(f"without outliers (a start with twice the median loss: below {NOTHING:g} %)", NOTHING / 100 - robust.outlier),
        sentence(f"one start breaks as many as {STARTS} (less than {NOTHING:g} point fewer)", NOTHING / 100 - robust.more),
    ]
    medians, spreads = ([float(some.median()) for some in (one.mean, one.deviation)] for one in (standard, robust))
    return StudyResult(
        f"median final loss {medians[0]:.3g} for the standard network and {spreads[0]:.3g} for the robust one; deviation over "
        f"{STARTS} starts (median) {medians[1]:.2g} and {spreads[1]:.2g}; of {MANY} starts for each of {len(shown['at'])} "
        "examples "
        f"{_outliers(shown['standard'])} and {_outliers(shown['at'])} have over twice the median loss of their example",
        said,
        [one.row(name) for name, one in seen.items()],
        shown,
        caption=f"Final losses (cross-entropy after {START_STEPS} steps of PGD) of {MANY} random starts for each of the first "
        "test examples, a row each; first seed. One scale; counts are logarithmic.",
    )


def _many_losses(model: nn.Module, x: Tensor, y: Tensor, context: StudyContext) -> list[list[float]]:
    """Final losses of some examples from many starts, a list for each example."""
    losses = []
    for number, (one_x, one_y) in enumerate(zip(x.split(1), y.split(1), strict=True)):
        many_x, many_y = one_x.expand(MANY, *one_x.shape[1:]), one_y.expand(MANY)
        last = pgd(
            model, many_x, many_y, context.threat, steps=START_STEPS, return_last=True, seed=context.seed + 7919 * (number + 1)
        )
        with torch.no_grad():
            losses.append(F.cross_entropy(model(last.x_adv), many_y, reduction="none").double().tolist())
    return losses


def _outliers(losses: list[list[float]]) -> str:
    """Return how many of the losses of each example are more than twice its median, as a share of all."""
    over = [loss > 2 * median(some) for some in losses for loss in some]
    return f"{100 * sum(over) / len(over):.1f} %"


_HALF = "final losses of the robust network are far smaller: less than half"


@dataclass(frozen=True, eq=False)
class _Restarts:
    """Final losses of a network and which starts succeed, (S, N, starts)."""

    losses: Tensor
    broken: Tensor

    @property
    def mean(self) -> Tensor:
        """Over starts, (S, N)."""
        return self.losses.mean(2)

    @property
    def deviation(self) -> Tensor:
        """Over starts, (S, N)."""
        return self.losses.std(2)

    @property
    def outlier(self) -> Tensor:
        """Whether a start has more than twice the median loss, (S, N)."""
        return (self.losses.amax(2) > 2 * self.losses.median(2).values).double()

    @property
    def more(self) -> Tensor:
        """Whether any start succeeds, less the share of those that do, (S, N)."""
        return self.broken.any(2).double() - self.broken.double().mean(2)

    def row(self, name: str) -> dict[str, Any]:
        """Return a row of the table."""
        relative = (self.deviation / self.mean).flatten()
        return {
            "network": name,
            "median loss": float(self.losses.median()),
            "median deviation over starts": float(self.deviation.median()),
            "deviation over mean loss, median": _median(relative.where(relative.isfinite(), torch.nan)),
            **accuracies(
                {
                    "with an outlier, %": self.outlier,
                    "broken by one start, %": self.broken.double().mean(2),
                    f"broken by any of {STARTS}, %": self.broken.any(2),
                }
            ),
        }


def draw_restarts(result: StudyResult) -> Figure:
    """Histograms of the final losses of some examples from many starts, for both networks on one scale."""
    count = max(len(losses) for losses in result.series.values())
    figure, plots = column_figure([0.85] * count, sharex=True)
    highest = max((max(some) for losses in result.series.values() for some in losses), default=0.0)
    edges = [k * (1.02 * highest or 1.0) / 60 for k in range(61)]
    for number, axes in enumerate(plots):
        for k, (name, losses) in enumerate(result.series.items()):
            look: dict[str, Any] = {
                "histtype": "stepfilled",
                "alpha": 0.75,
                "color": COLOURS[k],
                "hatch": "" if k else "////",
                "edgecolor": INK,
            }
            axes.hist(losses[number], bins=edges, label=name, linewidth=0.4, **look)
        axes.set(yscale="log", ylim=(0.5, 2 * MANY), yticks=(1, 10, 100), xlim=(0, None), ylabel=f"example {number}")
    plots[-1].set_xlabel(f"cross-entropy after {START_STEPS} steps")
    put_legend(plots[0])
    return figure
