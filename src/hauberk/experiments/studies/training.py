"""Studies that train variants of a method and compare how many test examples each has right under attack."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import pgd
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.data import fetch_for
from hauberk.experiments.figures import COLOURS, new_figure, plot_lines
from hauberk.experiments.studies.base import (
    ACCURACIES,
    RobustMasks,
    StudyContext,
    StudyResult,
    all_better,
    difference_text,
    percent,
    robust_masks,
)
from hauberk.methods import Method
from hauberk.objectives import LossTerms, at, kl_divergence, mart
from hauberk.weighting import effective_size, mail, probabilistic_margin

FRACTIONS = (0.25, 0.5, 0.75)  # of the training examples that are regularised; 0 is "without both", 1 is MART
TREATMENTS = ("unperturbed", "FGSM", "regularised")
BETA = 5.0  # of MART; with AT it is ours, as the sources give no value for the regulariser of that experiment
BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SLOPES_AND_BIASES = [(2.0, -0.5), (5.0, -0.5), (10.0, -0.5), (20.0, -0.5), (10.0, -1.0), (10.0, 0.0), (10.0, 0.5)]
RATIO = 10.0  # of the number of examples of the first class to that of the last
Loss = Callable[..., LossTerms]  # of logits, logits_adv and y


def trained_masks(context: StudyContext, name: str, **options: Any) -> RobustMasks:
    """Train as :meth:`StudyContext.trained`, and attack the test examples."""
    return robust_masks(context, context.trained(name, **options))


def with_loss(name: str, base: Method, loss: Loss) -> Method:
    """Return a method without weights under another name, with another loss."""

    def objective(context: StepContext) -> LossTerms:
        return loss(context.logits, context.logits_adv, context.y)

    return Method(base.threat, base.inner, objective, name=name, settings=base.settings, seed=base.seed)


def split_method(name: str, chosen: Method, others: Method, places: Tensor) -> Method:
    """Return a method that treats some training examples as one method does, and all others as another.

    ``loss = (1/B) Σ_i ℓ_{m(i)}(x_i, x'_i, y_i) + r_{m(i)}(x_i, x'_i, y_i)``, m(i) the method of example i. Every batch makes
    one pass of clean and one of adversarial inputs in the caller's mode, so that BatchNorm sees whole batches. Weights, AWP
    and schedules of the methods are not used.

    Args:
        name: of the new method.
        chosen: how the chosen examples are treated.
        others: how the rest is.
        places: (N,), which are chosen, as places in the training part of the data.
    """

    def parts(context: StepContext) -> Iterator[tuple[Method, Tensor, StepContext]]:
        """Give each method, the places of its examples in the batch, and these as a batch of their own."""
        if context.index is None or context.world.size > 1:
            raise UserError("this experiment needs the index of each example, and one process")
        treated = torch.isin(context.index.cpu(), places.cpu()).to(context.x.device)
        for part, mask in ((others, ~treated), (chosen, treated)):
            some = mask.nonzero().squeeze(1)
            rng = context.rng.index_select(some)
            yield part, some, StepContext(context.model, context.x[some], context.y[some], context.threat, rng)

    def attack(context: StepContext) -> Tensor:
        x_adv = context.x.clone()
        for part, some, batch in parts(context):
            if part.inner is not None and len(some):
                found = part.inner(batch)
                x_adv[some] = found if isinstance(found, Tensor) else found.x_adv
        return x_adv

    def objective(context: StepContext) -> LossTerms:
        assert context.logits is not None  # both are needed
        assert context.logits_adv is not None
        robust = context.logits.new_zeros(len(context.y))
        regularizer = torch.zeros_like(robust)
        for part, some, batch in parts(context):
            batch.logits, batch.logits_adv = context.logits[some], context.logits_adv[some]
            one, other = part.objective(batch)
            robust, regularizer = robust.index_copy(0, some, one), regularizer.index_copy(0, some, other)
        return LossTerms(robust, regularizer)

    about = {"seed": others.seed, "chosen": len(places), "sum of places": int(places.sum())}
    return Method(others.threat, attack, objective, name=name, settings=about, seed=others.seed)


def _bce(logits: Tensor, y: Tensor) -> Tensor:
    return mart(logits, logits, y).robust


def _one_minus_p(logits: Tensor, y: Tensor) -> Tensor:
    return 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)


def at_with_kl(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``CE(f(x'), y) + β·KL(p(x)‖p(x'))``."""
    return LossTerms(at(logits, logits_adv, y).robust, BETA * kl_divergence(logits, logits_adv))


# MART's loss ``BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))`` with one part changed; z are logits.
MART_LOSSES: dict[str, Loss] = {
    "without 1-p": lambda z, z_adv, y: LossTerms(_bce(z_adv, y), BETA * kl_divergence(z, z_adv)),
    "without KL": lambda z, z_adv, y: LossTerms(_bce(z_adv, y), BETA * _one_minus_p(z, y)),
    "without both": lambda z, z_adv, y: mart(z, z_adv, y, beta=0.0),
    "CE for BCE": lambda z, z_adv, y: LossTerms(at(z, z_adv, y).robust, mart(z, z_adv, y, beta=BETA).regularizer),
    "BCE on clean inputs": lambda z, z_adv, y: LossTerms(_bce(z, y), mart(z, z_adv, y, beta=BETA).regularizer),
}


def ablation(context: StudyContext) -> StudyResult:
    """Train MART, and what becomes of it when a part of its loss is changed or used on a part of the data."""
    whole = context.method("mart", beta=BETA)
    losses = {name: with_loss(f"mart {name}", whole, loss) for name, loss in MART_LOSSES.items()}
    by_kl = context.method("mart", beta=BETA, loss="kl", start="normal")
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
    return StudyResult(
        f"PGD-20 accuracy against MART's, in points: {changes}; with 0, 25, 50, 75, 100 % of the data regularised {rising} %",
        all_better([(best, found[name].pgd) for name in losses]),
        [one.row(loss=name) for name, one in found.items()],
        {"share": [0.0, *FRACTIONS, 1.0], "robust": robust},
    )


def draw_ablation(result: StudyResult) -> Figure:
    """PGD-20 accuracy of each loss, and over the part of the data that is regularised."""
    figure, (bars, line) = new_figure(2, 9)
    robust = {row["loss"]: row["PGD-20, %"] for row in result.rows if "%" not in row["loss"]}
    bars.barh(list(robust), list(robust.values()), color=[COLOURS[0], *["0.7"] * (len(robust) - 1)])
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


def subsets(context: StudyContext) -> StudyResult:
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
    claims = {"S+ unperturbed": "S- unperturbed", "S- FGSM": "S- unperturbed", "S- regularised": "S+ regularised"}
    return StudyResult(
        f"S- is {100 * len(parts['S-']) / len(context.train_part):.1f} % of the training examples. Change of PGD-20 accuracy "
        f"in points: {changes}",
        all_better([(robust[better], robust[worse]) for better, worse in [*claims.items(), ("S- regularised", "at")]]),
        [one.row(training=name) for name, one in found.items()],
    )


def draw_subsets(result: StudyResult) -> Figure:
    """PGD-20 accuracy for each treatment of each part, with that of plain adversarial training."""
    figure, (axes,) = new_figure()
    robust = {row["training"]: row["PGD-20, %"] for row in result.rows}
    for offset, part in ((-0.2, "S+"), (0.2, "S-")):
        places = [k + offset for k in range(len(TREATMENTS))]
        axes.bar(places, [robust[f"{part} {kind}"] for kind in TREATMENTS], width=0.36, label=part)
    axes.axhline(robust["at"], color="0.3", linestyle="--", label="adversarial training")
    axes.set(xticks=range(len(TREATMENTS)), xticklabels=TREATMENTS, ylabel="PGD-20 accuracy, %")
    axes.set_ylim(max(0, min(robust.values()) - 5))
    axes.legend()
    return figure


def beta_sensitivity(context: StudyContext) -> StudyResult:
    """Train MART and TRADES with each β."""
    found = {(name, beta): trained_masks(context, name, beta=beta) for name in ("mart", "trades") for beta in BETAS}
    pairs = [(found["mart", beta], found["trades", beta]) for beta in BETAS]
    robust = [[percent(one.pgd) for one in ways] for ways in zip(*pairs, strict=True)]
    of_mart, of_trades = (max(values) - min(values) for values in robust)
    ahead = sum(percent(ours.pgd) > percent(others.pgd) for ours, others in pairs)
    truly = sum(percent(ours.strong) > percent(others.strong) for ours, others in pairs)
    return StudyResult(
        f"MART is ahead for {ahead} of {len(BETAS)} values of β under PGD-20, and for {truly} under the stronger attacks; "
        f"over β PGD-20 accuracy varies by {of_mart:.1f} points for MART and {of_trades:.1f} for TRADES",
        False if of_mart > of_trades else all_better([(ours.pgd, others.pgd) for ours, others in pairs]),
        [one.row(method=name, β=beta) for (name, beta), one in found.items()],
    )


def draw_beta_sensitivity(result: StudyResult) -> Figure:
    """Accuracies over β."""
    figure, plots = new_figure(3, 9, sharey=True)
    for axes, column in zip(plots, ACCURACIES, strict=True):
        series = {name: [row[column] for row in result.rows if row["method"] == name] for name in ("mart", "trades")}
        plot_lines(axes, BETAS, series, xlabel="β", title=column, xscale="log")
    return figure


def weights(context: StudyContext) -> StudyResult:
    """Train MAIL-AT with each slope and bias; attack it, and see on how many training examples the weights rest."""
    train_x, train_y = context.examples("train")
    plain, found, effective = trained_masks(context, "at"), {}, {}
    for slope, bias in SLOPES_AND_BIASES:
        model = context.trained("mail-at", slope=slope, bias=bias)
        found[slope, bias] = robust_masks(context, model)
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
    return StudyResult(
        f"with slopes 2, 5, 10, 20 the weights rest on {slopes} % of the examples (effective size), with biases -1, "
        f"-0.5, 0, 0.5 on {biases} %; slope 10 and bias -0.5 against plain adversarial training, in points: PGD-20 "
        f"{difference_text(usual.pgd, plain.pgd)}, stronger attacks {difference_text(usual.strong, plain.strong)}",
        by_slope == sorted(by_slope, reverse=True) and by_bias == sorted(by_bias),
        rows,
    )


def draw_weights(result: StudyResult) -> Figure:
    """The weight functions, and accuracies of each."""
    figure, (curves, points) = new_figure(2, 9)
    margins = torch.linspace(-1, 1, 101)
    for slope, bias in SLOPES_AND_BIASES:
        unscaled = torch.sigmoid(-slope * (margins - bias))
        curves.plot(margins.tolist(), unscaled.tolist(), label=f"slope {slope:g}, bias {bias:g}")
    curves.set(xlabel="probabilistic margin", ylabel="weight before normalisation")
    curves.legend(fontsize=7)
    pairs = ["at", *(f"{slope:g}, {bias:g}" for slope, bias in SLOPES_AND_BIASES)]
    plot_lines(points, pairs, {name: result.column(name) for name in ACCURACIES}, xlabel="slope, bias")
    points.tick_params(axis="x", rotation=45)
    return figure


def burn_in(context: StudyContext) -> StudyResult:
    """Train MAIL-AT with burn-ins of several lengths."""
    epochs = context.config.epochs
    lengths = dict.fromkeys(round(fraction * epochs) for fraction in (0.0, 0.25, 0.5, 0.75))
    found = {length: trained_masks(context, "mail-at", burn_in=length) for length in lengths}
    none, longest = found[0], found[max(found)]
    return StudyResult(
        f"a burn-in of {max(found)} of {epochs} epochs against none, in points: clean "
        f"{difference_text(longest.clean, none.clean)}, PGD-20 {difference_text(longest.pgd, none.pgd)}, stronger attacks "
        f"{difference_text(longest.strong, none.strong)}",
        all_better([(longest.strong, none.strong)]),
        [one.row(**{"burn-in, epochs": length}) for length, one in found.items()],
    )


def draw_burn_in(result: StudyResult) -> Figure:
    """Accuracies over the length of the burn-in."""
    figure, (axes,) = new_figure()
    lengths, accuracies = "burn-in, epochs", {name: result.column(name) for name in ACCURACIES}
    plot_lines(axes, result.column(lengths), accuracies, xlabel=lengths)
    return figure


def trade_off(context: StudyContext) -> StudyResult:
    """Train several methods, and TRADES with each β."""
    names = ("standard", "at", "fat", "mart", "mail-at", "mail-trades")
    found = {name: trained_masks(context, name, decides=name in ("standard", "at")) for name in names}
    for beta in BETAS:
        found[f"trades, β {beta:g}"] = trained_masks(context, "trades", beta=beta, decides=beta in (BETAS[0], BETAS[-1]))
    low, high = (found[f"trades, β {beta:g}"] for beta in (BETAS[0], BETAS[-1]))
    robust, standard = found["at"], found["standard"]
    return StudyResult(
        f"adversarial against standard training, in points: clean {difference_text(robust.clean, standard.clean)}, stronger "
        f"attacks {difference_text(robust.strong, standard.strong)}; TRADES with β {BETAS[-1]:g} against {BETAS[0]:g}: clean "
        f"{difference_text(high.clean, low.clean)}, stronger attacks {difference_text(high.strong, low.strong)}",
        all_better([(standard.clean, robust.clean), (low.clean, high.clean), (high.strong, low.strong)]),
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
        if row not in trades:
            axes.scatter(*place)
        axes.annotate(label, place, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure


def imbalance(context: StudyContext) -> StudyResult:
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
    return StudyResult(
        f"the first class has {RATIO:g} times the examples of the last. In the rarest third, under the stronger attacks and in "
        f"points: MART against adversarial training {difference_text(ours, others)}; class weights in adversarial training "
        f"{difference_text(weighed, others)}",
        all_better([(ours, others)]),
        rows,
        {"by class": by_class},
        about=f"thinned out, {len(y):,} test examples",
    )


def draw_imbalance(result: StudyResult) -> Figure:
    """Accuracy under the stronger attacks of each class, the rarest last."""
    figure, (axes,) = new_figure()
    series = result.series["by class"]
    labels = {"xlabel": "class, from the most frequent to the rarest", "ylabel": "accuracy under stronger attacks, %"}
    plot_lines(axes, range(len(series["at"])), series, **labels)
    return figure
