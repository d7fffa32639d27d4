"""Studies of what PGD's path and its random starts say of an example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import AttackResult, lm_pgd, pgd
from hauberk.core.random import ExampleRng
from hauberk.experiments.figures import new_figure, plot_lines
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, number_or_none, number_text, only, sentence

PATH_STEPS = 50
PATHS: dict[str, Callable[..., AttackResult]] = {"PGD": pgd, "LM-PGD": lm_pgd}
STARTS, START_STEPS = 20, 40


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
            # One that PGD is stuck at, else one that is right; of a network that has nothing right, the first.
            stuck_there = correct[0] & (lps["PGD"][0] == PATH_STEPS) & (lps["LM-PGD"][0] < PATH_STEPS)
            shown = int(next(iter([*stuck_there.nonzero().squeeze(1), *correct[0].nonzero().squeeze(1), 0])))
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
            "losses": curves,
            "lps": {name: some[0][right[0]].tolist() for name, some in steps.items()},
        },
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
    figure, (curves, cloud) = new_figure(2, 9)
    title = f"test example {result.series['shown']}, {'PGD is stuck' if result.series['stuck'] else 'PGD is stuck at none'}"
    steps = range(1, PATH_STEPS + 1)
    plot_lines(curves, steps, result.series["losses"], xlabel="after step", ylabel="cross-entropy", title=title)
    lps = result.series["lps"]
    cloud.plot([0, PATH_STEPS], [0, PATH_STEPS], color="0.8", zorder=0)
    cloud.scatter(lps["PGD"], lps["LM-PGD"], s=12, alpha=0.4, linewidths=0)
    cloud.set(xlabel="LPS by PGD", ylabel="LPS by LM-PGD", title=f"{PATH_STEPS}: not broken")
    return figure


def restarts(context: StudyContext) -> StudyResult:
    """Attack test examples from many random starts, and compare the final losses."""
    x, y = context.examples()
    variants = {name: Variant(name) for name in ("standard", "at")}
    losses: dict[str, list[Tensor]] = {name: [] for name in variants}
    broken: dict[str, list[Tensor]] = {name: [] for name in variants}
    for name, one, model in context.networks(variants):
        final, fooled = [], []
        for start in range(STARTS):
            last = pgd(model, x, y, context.threat, steps=START_STEPS, return_last=True, seed=one.seed + 1000 * start)
            with torch.no_grad():
                final.append(F.cross_entropy(model(last.x_adv), y, reduction="none"))
            fooled.append(last.success)
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
        f"{STARTS} starts (median) {medians[1]:.2g} and {spreads[1]:.2g}",
        said,
        [one.row(name) for name, one in seen.items()],
        {name: one.losses[0, :5].tolist() for name, one in seen.items()},
    )


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
    """Final losses of the first five examples of the first seed, for both networks."""
    figure, plots = new_figure(2, 9)
    for axes, (name, losses) in zip(plots, result.series.items(), strict=True):
        for place, values in enumerate(losses):
            axes.scatter(values, [place] * len(values), s=14, alpha=0.5, linewidths=0)
        axes.set(
            xlabel=f"cross-entropy after {START_STEPS} steps", ylabel="test example", title=name, yticks=range(len(losses))
        )
    right = max(axes.get_xlim()[1] for axes in plots)  # one scale, or the smaller losses look as large
    for axes in plots:
        axes.set_xlim(0, right)
    return figure
