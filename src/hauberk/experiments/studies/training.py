"""Studies that train variants of a method and compare how many test examples each has right under attack."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import pgd
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.data import fetch_for
from hauberk.experiments.figures import COLOURS, error_bars, new_figure, plot_lines
from hauberk.experiments.studies.base import (
    ACCURACIES,
    NOTHING,
    RobustMasks,
    StudyContext,
    StudyResult,
    Variant,
    accuracies,
    join_seeds,
    number_text,
    only,
    percent,
    robust_masks,
    sentence,
    trained_masks,
)
from hauberk.methods import Method
from hauberk.objectives import LossTerms, at, kl_divergence, mart
from hauberk.weighting import mail, probabilistic_margin

FRACTIONS = (0.25, 0.5, 0.75)  # of the training examples that are regularised; 0 is "without both", 1 is MART
TREATMENTS = ("unperturbed", "FGSM", "regularised")
BETA = 5.0  # of MART; with AT it is ours, as the sources give no value for the regulariser of that experiment
BETAS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SLOPES_AND_BIASES = [(2.0, -0.5), (5.0, -0.5), (10.0, -0.5), (20.0, -0.5), (10.0, -1.0), (10.0, 0.0), (10.0, 0.5)]
RATIO = 10.0  # of the number of examples of the first class to that of the last
Loss = Callable[..., LossTerms]  # of logits, logits_adv and y


def gain(ours: Tensor, others: Tensor, least: float = 0.0) -> Tensor:
    """Return how much more often the first networks are right, (S, N), beyond ``least`` points."""
    return ours.double() - others.double() - least / 100


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

    def with_mart_loss(name: str) -> Callable[[StudyContext], Method]:
        return lambda one: with_loss(f"mart {name}", one.method("mart", beta=BETA), MART_LOSSES[name])

    def on_a_part(name: str, fraction: float) -> Callable[[StudyContext], Method]:
        def build(one: StudyContext) -> Method:
            order = torch.randperm(len(one.train_part), generator=torch.Generator().manual_seed(one.seed))
            bare = with_mart_loss("without both")(one)
            return split_method(f"mart {name}", one.method("mart", beta=BETA), bare, order[: round(fraction * len(order))])

        return build

    custom: dict[str, Callable[[StudyContext], Method]] = {"whole": lambda one: one.method("mart", beta=BETA)}
    custom |= {name: with_mart_loss(name) for name in MART_LOSSES}
    custom["KL inner loss"] = lambda one: one.method("mart", beta=BETA, loss="kl", start="normal")
    parts = {f"{100 * fraction:.0f} % regularised": fraction for fraction in FRACTIONS}
    custom |= {name: on_a_part(name, fraction) for name, fraction in parts.items()}
    found = trained_masks(context, {name: Variant(f"mart {name}", custom=build) for name, build in custom.items()})
    best, shares = found["whole"].pgd, [0.0, *FRACTIONS, 1.0]
    regularised = [found[name].pgd for name in ("without both", *parts, "whole")]
    tilt = torch.tensor(shares, dtype=torch.float64)
    tilt = tilt - tilt.mean()
    slope = torch.tensordot(tilt / tilt.square().sum(), torch.stack(regularised).double().cpu(), 1)
    said = [sentence(f"MART is more robust than {name}", gain(best, found[name].pgd)) for name in MART_LOSSES]
    kl = gain(best, found["KL inner loss"].pgd, -NOTHING)
    said.append(sentence(f"KL as the inner loss gains nothing (MART is above it less {NOTHING:g} point)", kl))
    said.append(sentence("the more is regularised, the more robust (none to all, by a straight line)", slope))
    cells = [accuracies({"robust": one}) for one in regularised]
    return StudyResult(
        f"with 0, 25, 50, 75, 100 % of the data regularised PGD-20 accuracy is "
        f"{', '.join(f'{percent(one):.1f}' for one in regularised)} %",
        said,
        [one.row(loss=name) for name, one in found.items()],
        {"share": shares, **{key: [cell[key] for cell in cells] for key in cells[0]}},
    )


def draw_ablation(result: StudyResult) -> Figure:
    """PGD-20 accuracy of each loss, and over the part of the data that is regularised."""
    figure, (bars, line) = new_figure(2, 9)
    rows = [row for row in result.rows if "%" not in row["loss"]]
    names, robust = [row["loss"] for row in rows], [row["PGD-20, %"] for row in rows]
    colours = [COLOURS[0], *["0.7"] * (len(rows) - 1)]
    bars.barh(names, robust, xerr=error_bars([row["PGD-20 ±"] for row in rows]), color=colours)
    bars.invert_yaxis()
    bars.set(xlabel="PGD-20 accuracy, %")
    shares = [100 * share for share in result.series["share"]]
    line.errorbar(shares, result.series["robust"], error_bars(result.series["robust ±"]), marker="o")
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
    sizes: list[float] = []

    def treated(kind: str, part: str) -> Callable[[StudyContext], Method]:
        def build(one: StudyContext) -> Method:
            places = split_by_correctness(one, one.trained("at", decides=False))[part]
            sizes.append(len(places) / len(one.train_part))
            fgsm = one.method("at", steps=1, step_size="eps", start="clean")
            ways = (one.method("standard"), fgsm, with_loss("at with KL", one.method("at"), at_with_kl))
            return split_method(f"at {part} {kind}", ways[TREATMENTS.index(kind)], one.method("at"), places)

        return build

    variants = {"at": Variant("at")}
    for kind in TREATMENTS:
        variants |= {f"{part} {kind}": Variant(f"at {part} {kind}", custom=treated(kind, part)) for part in ("S+", "S-")}
    found = trained_masks(context, variants)
    robust = {name: one.pgd for name, one in found.items()}
    plain = robust["at"]
    said = [
        sentence("robustness drops if S- stays unperturbed", gain(plain, robust["S- unperturbed"])),
        sentence("and less if S+ does", gain(robust["S+ unperturbed"], robust["S- unperturbed"])),
        sentence(
            f"a weak attack on S- costs almost nothing (less than {NOTHING:g} point)", gain(robust["S- FGSM"], plain, -NOTHING)
        ),
        sentence("a weak attack on S+ costs robustness", gain(plain, robust["S+ FGSM"])),
        sentence("regularising S- gains robustness", gain(robust["S- regularised"], plain)),
        sentence("and more than regularising S+", gain(robust["S- regularised"], robust["S+ regularised"])),
    ]
    return StudyResult(
        f"S- is {100 * sum(sizes) / len(sizes):.1f} % of the training examples; plain adversarial training has "
        f"{percent(plain):.1f} % right under PGD-20",
        said,
        [one.row(training=name) for name, one in found.items()],
    )


def draw_subsets(result: StudyResult) -> Figure:
    """PGD-20 accuracy for each treatment of each part, with that of plain adversarial training."""
    figure, (axes,) = new_figure()
    rows = {row["training"]: row for row in result.rows}
    for offset, part in ((-0.2, "S+"), (0.2, "S-")):
        places = [k + offset for k in range(len(TREATMENTS))]
        shown = [rows[f"{part} {kind}"] for kind in TREATMENTS]
        errors = error_bars([row["PGD-20 ±"] for row in shown])
        axes.errorbar(places, [row["PGD-20, %"] for row in shown], errors, fmt="o", capsize=3, label=part)
    axes.axhline(rows["at"]["PGD-20, %"], color="0.3", linestyle="--", label="adversarial training")
    axes.set(xticks=range(len(TREATMENTS)), xticklabels=TREATMENTS, ylabel="PGD-20 accuracy, %")
    axes.legend()
    return figure


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
        errors = {name: [row[_error_of(column)] for row in some] for name, some in rows.items()}
        plot_lines(axes, BETAS, series, errors, xlabel="β", title=column, xscale="log")
    return figure


def _error_of(column: str) -> str:
    return f"{column.removesuffix(', %')} ±"


def draw_accuracies(axes: Axes, result: StudyResult, x: list[Any], **labels: Any) -> None:
    """Draw a line for each accuracy over x, with standard errors."""
    series = {name: result.column(name) for name in ACCURACIES}
    plot_lines(axes, x, series, {name: result.column(_error_of(name)) for name in series}, ylabel="accuracy, %", **labels)


def weights(context: StudyContext) -> StudyResult:
    """Train MAIL-AT with each slope and bias; attack it, and see on how many training examples the weights rest."""
    train_x, train_y = context.examples("train")
    variants = {"at": Variant("at")}
    variants |= {
        f"{slope:g}, {bias:g}": Variant("mail-at", {"slope": slope, "bias": bias}) for slope, bias in SLOPES_AND_BIASES
    }
    masks: dict[str, list[RobustMasks]] = {name: [] for name in variants}
    rests: dict[str, list[Tensor]] = {name: [] for name in variants}
    for name, one, model in context.networks(variants):
        masks[name].append(robust_masks(one, model))
        omega = torch.ones(len(train_y), dtype=torch.float64)
        if given := variants[name].hyperparameters:
            x_adv = pgd(model, train_x, train_y, one.threat, seed=one.seed).x_adv
            with torch.no_grad():
                margins = probabilistic_margin(model(x_adv), train_y)
            omega = mail(margins, slope=given["slope"], bias=given["bias"]).double().cpu()
        rests[name].append(_effective_parts(omega))
    found, effective = {name: join_seeds(some) for name, some in masks.items()}, {k: torch.stack(v) for k, v in rests.items()}
    said = []
    for less, more in pairwise(("10, -1", "10, -0.5", "10, 0", "10, 0.5")):
        more_rest = gain(effective[more], effective[less])
        said.append(sentence(f"weights rest on more examples with slope, bias {more} than with {less}", more_rest))
    for flat, steep in pairwise(("2, -0.5", "5, -0.5", "10, -0.5", "20, -0.5")):
        more_rest = gain(effective[flat], effective[steep])
        said.append(sentence(f"weights rest on fewer examples with slope, bias {steep} than with {flat}", more_rest))
    said.append(sentence("with 10, -0.5 MAIL-AT is more robust than AT to PGD", gain(found["10, -0.5"].pgd, found["at"].pgd)))
    shares = ", ".join(f"{percent(some):.0f} % with {name}" for name, some in effective.items() if name != "at")
    return StudyResult(
        f"the weights rest on (effective size, of the training examples; slope, bias) {shares}",
        said,
        [
            one.row(**{"slope, bias": name if name != "at" else ""}, **accuracies({"effective, %": effective[name]}))
            for name, one in found.items()
        ],
    )


def _effective_parts(weights: Tensor) -> Tensor:
    """Return values (N,) whose mean is the effective size of weights, as a share: it, and what each example moves it by."""
    mean, square = weights.mean(), weights.square().mean()
    return mean.square() / square * (2 * weights / mean - weights.square() / square)


def draw_weights(result: StudyResult) -> Figure:
    """The weight functions, and accuracies of each."""
    figure, (curves, points) = new_figure(2, 9)
    margins = torch.linspace(-1, 1, 101)
    for slope, bias in SLOPES_AND_BIASES:
        unscaled = torch.sigmoid(-slope * (margins - bias))
        curves.plot(margins.tolist(), unscaled.tolist(), label=f"slope {slope:g}, bias {bias:g}")
    curves.set(xlabel="probabilistic margin", ylabel="weight before normalisation")
    curves.legend(fontsize=7)
    draw_accuracies(points, result, [name or "at" for name in result.column("slope, bias")], xlabel="slope, bias")
    points.tick_params(axis="x", rotation=45)
    return figure


def burn_in(context: StudyContext) -> StudyResult:
    """Train MAIL-AT with burn-ins of several lengths."""
    epochs = context.config.epochs
    lengths = dict.fromkeys(round(fraction * epochs) for fraction in (0.0, 0.25, 0.5, 0.75))
    found = trained_masks(context, {f"burn-in {length}": Variant("mail-at", {"burn_in": length}) for length in lengths})
    none, longest = found["burn-in 0"], found[f"burn-in {max(lengths)}"]
    return StudyResult(
        f"a burn-in of {max(lengths)} of {epochs} epochs leaves {percent(longest.strong):.1f} % right under the stronger "
        f"attacks, none {percent(none.strong):.1f} %; without an attack {percent(longest.clean):.1f} and "
        f"{percent(none.clean):.1f} %",
        [
            sentence("weights from the first epoch on cost robustness (PGD-20)", gain(longest.pgd, none.pgd)),
            sentence("weights from the first epoch on cost robustness (stronger attacks)", gain(longest.strong, none.strong)),
        ],
        [one.row(**{"burn-in, epochs": length}) for length, one in zip(lengths, found.values(), strict=True)],
    )


def draw_burn_in(result: StudyResult) -> Figure:
    """Accuracies over the length of the burn-in."""
    figure, (axes,) = new_figure()
    draw_accuracies(axes, result, result.column("burn-in, epochs"), xlabel="burn-in, epochs")
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


def imbalance(context: StudyContext) -> StudyResult:
    """Thin the training set out so that classes become ever rarer, train, and attack each class of the whole test set."""
    subset = replace(context.base.subset, imbalance=RATIO)
    thin = replace(context, base=replace(context.base, subset=subset), say=lambda text: context.say(f"thinned out, {text}"))
    y = context.examples()[1]
    classes = int(y.max()) + 1
    rare = y >= classes - classes // 3
    variants = {
        name: Variant(name.partition(",")[0], {}, {"class_weights": "balanced"} if "," in name else {}, decides="," not in name)
        for name in ("at", "trades", "mart", "at, balanced", "mart, balanced")
    }
    found = trained_masks(thin, variants)
    whole = trained_masks(context, {name: variants[name] for name in ("at", "mart")})
    by_class = {name: [percent(one.strong[:, y == k]) for k in range(classes)] for name, one in found.items()}
    thin_gain, whole_gain = (only(rare, gain(some["mart"].strong, some["at"].strong)) for some in (found, whole))
    rows = []
    for name, one in found.items():
        known = [number for number in by_class[name] if isfinite(number)]
        extra = accuracies({"strong, rarest third, %": only(rare, one.strong)}) | {"strong, worst class, %": min(known)}
        rows.append(one.row(training=name, **extra))
    return StudyResult(
        f"the first class has {RATIO:g} times the examples of the last. In the rarest third, under the stronger attacks, "
        + ", ".join(
            f"{name} has {number_text(row['strong, rarest third, %'])} % right" for name, row in zip(found, rows, strict=True)
        ),
        [
            sentence("MART helps the rarest third more than AT does", thin_gain),
            sentence("and by more than where classes are balanced", thin_gain - whole_gain),
        ],
        rows,
        {"by class": by_class},
        about=f"thinned out, {len(y):,} test examples",
    )


def draw_imbalance(result: StudyResult) -> Figure:
    """Accuracy under the stronger attacks of each class, the rarest last."""
    figure, (axes,) = new_figure()
    series = result.series["by class"]
    plot_lines(axes, range(len(series["at"])), series)
    axes.set(xlabel="class, from the most frequent to the rarest", ylabel="accuracy under stronger attacks, %")
    return figure
