"""Studies of attacks: what PGD's path, steps and starts say of an example, what transfers, and how perturbations look."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import AttackResult, apgd, frozen_model, lm_pgd, logit_margin, pgd
from hauberk.core.random import ExampleRng
from hauberk.experiments.figures import COLOURS, image_grid, new_figure, plot_lines
from hauberk.experiments.studies.base import (
    NOTHING,
    StudyContext,
    StudyResult,
    Variant,
    accuracies,
    difference_of,
    mean_and_error,
    number_or_none,
    number_text,
    only,
    percent,
    sentence,
)
from hauberk.weighting import probabilistic_margin

PATH_STEPS = 50
PATHS: dict[str, Callable[..., AttackResult]] = {"PGD": pgd, "LM-PGD": lm_pgd}
LPS_STEPS = 10
_LEAST_IN_A_GROUP = 10  # examples of an LPS in each seed, before its spread is judged
STARTS, START_STEPS = 20, 40
NETWORKS = ("standard", "at", "trades", "mart", "mail-trades")  # of the matrix of transfers
FACTORS = (1.0, 2.0, 4.0)  # of ε
EXPLAINED = ("standard", "at", "trades", "mart")  # networks whose gradients are shown


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


def lps_vs_pm(context: StudyContext) -> StudyResult:
    """Measure LPS and margins of training examples, and see which of those with the largest LPS stronger attacks break."""
    x, y = context.examples("train")
    found: dict[str, list[Tensor]] = {name: [] for name in ("lps", "critical", "PM nat", "PM adv")}
    for _, one, model in context.networks({"at": Variant("at")}):
        seen = pgd(model, x, y, context.threat, steps=LPS_STEPS, step_size="eps/4", seed=one.seed)
        with torch.no_grad():
            for name, at in (("PM nat", x), ("PM adv", seen.x_adv)):
                found[name].append(probabilistic_margin(model(at), y).double())
        stronger = [apgd(model, x, y, context.threat, loss=loss, seed=one.seed).success for loss in ("ce", "dlr-targeted")]
        found["lps"].append(seen.lps)
        found["critical"].append((seen.lps == LPS_STEPS) & torch.stack(stronger).any(0))
    lps, critical, nat, adv = (torch.stack(some) for some in found.values())
    last, usual = lps == LPS_STEPS, _group_means(nat, lps)
    variance = nat.var(1, correction=0, keepdim=True).clamp_min(1e-12)
    unexplained = (nat - usual).square() / variance  # of the variance of PM nat, what LPS leaves
    large = (lps > LPS_STEPS // 2) & (lps < LPS_STEPS)
    among = _group_means(nat, large.long())
    differ = only(large, ((nat - usual).square() - (usual - among).square()) / variance)
    said = [
        sentence(f"examples with the largest LPS, {LPS_STEPS}, contain critical ones", only(last, critical)),
        sentence(f"of LPS {LPS_STEPS // 2 + 1} to {LPS_STEPS - 1}, PM nat varies less between than within", differ),
    ]
    for value in range(LPS_STEPS + 1):
        if bool(((lps == value).sum(1) >= _LEAST_IN_A_GROUP).all()):
            spread = only(lps == value, unexplained - 0.5)
            said.append(sentence(f"PM nat spreads widely within LPS {value} (over half its variance over all)", spread))
    return StudyResult(
        f"{percent(last):.0f} % of {len(y):,} training examples have the largest LPS, {LPS_STEPS}; stronger attacks (APGD on "
        f"cross-entropy, and targeted) break {number_text(100 * float(only(last, critical).nanmean()))} % of these. LPS "
        f"explains {100 * (1 - float(unexplained.mean())):.0f} % of the variance of PM nat",
        said,
        [_lps_row(int(value), lps == value, critical, nat, adv) for value in lps.unique()],
        {name: some[0].tolist() for name, some in found.items()},
        about=f"{len(y):,} of them looked at",
    )


def _group_means(values: Tensor, group: Tensor) -> Tensor:
    """Return for each of values (S, N) the mean of its group (S, N) in its row."""
    same = torch.nn.functional.one_hot(group).double()
    means = (same * values[:, :, None]).sum(1) / same.sum(1).clamp_min(1)
    return means.gather(1, group)


def _lps_row(value: int, some: Tensor, critical: Tensor, nat: Tensor, adv: Tensor) -> dict[str, Any]:
    low, middle, high = (float(nat[some].quantile(q)) for q in (0.25, 0.5, 0.75))
    return {
        "LPS": value,
        "examples": int(some.sum()),
        "critical": int(critical[some].sum()) if value == LPS_STEPS else "",
        "PM nat, lower quartile": low,
        "median": middle,
        "upper quartile": high,
        "median PM adv": float(adv[some].median()),
    }


def draw_lps_vs_pm(result: StudyResult) -> Figure:
    """How many examples have each LPS, the critical ones marked; and box plots of PM nat for each."""
    lps, margins = torch.tensor(result.series["lps"]), torch.tensor(result.series["PM nat"])
    figure, (bars, boxes) = new_figure(2, 9)
    counts = lps.bincount(minlength=LPS_STEPS + 1)
    bars.bar(range(LPS_STEPS + 1), counts.tolist(), color="0.75", label="all")
    bars.bar([LPS_STEPS], [sum(result.series["critical"])], color=COLOURS[1], label="broken by stronger attacks")
    bars.set(xlabel="LPS", ylabel="training examples")
    bars.legend()
    there = lps.unique().tolist()
    groups = [margins[lps == value].tolist() for value in there]
    boxes.boxplot(groups, positions=there, whis=(5, 95), flierprops={"markersize": 2})
    boxes.set(xlabel="LPS", ylabel="PM nat")
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


def transfer(context: StudyContext) -> StudyResult:
    """Craft PGD-20 on each network, and try it on every one of its seed."""
    x, y = context.examples()
    models = {(one.seed, name): model for name, one, model in context.networks({name: Variant(name) for name in NETWORKS})}
    found: dict[tuple[str, str], list[Tensor]] = {(a, b): [] for a in NETWORKS for b in NETWORKS}
    for (seed, source), crafted_on in models.items():
        made = pgd(crafted_on, x, y, context.threat, steps=20, step_size="eps/10", return_last=True, seed=seed)
        with torch.no_grad():
            for target in NETWORKS:
                model = models[seed, target]
                found[source, target].append((model(made.x_adv).argmax(1) == y) & (model(x).argmax(1) == y))
    robust = {pair: torch.stack(some) for pair, some in found.items()}
    trained = NETWORKS[1:]
    worst = {b: min((percent(robust[a, b]), a) for a in NETWORKS if a != b) for b in trained}
    least = "; ".join(
        f"'{b}' keeps {left:.1f} % (from '{a}'; own {percent(robust[b, b]):.1f} %)" for b, (left, a) in worst.items()
    )
    kept = max(percent(robust[a, "standard"]) for a in trained)
    return StudyResult(
        f"under the worst PGD-20 from another network {least}; under those from robust networks 'standard' keeps at most "
        f"{kept:.1f} %",
        [
            sentence(f"'{b}' keeps more under PGD-20 from '{a}' than under its own", difference_of(robust[a, b], robust[b, b]))
            for b, (_, a) in worst.items()
        ],
        [{"crafted on": a, **{f"{b}, %": percent(robust[a, b]) for b in NETWORKS}} for a in NETWORKS],
    )


def draw_transfer(result: StudyResult) -> Figure:
    """The matrix of accuracies."""
    figure, (axes,) = new_figure(height=5)
    matrix = [[row[f"{target}, %"] for target in NETWORKS] for row in result.rows]
    axes.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
    for i, row in enumerate(matrix):
        for j, accuracy in enumerate(row):
            axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color="white" if accuracy < 60 else "black")
    axes.set(xticks=range(len(NETWORKS)), xticklabels=NETWORKS, yticks=range(len(NETWORKS)), yticklabels=NETWORKS)
    axes.grid(False)
    axes.set(xlabel="tried on", ylabel="crafted on", title="still right, %")
    axes.tick_params(axis="x", rotation=30)
    return figure


def large_epsilon(context: StudyContext) -> StudyResult:
    """Attack by PGD-40 at multiples of ε, and ask a judge without gradients which class the result looks like.

    The judge is the vote of the five nearest training examples, in pixels: no network, so nothing transfers to it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = context.examples()
    source = context.base.load_data("train")
    train_x, train_y = source.fetch(torch.arange(min(len(source), 10_000)))
    judge = KNeighborsClassifier(5).fit(train_x.flatten(1).cpu().numpy(), train_y.cpu().numpy())
    variants = {name: Variant(name) for name in ("standard", "at")}
    images = {"clean": x[:4].cpu().tolist()}
    masks: dict[tuple[str, float], list[tuple[Tensor, ...]]] = {(name, factor): [] for name in variants for factor in FACTORS}
    for name, one, model in context.networks(variants):
        for factor in FACTORS:
            threat = context.threat.scaled(factor)
            x_adv = pgd(model, x, y, threat, steps=40, step_size="eps/10", return_last=True, seed=one.seed).x_adv
            with torch.no_grad():
                taken_for = model(x_adv).argmax(1)
            looks = torch.as_tensor(judge.predict(x_adv.flatten(1).cpu().numpy()), device=y.device)
            masks[name, factor].append((taken_for != y, looks == taken_for, looks == y))
        images.setdefault(name, x_adv[:4].cpu().tolist())
    rows: list[dict[str, Any]] = []
    seen_as = {}
    for (name, factor), some in masks.items():
        fooled, alike, own = (torch.stack(parts) for parts in zip(*some, strict=True))
        seen_as[name] = only(fooled, alike)  # at the largest factor, in the end
        shares = {"misclassified, %": fooled, "looks like that class, %": seen_as[name], "still like its own, %": own}
        rows.append({"network": name, "times ε": factor, **accuracies(shares)})
    right = 100 * judge.score(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    robust, standard = (number_text(100 * float(seen_as[name].nanmean())) for name in ("at", "standard"))
    return StudyResult(
        f"at {FACTORS[-1]:g} ε, to a judge by nearest neighbours ({right:.0f} % right on clean examples), {robust} % of the "
        f"robust network's misclassified perturbations look like the class they are taken for, and {standard} % of the "
        "standard one's",
        [
            sentence("most made on a robust network look like the class they are taken for (over half)", seen_as["at"] - 0.5),
            sentence("and more than of those made on a standard network", difference_of(seen_as["at"], seen_as["standard"])),
        ],
        rows,
        {"images": images},
    )


def draw_large_epsilon(result: StudyResult) -> Figure:
    """Some examples, and what the largest perturbation makes of them on both networks."""
    return image_grid(result.series["images"])


def saliency(context: StudyContext) -> StudyResult:
    """Take the gradient of the logit margin ``z_y - max_{k≠y} z_k`` to the input, and measure how much it resembles the input.

    Alignment (after Etmann et al. 2019) is ``|⟨x - mean, g⟩| / (‖x - mean‖·‖g‖)``, in [0, 1]; roughness is the mean absolute
    difference of neighbouring pixels of g over its mean absolute value.
    """
    x, y = context.examples()
    images = {"input": x[:5].cpu().tolist()}
    centred = (x - x.mean(0)).flatten(1)
    variants = {name: Variant(name, decides=name in ("standard", "at")) for name in EXPLAINED}
    measured: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in variants}
    for name, _, model in context.networks(variants):
        with frozen_model(model) as view:
            point = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(logit_margin(view(point), y).sum(), point)
        flat = grad.flatten(1)
        there = flat.abs().amax(1) > 0  # nothing can be said of a gradient that is 0
        lengths = (centred.norm(dim=1) * flat.norm(dim=1)).clamp_min(1e-30)
        measured[name].append((only(there, (centred * flat).sum(1).abs() / lengths), only(there, _roughness(grad))))
        images.setdefault(name, grad[:5].cpu().tolist())
    rows, found = [], {}
    for name, some in measured.items():
        aligned, rough = found[name] = [torch.stack(parts) for parts in zip(*some, strict=True)]
        row: dict[str, Any] = {"network": name}
        for what, values in (("alignment", aligned), ("roughness", rough)):
            row[what], row[f"{what} ±"] = (number_or_none(one) for one in mean_and_error(values))
        rows.append(row | {"zero gradients": int(aligned.isnan().sum())})
    (standard, rough_standard), (robust, rough_robust) = found["standard"], found["at"]
    return StudyResult(
        "the gradient's alignment with the input (mean) is "
        + " and its roughness ".join(
            f"{number_text(ours, 3)} for adversarial and {number_text(others, 3)} for standard training"
            for ours, others in ((rows[1][what], rows[0][what]) for what in ("alignment", "roughness"))
        ),
        [
            sentence("gradients of the robust network are more aligned with the input", difference_of(robust, standard), ""),
            sentence("and less rough", difference_of(rough_standard, rough_robust), ""),
        ],
        rows,
        {"images": images},
    )


def _roughness(grad: Tensor) -> Tensor:
    across, down = grad.diff(dim=-1).abs(), grad.diff(dim=-2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2 / grad.abs().flatten(1).mean(1).clamp_min(1e-30)


def draw_saliency(result: StudyResult) -> Figure:
    """Inputs and gradients side by side."""
    return image_grid(result.series["images"], signed=EXPLAINED)
