"""Studies that train variants of a method and compare how many test examples each has right under attack."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hauberk.attacks import apgd, pgd
from hauberk.data import fetch_for
from hauberk.experiments.figures import COLOURS, new_figure
from hauberk.experiments.studies.base import Measured, StudyContext, StudyResult, all_better, difference_text, percent
from hauberk.experiments.studies.custom_methods import BETA, MART_LOSSES, at_with_kl, split_method, with_loss
from hauberk.methods import method
from hauberk.threat import ThreatModel
from hauberk.weighting import effective_size, mail, probabilistic_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BATCH = 250
ACCURACIES = ("clean, %", "PGD-20, %", "strong, %")  # the columns of every table
FRACTIONS = (0.25, 0.5, 0.75)  # of the training examples that are regularised; 0 is "without both", 1 is MART
TREATMENTS = ("unperturbed", "FGSM", "regularised")
BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SLOPES_AND_BIASES = [(2.0, -0.5), (5.0, -0.5), (10.0, -0.5), (20.0, -0.5), (10.0, -1.0), (10.0, 0.0), (10.0, 0.5)]
RATIO = 10.0  # of the number of examples of the first class to that of the last


@dataclass(frozen=True, eq=False)
class RobustMasks:
    """Which examples a network has right, each (N,) bool.

    Attributes:
        clean: without an attack.
        pgd: and under PGD-20 (steps of ε/4).
        strong: and under APGD on cross-entropy, and on the targeted DLR loss towards the 3 most likely wrong classes: less than
            AutoAttack, of which the first is one attack and the second a third of another.
    """

    clean: Tensor
    pgd: Tensor
    strong: Tensor

    def row(self, **more: Any) -> dict[str, Any]:
        """Return a row of a table: what it is, and accuracies in percent."""
        masks = (self.clean, self.pgd, self.strong)
        return {**more, **{column: percent(right) for column, right in zip(ACCURACIES, masks, strict=True)}}


def robust_masks(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> RobustMasks:
    """Attack a network; x (N, ...), y (N,)."""
    parts = []
    for k, (some_x, some_y) in enumerate(zip(x.split(_BATCH), y.split(_BATCH), strict=True)):
        with torch.no_grad():
            clean = model(some_x).argmax(1) == some_y
        left = clean & ~pgd(model, some_x, some_y, threat, steps=20, step_size="eps/4", seed=seed + k).success
        strong = left.clone()
        for loss in ("ce", "dlr-targeted"):
            places = strong.nonzero().squeeze(1)
            if len(places):
                found = apgd(model, some_x[places], some_y[places], threat, loss=loss, targets=3, seed=seed + k)
                strong[places] = ~found.success
        parts.append((clean, left, strong))
    return RobustMasks(*(torch.cat(masks) for masks in zip(*parts, strict=True)))


def trained_masks(context: StudyContext, name: str, **options: Any) -> RobustMasks:
    """Train as :meth:`StudyContext.trained`, and attack the test examples."""
    return robust_masks(context.trained(name, **options), *context.examples(), context.threat, context.seed)


def ablation(context: StudyContext) -> Measured:
    """Train MART, and what becomes of it when a part of its loss is changed or used on a part of the data."""
    whole = method("mart", context.threat, seed=context.seed, beta=BETA)
    losses = {name: with_loss(f"mart {name}", whole, loss) for name, loss in MART_LOSSES.items()}
    by_kl = method("mart", context.threat, seed=context.seed, beta=BETA, loss="kl", start="normal")
    order = torch.randperm(len(context.train_part), generator=torch.Generator().manual_seed(context.seed))
    bare, parts = losses["without both"], {}
    for fraction in FRACTIONS:
        name = f"{100 * fraction:.0f} % regularised"
        parts[name] = split_method(f"mart {name}", whole, bare, order[: round(fraction * len(order))])
    decisive = {"whole": whole, **losses}
    found = {
        name: trained_masks(context, f"mart {name}", custom=custom, decides=name in decisive)
        for name, custom in {**decisive, "KL inner loss": by_kl, **parts}.items()
    }
    best = found["whole"].pgd
    changes = "; ".join(f"{name} {difference_text(found[name].pgd, best)}" for name in (*losses, "KL inner loss"))
    robust = [percent(found[name].pgd) for name in ("without both", *parts, "whole")]
    rising = ", ".join(f"{one:.1f}" for one in robust)
    return Measured(
        f"PGD-20 accuracy against MART's, in points: {changes}; with 0, 25, 50, 75, 100 % of the data regularised {rising} %",
        all_better([(best, found[name].pgd) for name in losses]),
        [one.row(loss=name) for name, one in found.items()],
        {"share": [0.0, *FRACTIONS, 1.0], "robust": robust},
    )


def draw_ablation(result: StudyResult) -> "Figure":
    """PGD-20 accuracy of each loss, and over the part of the data that is regularised."""
    figure, (bars, line) = new_figure(2, 9)
    rows = [row for row in result.rows if "%" not in row["loss"]]
    colours = [COLOURS[0], *["0.7"] * (len(rows) - 1)]
    bars.barh([row["loss"] for row in rows], [row["PGD-20, %"] for row in rows], color=colours)
    bars.invert_yaxis()
    bars.set(xlabel="PGD-20 accuracy, %")
    line.plot([100 * share for share in result.series["share"]], result.series["robust"], marker="o")
    line.set(xlabel="training examples regularised, %", ylabel="PGD-20 accuracy, %")
    return figure


def split_by_correctness(context: StudyContext, first: nn.Module) -> dict[str, Tensor]:
    """Places of S-, what a first network misclassifies without an attack, and of S+, as many others at random."""
    source = context.train_part
    with torch.no_grad():
        batches = (fetch_for(first, source, index) for index in torch.arange(len(source)).split(1000))
        correct = torch.cat([(first(x).argmax(1) == y).cpu() for x, y in batches])
    wrong, others = ((correct == value).nonzero().squeeze(1) for value in (False, True))
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(context.seed))
    return {"S+": others[order[: len(wrong)]], "S-": wrong}


def subsets(context: StudyContext) -> Measured:
    """Train a first network, split the training examples by what it has right, and train again with either part treated."""
    parts, found = split_by_correctness(context, context.trained("at")), {"at": trained_masks(context, "at")}
    fgsm = context.method("at", steps=1, step_size="eps", start="clean")
    treatments = (context.method("standard"), fgsm, with_loss("at with KL", context.method("at"), at_with_kl))
    for kind, treatment in zip(TREATMENTS, treatments, strict=True):
        for part, places in parts.items():
            custom = split_method(f"at {part} {kind}", treatment, context.method("at"), places)
            found[f"{part} {kind}"] = trained_masks(context, custom.name, custom=custom)
    robust = {name: one.pgd for name, one in found.items()}
    changes = "; ".join(f"{name} {difference_text(one, robust['at'])}" for name, one in robust.items() if name != "at")
    claims = [
        ("S+ unperturbed", "S- unperturbed"),
        ("S- FGSM", "S- unperturbed"),
        ("S- regularised", "S+ regularised"),
        ("S- regularised", "at"),
    ]
    return Measured(
        f"S- is {100 * len(parts['S-']) / len(context.train_part):.1f} % of the training examples. Change of PGD-20 accuracy "
        f"in points: {changes}",
        all_better([(robust[better], robust[worse]) for better, worse in claims]),
        [one.row(training=name) for name, one in found.items()],
        {"base": percent(robust["at"])},
    )


def draw_subsets(result: StudyResult) -> "Figure":
    """PGD-20 accuracy for each treatment of each part, with that of plain adversarial training."""
    figure, (axes,) = new_figure()
    robust = {row["training"]: row["PGD-20, %"] for row in result.rows}
    for offset, part in ((-0.2, "S+"), (0.2, "S-")):
        places = [k + offset for k in range(len(TREATMENTS))]
        axes.bar(places, [robust[f"{part} {kind}"] for kind in TREATMENTS], width=0.36, label=part)
    axes.axhline(result.series["base"], color="0.3", linestyle="--", label="adversarial training")
    axes.set(xticks=range(len(TREATMENTS)), xticklabels=TREATMENTS, ylabel="PGD-20 accuracy, %")
    axes.set_ylim(max(0, min(robust.values()) - 5))
    axes.legend()
    return figure


def beta_sensitivity(context: StudyContext) -> Measured:
    """Train MART and TRADES with each β."""
    found = {(name, beta): trained_masks(context, name, beta=beta) for name in ("mart", "trades") for beta in BETAS}
    pairs = [(found["mart", beta], found["trades", beta]) for beta in BETAS]
    robust = [[percent(one.pgd) for one in ways] for ways in zip(*pairs, strict=True)]
    mart, trades = (max(values) - min(values) for values in robust)
    ahead = sum(percent(ours.pgd) > percent(others.pgd) for ours, others in pairs)
    truly = sum(percent(ours.strong) > percent(others.strong) for ours, others in pairs)
    return Measured(
        f"MART is ahead for {ahead} of {len(BETAS)} values of β under PGD-20, and for {truly} under the stronger attacks; "
        f"over β PGD-20 accuracy varies by {mart:.1f} points for MART and {trades:.1f} for TRADES",
        False if mart > trades else all_better([(ours.pgd, others.pgd) for ours, others in pairs]),
        [one.row(method=name, β=beta) for (name, beta), one in found.items()],
    )


def draw_beta_sensitivity(result: StudyResult) -> "Figure":
    """Accuracies over β."""
    figure, plots = new_figure(3, 9, sharey=True)
    for axes, column in zip(plots, ACCURACIES, strict=True):
        for name in ("mart", "trades"):
            rows = [row for row in result.rows if row["method"] == name]
            axes.semilogx([row["β"] for row in rows], [row[column] for row in rows], marker="o", label=name)
        axes.set(xlabel="β", title=column)
    plots[-1].legend()
    return figure


def weights(context: StudyContext) -> Measured:
    """Train MAIL-AT with each slope and bias; attack it, and see on how many training examples the weights rest."""
    train_x, train_y = context.examples("train")
    plain, found, effective = trained_masks(context, "at"), {}, {}
    for slope, bias in SLOPES_AND_BIASES:
        model = context.trained("mail-at", slope=slope, bias=bias)
        found[slope, bias] = robust_masks(model, *context.examples(), context.threat, context.seed)
        x_adv = pgd(model, train_x, train_y, context.threat, seed=context.seed).x_adv
        with torch.no_grad():
            margins = probabilistic_margin(model(x_adv), train_y)
        effective[slope, bias] = 100 * float(effective_size(mail(margins, slope=slope, bias=bias)))
    by_slope = [effective[slope, -0.5] for slope in (2.0, 5.0, 10.0, 20.0)]
    by_bias = [effective[10.0, bias] for bias in (-1.0, -0.5, 0.0, 0.5)]
    slopes, biases = (", ".join(f"{one:.0f}" for one in some) for some in (by_slope, by_bias))
    usual = found[10.0, -0.5]
    rows = [plain.row(slope="", bias="", **{"effective examples, %": 100.0})]
    rows += [one.row(slope=s, bias=b, **{"effective examples, %": effective[s, b]}) for (s, b), one in found.items()]
    return Measured(
        f"with slopes 2, 5, 10, 20 the weights rest on {slopes} % of the examples (effective size), with biases -1, "
        f"-0.5, 0, 0.5 on {biases} %; slope 10 and bias -0.5 against plain adversarial training, in points: PGD-20 "
        f"{difference_text(usual.pgd, plain.pgd)}, stronger attacks {difference_text(usual.strong, plain.strong)}",
        by_slope == sorted(by_slope, reverse=True) and by_bias == sorted(by_bias),
        rows,
        {"gap": {f"{s:g}, {b:g}": percent(one.pgd) - percent(one.strong) for (s, b), one in found.items()}},
    )


def draw_weights(result: StudyResult) -> "Figure":
    """The weight functions, and accuracies of each."""
    figure, (curves, points) = new_figure(2, 9)
    margins = torch.linspace(-1, 1, 101)
    for slope, bias in SLOPES_AND_BIASES:
        unscaled = torch.sigmoid(-slope * (margins - bias))
        curves.plot(margins.tolist(), unscaled.tolist(), label=f"slope {slope:g}, bias {bias:g}")
    curves.set(xlabel="probabilistic margin", ylabel="weight before normalisation")
    curves.legend(fontsize=7)
    _plot_accuracies(points, ["at", *(f"{slope:g}, {bias:g}" for slope, bias in SLOPES_AND_BIASES)], result, "slope, bias")
    points.tick_params(axis="x", rotation=45)
    return figure


def burn_in(context: StudyContext) -> Measured:
    """Train MAIL-AT with burn-ins of several lengths."""
    epochs = context.config.epochs
    lengths = dict.fromkeys(round(fraction * epochs) for fraction in (0.0, 0.25, 0.5, 0.75))
    found = {length: trained_masks(context, "mail-at", burn_in=length) for length in lengths}
    none, longest = found[0], found[max(found)]
    return Measured(
        f"a burn-in of {max(found)} of {epochs} epochs against none, in points: clean "
        f"{difference_text(longest.clean, none.clean)}, PGD-20 {difference_text(longest.pgd, none.pgd)}, stronger attacks "
        f"{difference_text(longest.strong, none.strong)}",
        all_better([(longest.strong, none.strong)]),
        [one.row(**{"burn-in, epochs": length}) for length, one in found.items()],
    )


def draw_burn_in(result: StudyResult) -> "Figure":
    """Accuracies over the length of the burn-in."""
    figure, (axes,) = new_figure()
    _plot_accuracies(axes, [row["burn-in, epochs"] for row in result.rows], result, "burn-in, epochs")
    return figure


def _plot_accuracies(axes: "Axes", x: Sequence[Any], result: StudyResult, xlabel: str) -> None:
    for column in ACCURACIES:
        axes.plot(x, [row[column] for row in result.rows], marker="o", label=column)
    axes.set(xlabel=xlabel)
    axes.legend()


def trade_off(context: StudyContext) -> Measured:
    """Train several methods, and TRADES with each β."""
    names = ("standard", "at", "fat", "mart", "mail-at", "mail-trades")
    found = {name: trained_masks(context, name, decides=name in ("standard", "at")) for name in names}
    for beta in BETAS:
        found[f"trades, β {beta:g}"] = trained_masks(context, "trades", beta=beta, decides=beta in (BETAS[0], BETAS[-1]))
    low, high = (found[f"trades, β {beta:g}"] for beta in (BETAS[0], BETAS[-1]))
    at, standard = found["at"], found["standard"]
    return Measured(
        f"adversarial against standard training, in points: clean {difference_text(at.clean, standard.clean)}, stronger "
        f"attacks {difference_text(at.strong, standard.strong)}; TRADES with β {BETAS[-1]:g} against {BETAS[0]:g}: clean "
        f"{difference_text(high.clean, low.clean)}, stronger attacks {difference_text(high.strong, low.strong)}",
        all_better([(standard.clean, at.clean), (low.clean, high.clean), (high.strong, low.strong)]),
        [one.row(method=name) for name, one in found.items()],
    )


def draw_trade_off(result: StudyResult) -> "Figure":
    """Robust against clean accuracy."""
    figure, (axes,) = new_figure(height=5)
    trades = [row for row in result.rows if row["method"].startswith("trades")]
    places = [row["clean, %"] for row in trades], [row["strong, %"] for row in trades]
    axes.plot(*places, color="0.6", marker="o", label="trades")
    for row in result.rows:
        place, label = (row["clean, %"], row["strong, %"]), row["method"].removeprefix("trades, ")
        if row not in trades:
            axes.scatter(*place)
        axes.annotate(label, place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure


def imbalance(context: StudyContext) -> Measured:
    """Thin the training set out so that classes become ever rarer, train, and attack each class of the whole test set."""
    thin = replace(context, base=replace(context.base, subset=replace(context.base.subset, imbalance=RATIO)))
    y = context.examples()[1]
    classes = int(y.max()) + 1
    rare = y >= classes - classes // 3
    found, by_class, rows = {}, {}, []
    for name in ("at", "trades", "mart", "at, balanced", "mart, balanced"):
        kind, _, class_weights = name.partition(", ")
        settings = {"class_weights": class_weights} if class_weights else {}
        one = found[name] = trained_masks(thin, kind, settings=settings, decides=name in ("at", "mart"))
        by_class[name] = [percent(one.strong[y == k]) for k in range(classes)]
        extra = {"strong, rarest third, %": percent(one.strong[rare]), "strong, worst class, %": min(by_class[name])}
        rows.append(one.row(training=name, **extra))
    ours, others, weighed = (found[name].strong[rare] for name in ("mart", "at", "at, balanced"))
    return Measured(
        f"the first class has {RATIO:g} times the examples of the last. In the rarest third, under the stronger attacks and in "
        f"points: MART against adversarial training {difference_text(ours, others)}; class weights in adversarial training "
        f"{difference_text(weighed, others)}",
        all_better([(ours, others)]),
        rows,
        {"by class": by_class},
        f"thinned out, {len(y):,} test examples",
    )


def draw_imbalance(result: StudyResult) -> "Figure":
    """Accuracy under the stronger attacks of each class, the rarest last."""
    figure, (axes,) = new_figure(width=7)
    for name, accuracies in result.series["by class"].items():
        axes.plot(range(len(accuracies)), accuracies, marker="o", label=name)
    axes.set(xlabel="class, from the most frequent to the rarest", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure
