"""Studies of MAIL's weights: their slope and bias, and when they begin."""

from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hauberk.attacks import pgd
from hauberk.core.figures import column_figure, line_style, put_legend
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, draw_accuracies, draw_accuracy_points, strong_caption
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
from hauberk.experiments.studies.masks import RobustMasks, accuracies, join_seeds, robust_masks, trained_masks
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, percent, sentence
from hauberk.weighting import mail, probabilistic_margin

SLOPES_AND_BIASES = [(2.0, -0.5), (5.0, -0.5), (10.0, -0.5), (20.0, -0.5), (10.0, -1.0), (10.0, 0.0), (10.0, 0.5)]
# A better epoch before the weights were on, as the mark may show one, is another method's network, and is not kept.
_KEPT_CAPTION = "The first accuracies: best epoch with weights."


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
        {"epochs": epoch_curves(context, variants)},
        caption=f"{ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION} {_KEPT_CAPTION}",
    )


def _effective_parts(weights: Tensor) -> Tensor:
    """Return values (N,) whose mean is the effective size of weights, as a share: it, and what each example moves it by."""
    mean, square = weights.mean(), weights.square().mean()
    return mean.square() / square * (2 * weights / mean - weights.square() / square)


def draw_weights(result: StudyResult) -> Figure:
    """The weight functions, accuracies of each, and PGD accuracy over epochs."""
    figure, (functions, points, curves) = column_figure((2.1, 2.3, 2.0))
    margins = torch.linspace(-1, 1, 101)
    for k, (slope, bias) in enumerate(SLOPES_AND_BIASES):
        unscaled = torch.sigmoid(-slope * (margins - bias))
        style = line_style(k) | {"marker": ""}
        functions.plot(margins.tolist(), unscaled.tolist(), label=f"{slope:g}, {bias:g}", **style)
    functions.set(xlabel="probabilistic margin", ylabel="weight before normalisation")
    put_legend(functions, 4)
    names = [name or "AT" for name in result.column("slope, bias")]
    draw_accuracy_points(points, result.rows, names)
    points.set_ylabel("slope, bias")
    shown = {"AT" if name == "at" else name: one for name, one in result.series["epochs"].items()}
    draw_epochs(curves, shown, "PGD", columns=4)
    return figure


def burn_in(context: StudyContext) -> StudyResult:
    """Train MAIL-AT with burn-ins of several lengths."""
    epochs = context.config.epochs
    lengths = dict.fromkeys(min(round(fraction * epochs), epochs - 1) for fraction in (0.0, 0.25, 0.5, 0.75))
    variants = {f"burn-in {length}": Variant("mail-at", {"burn_in": length}) for length in lengths}
    found = trained_masks(context, variants)
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
        {"epochs": epoch_curves(context, variants)},
        caption=f"{ERRORS_CAPTION} {strong_caption(context)} {EPOCHS_CAPTION} {_KEPT_CAPTION}",
    )


def draw_burn_in(result: StudyResult) -> Figure:
    """Accuracies over the length of the burn-in, and clean and PGD accuracy over epochs."""
    figure, (ends, clean, robust) = column_figure((1.8, 1.6, 1.5))
    lengths = result.column("burn-in, epochs")
    draw_accuracies(ends, result, lengths, xlabel="burn-in, epochs", xticks=lengths)
    draw_epochs(clean, result.series["epochs"], "clean", columns=2)
    draw_epochs(robust, result.series["epochs"], "PGD")
    robust.legend().remove()
    return figure
