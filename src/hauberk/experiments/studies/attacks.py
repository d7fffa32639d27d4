"""Studies of attacks: what PGD's path, steps and starts say of an example, what transfers, and how perturbations look."""

from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import AttackResult, apgd, frozen_model, lm_pgd, logit_margin, pgd
from hauberk.core.random import ExampleRng
from hauberk.experiments.figures import COLOURS, image_grid, new_figure, plot_lines
from hauberk.experiments.studies.base import (
    StudyContext,
    StudyResult,
    all_better,
    larger_by_two_errors,
    paired_difference,
    percent,
)
from hauberk.weighting import probabilistic_margin

PATH_STEPS = 50
PATHS: dict[str, Callable[..., AttackResult]] = {"PGD": pgd, "LM-PGD": lm_pgd}
LPS_STEPS = 10
STARTS, START_STEPS = 20, 40
NETWORKS = ("standard", "at", "trades", "mart", "mail-trades")  # of the matrix of transfers
FACTORS = (1.0, 2.0, 4.0)  # of ε
EXPLAINED = ("standard", "at", "trades", "mart")  # networks whose gradients are shown


def path_dependence(context: StudyContext) -> StudyResult:
    """Attack test examples by PGD and LM-PGD from the same starts, and compare the steps they need."""
    model, (x, y) = context.trained("at"), context.examples()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    attacks = {name: attack(model, x, y, context.threat, steps=PATH_STEPS, seed=context.seed) for name, attack in PATHS.items()}
    lps = {name: found.lps[right] for name, found in attacks.items()}
    ours, others = lps.values()
    stuck, other_way = ((a == PATH_STEPS) & (b < PATH_STEPS) for a, b in ((ours, others), (others, ours)))
    broken = (ours < PATH_STEPS) | (others < PATH_STEPS)
    # One that PGD is stuck at, else one that is right; of a network that has nothing right, the first.
    places = right.nonzero().squeeze(1)
    shown = int(next(iter([*places[stuck], *places, 0])))
    differ = 100 * float(((ours != others) & broken).double().sum() / max(int(broken.sum()), 1))
    return StudyResult(
        f"of {int(right.sum())} examples that are right without an attack, PGD-{PATH_STEPS} takes {int(stuck.sum())} for "
        f"robust that LM-PGD breaks, and LM-PGD {int(other_way.sum())} that PGD breaks; for {differ:.0f} % of the "
        f"{int(broken.sum())} that either breaks, the least number of steps differs",
        bool(stuck.any()) if bool(broken.any()) else None,
        [_path_row(name, steps, broken) for name, steps in lps.items()],
        {
            "shown": shown,
            "losses": {name: _path_losses(name, model, x, y, shown, context) for name in PATHS},
            "lps": {name: steps.tolist() for name, steps in lps.items()},
        },
    )


def _path_row(name: str, steps: Tensor, broken: Tensor) -> dict[str, Any]:
    """Describe one attack; ``broken`` (N,) says which examples either breaks."""
    those, count = steps[steps < PATH_STEPS].double(), max(len(steps), 1)
    return {
        "attack": name,
        "examples": len(steps),
        "broken, %": 100 * len(those) / count,
        "median LPS of the broken": float(those.median()) if len(those) else "",
        "stuck, %": 100 * int(((steps == PATH_STEPS) & broken).sum()) / count,
    }


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
    title = f"test example {result.series['shown']}"
    plot_lines(curves, range(PATH_STEPS), result.series["losses"], xlabel="step", ylabel="cross-entropy", title=title)
    lps = result.series["lps"]
    cloud.plot([0, PATH_STEPS], [0, PATH_STEPS], color="0.8", zorder=0)
    cloud.scatter(lps["PGD"], lps["LM-PGD"], s=12, alpha=0.4, linewidths=0)
    cloud.set(xlabel="LPS by PGD", ylabel="LPS by LM-PGD", title=f"{PATH_STEPS}: not broken")
    return figure


def lps_vs_pm(context: StudyContext) -> StudyResult:
    """Measure LPS and margins of training examples, and see which of those with the largest LPS stronger attacks break."""
    model, (x, y) = context.trained("at"), context.examples("train")
    seen = pgd(model, x, y, context.threat, steps=LPS_STEPS, step_size="eps/4", seed=context.seed)
    with torch.no_grad():
        margins = {name: probabilistic_margin(model(at), y) for name, at in (("PM nat", x), ("PM adv", seen.x_adv))}
    stronger = [apgd(model, x, y, context.threat, loss=loss, seed=context.seed).success for loss in ("ce", "dlr-targeted")]
    last = seen.lps == LPS_STEPS
    critical = last & torch.stack(stronger).any(0)
    missed = 100 * float(critical.sum() / last.sum()) if bool(last.any()) else 0.0
    nat = margins["PM nat"].double()
    means = torch.stack([nat[seen.lps == value].mean() for value in range(LPS_STEPS + 1)])  # NaN for an LPS that none has
    explained = means[seen.lps].var(correction=0) / nat.var(correction=0).clamp_min(1e-12)
    return StudyResult(
        f"{100 * float(last.double().mean()):.0f} % of {len(y):,} training examples have the largest LPS, {LPS_STEPS}; "
        f"stronger attacks (APGD on cross-entropy, and targeted) break {missed:.1f} % of these. LPS explains "
        f"{100 * float(explained):.0f} % of the variance of PM nat",
        None if not bool(last.any()) else bool(critical.any()),
        [_lps_row(int(value), seen.lps == value, critical, **margins) for value in seen.lps.unique()],
        {"lps": seen.lps.tolist(), "critical": critical.tolist(), **{name: some.tolist() for name, some in margins.items()}},
        about=f"{len(y):,} of them looked at",
    )


def _lps_row(value: int, some: Tensor, critical: Tensor, **margins: Tensor) -> dict[str, Any]:
    low, middle, high = (float(margins["PM nat"][some].quantile(q)) for q in (0.25, 0.5, 0.75))
    return {
        "LPS": value,
        "examples": int(some.sum()),
        "critical": int(critical[some].sum()) if value == LPS_STEPS else "",
        "PM nat, lower quartile": low,
        "median": middle,
        "upper quartile": high,
        "median PM adv": float(margins["PM adv"][some].median()),
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
    (x, y), series, rows = context.examples(), {}, []
    for name in ("standard", "at"):
        model, losses, broken = context.trained(name), [], []
        for start in range(STARTS):
            seed = context.seed + 1000 * start
            last = pgd(model, x, y, context.threat, steps=START_STEPS, return_last=True, seed=seed)
            with torch.no_grad():
                losses.append(F.cross_entropy(model(last.x_adv), y, reduction="none"))
            broken.append(last.success)
        final, fooled = torch.stack(losses).double(), torch.stack(broken)
        row: dict[str, Any] = {
            "network": name,
            "median loss": float(final.median()),
            "median deviation over starts": float(final.std(0).median()),
            "largest over median loss of an example, median": typical_ratio(final),
            "broken by one start, %": percent(fooled.double().mean(0)),
            f"broken by any of {STARTS}, %": percent(fooled.any(0)),
        }
        rows.append(row)
        series[name] = final[:, :5].T.tolist()
    standard, robust = rows
    calm, loss = robust["median deviation over starts"], robust["median loss"]
    more = [row[f"broken by any of {STARTS}, %"] - row["broken by one start, %"] for row in rows]
    return StudyResult(
        f"median final loss {standard['median loss']:.3g} for the standard network and {loss:.3g} for the robust one, whose "
        f"deviation over {STARTS} starts is {calm:.2g}; {STARTS} starts instead of one break {more[0]:.1f} and {more[1]:.1f} "
        "points more",
        calm < 0.1 * loss < 0.1 * standard["median loss"],
        rows,
        series,
    )


def typical_ratio(losses: Tensor) -> float | None:
    """Median over examples of the largest over the median loss, of losses (starts, examples); None where it cannot be told."""
    ratio = float((losses.amax(0) / losses.median(0).values).nanmedian())  # an example without any loss has 0 / 0
    return ratio if isfinite(ratio) else None


def draw_restarts(result: StudyResult) -> Figure:
    """Final losses of the first five examples, for both networks."""
    figure, plots = new_figure(2, 9)
    for axes, (name, losses) in zip(plots, result.series.items(), strict=True):
        for place, values in enumerate(losses):
            axes.scatter(values, [place] * len(values), s=14, alpha=0.5, linewidths=0)
        axes.set(xlabel=f"cross-entropy after {START_STEPS} steps", ylabel="test example", title=name)
    return figure


def transfer(context: StudyContext) -> StudyResult:
    """Craft PGD-20 on each network, and try it on every one."""
    x, y = context.examples()
    models = {name: context.trained(name) for name in NETWORKS}
    robust: dict[tuple[str, str], Tensor] = {}
    for source, crafted_on in models.items():
        found = pgd(crafted_on, x, y, context.threat, steps=20, step_size="eps/10", return_last=True, seed=context.seed)
        with torch.no_grad():
            for target, model in models.items():
                robust[source, target] = (model(found.x_adv).argmax(1) == y) & (model(x).argmax(1) == y)
    accuracy = {pair: percent(right) for pair, right in robust.items()}
    trained = NETWORKS[1:]
    worst = {b: min((accuracy[a, b], a) for a in NETWORKS if a != b) for b in trained}
    least = "; ".join(f"'{b}' keeps {left:.1f} % (from '{a}'; own {accuracy[b, b]:.1f} %)" for b, (left, a) in worst.items())
    kept = max(accuracy[a, "standard"] for a in trained)
    return StudyResult(
        f"under the worst PGD-20 from another network {least}; under those from robust networks 'standard' keeps at most "
        f"{kept:.1f} %",
        all_better([(robust[a, b], robust[b, b]) for a in NETWORKS for b in trained if a != b]),
        [{"crafted on": a, **{f"{b}, %": accuracy[a, b] for b in NETWORKS}} for a in NETWORKS],
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
    rows: list[dict[str, Any]] = []
    images, seen_as = {"clean": x[:4].cpu().tolist()}, {}
    for name in ("standard", "at"):
        model = context.trained(name)
        for factor in FACTORS:
            threat = context.threat.scaled(factor)
            x_adv = pgd(model, x, y, threat, steps=40, step_size="eps/10", return_last=True, seed=context.seed).x_adv
            with torch.no_grad():
                taken_for = model(x_adv).argmax(1)
            looks = torch.as_tensor(judge.predict(x_adv.flatten(1).cpu().numpy()), device=y.device)
            fooled = taken_for != y
            seen_as[name] = looks[fooled] == taken_for[fooled]  # at the largest factor, in the end
            rows.append(
                {
                    "network": name,
                    "times ε": factor,
                    "misclassified, %": percent(fooled),
                    "looks like that class to the judge, %": percent(seen_as[name]) if bool(fooled.any()) else "",
                    "still looks like its own, %": percent(looks == y),
                }
            )
        images[name] = x_adv[:4].cpu().tolist()
    robust, standard = (seen_as[name].double() for name in ("at", "standard"))
    error = sqrt(sum(float(one.var(correction=0)) / max(len(one), 1) for one in (robust, standard)))
    right = 100 * judge.score(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    return StudyResult(
        f"at {FACTORS[-1]:g} ε, to a judge by nearest neighbours ({right:.0f} % right on clean examples), "
        f"{percent(robust):.0f} % of the robust network's misclassified perturbations look like the class they are taken "
        f"for, and {percent(standard):.0f} % of the standard one's",
        larger_by_two_errors([(float(robust.mean() - standard.mean()), error)]),
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
    aligned, rows, images = {}, [], {"input": x[:5].cpu().tolist()}
    centred = (x - x.mean(0)).flatten(1)
    for name in EXPLAINED:
        with frozen_model(context.trained(name, decides=name in ("standard", "at"))) as view:
            point = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(logit_margin(view(point), y).sum(), point)
        flat = grad.flatten(1)
        lengths = (centred.norm(dim=1) * flat.norm(dim=1)).clamp_min(1e-30)
        aligned[name] = (centred * flat).sum(1).abs() / lengths
        row: dict[str, Any] = {
            "network": name,
            "alignment, median": float(aligned[name].median()),
            "roughness, median": float(_roughness(grad).median()),
            "zero gradients": int((flat.abs().amax(1) == 0).sum()),
        }
        rows.append(row)
        images[name] = grad[:5].cpu().tolist()
    points, error = paired_difference(aligned["at"], aligned["standard"])
    standard, robust = rows[:2]
    return StudyResult(
        f"the gradient's alignment with the input is {robust['alignment, median']:.3f} for adversarial and "
        f"{standard['alignment, median']:.3f} for standard training (medians; mean difference {points / 100:+.3f} ± "
        f"{error / 100:.3f}), its roughness {robust['roughness, median']:.2f} and {standard['roughness, median']:.2f}",
        larger_by_two_errors([(points, error)]),
        rows,
        {"images": images},
    )


def _roughness(grad: Tensor) -> Tensor:
    across, down = grad.diff(dim=-1).abs(), grad.diff(dim=-2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2 / grad.abs().flatten(1).mean(1).clamp_min(1e-30)


def draw_saliency(result: StudyResult) -> Figure:
    """Inputs and gradients side by side."""
    return image_grid(result.series["images"], signed=EXPLAINED)
