"""The study of weights that mislead: AT, GAIRAT and MAIL-AT under three attacks, at the best epoch and over epochs."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from hauberk.attacks import pgd
from hauberk.core.figures import INK, bar_style, column_figure, error_bars, line_style, put_legend, same_limits
from hauberk.evaluation import evaluate
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, strong_caption
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, draw_mean, epoch_curves
from hauberk.experiments.studies.masks import accuracies, error_of, robust_masks
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, percent, sentence
from hauberk.training.schedule import first_drop

AUTOATTACKED = 100  # test examples that AutoAttack gets of each epoch: thousands of passes for each of them
_PARTS = 4  # of the epochs with weights: networks are looked at between them
_ATTACKS = {"PGD-100": {"steps": 100, "step_size": "eps/10"}, "CW-30": {"steps": 30, "step_size": "eps/4", "loss": "cw"}}
_AUTOATTACK = "AutoAttack"


def reweighting_and_attacks(context: StudyContext) -> StudyResult:
    """Train AT, GAIRAT and MAIL-AT; attack the best epoch of each, as in Table 2, and epochs with weights, as in Figure 1c."""
    begin, every = weights_begin(context), kept_every(context)
    variants = {name: Variant(name, settings={"save_every": every, "patience": 0}) for name in ("at", "gairat", "mail-at")}
    seen: dict[str, list[list[Tensor]]] = {name: [] for name in variants}
    over: dict[str, list[list[list[Tensor]]]] = {name: [] for name in variants}  # by seed, epoch and attack
    epochs = kept_epochs(context)
    for name, one, model in context.networks(variants):
        masks = robust_masks(one, model)
        seen[name].append([masks.clean[0], *_right(one, model), masks.strong[0]])
        kept = [one.kept(variants[name], epoch) for epoch in epochs[:-1]] + [one.trained_variant(variants[name], "last")]
        over[name].append([[*_right(one, net), _right_under_autoattack(one, net)] for net in kept])
    columns = ("clean", *_ATTACKS, "strong")
    found = {name: dict(zip(columns, map(torch.stack, zip(*some, strict=True)), strict=True)) for name, some in seen.items()}
    at, gairat, ours = found.values()
    lost = {name: gain(one["PGD-100"], one["CW-30"]) for name, one in found.items()}
    curves = {name: _by_attack(some) for name, some in over.items()}
    first = next(place for place, epoch in enumerate(epochs) if epoch > begin)
    weighted = {
        name: {attack: masks[:, first:].double().mean(1) for attack, masks in one.items()} for name, one in curves.items()
    }
    plain, misled, margins = weighted.values()
    return StudyResult(
        "; ".join(
            f"'{name}' has {_in_words(one)} right at its best epoch, and {_in_words(weighted[name])} from epoch {begin + 1} on"
            for name, one in found.items()
        ),
        [
            sentence("GAIRAT is more robust than AT to PGD-100", gain(gairat["PGD-100"], at["PGD-100"])),
            sentence("but less to CW-30", gain(at["CW-30"], gairat["CW-30"])),
            sentence("and less to stronger attacks", gain(at["strong"], gairat["strong"])),
            sentence("from PGD-100 to CW-30 MAIL-AT loses less than GAIRAT", lost["gairat"] - lost["mail-at"]),
            sentence("MAIL-AT is more robust than GAIRAT to stronger attacks", gain(ours["strong"], gairat["strong"])),
            *(
                sentence(f"over the epochs with weights {says}", difference)
                for says, difference in (
                    ("GAIRAT is more robust than AT to PGD-100", misled["PGD-100"] - plain["PGD-100"]),
                    ("it is less to CW-30", plain["CW-30"] - misled["CW-30"]),
                    ("it is less to AutoAttack", plain[_AUTOATTACK] - misled[_AUTOATTACK]),
                    ("MAIL-AT is more robust than GAIRAT to AutoAttack", margins[_AUTOATTACK] - misled[_AUTOATTACK]),
                )
            ),
        ],
        [
            {"training": name}
            | accuracies({f"{what}, %": mask for what, mask in one.items()})
            | accuracies({f"{what} with weights, %": mask for what, mask in weighted[name].items()})
            for name, one in found.items()
        ],
        {
            "epochs": epoch_curves(context, variants),
            "kept": epochs,
            "begin": begin,
            "attacked": {
                name: {attack: (100 * masks.double().mean(2)).tolist() for attack, masks in one.items()}
                for name, one in curves.items()
            },
        },
        caption="PGD-100: steps of ε/10; CW-30: 30 steps of ε/4 on the logit margin. Bars: best epoch with weights. "
        f"{ERRORS_CAPTION} {strong_caption(context)} Lines with marks: test examples at kept epochs, of AutoAttack the first "
        f"{_autoattacked(context)}; mean, and band from the lowest to the highest seed; dotted: from here on examples are "
        f"weighted. PGD, below: {EPOCHS_CAPTION}",
    )


def weights_begin(context: StudyContext) -> int:
    """Return the number of epochs before GAIRAT or MAIL-AT weighs examples, whichever begins first."""
    found = []
    for name in ("gairat", "mail-at"):
        config = context.experiment(Variant(name))[0].resolved.config
        found.append(context.method(name).with_schedule(config.epochs, first_drop(config)).burn_in_epochs)
    return min(found)


def kept_every(context: StudyContext) -> int:
    """Return every how many epochs weights are kept, so that a handful is of epochs in which examples are weighted."""
    return ceil((context.config.epochs - weights_begin(context)) / _PARTS)


def kept_epochs(context: StudyContext) -> list[int]:
    """Return the epochs, from 1, that are attacked: from the last kept one before the weights begin to the last of all."""
    every, last = kept_every(context), context.config.epochs
    first = max(weights_begin(context) // every, 1) * every
    return [*range(first, last, every), last]


def _right(context: StudyContext, model: nn.Module) -> list[Tensor]:
    """Return which test examples are right under each attack."""
    x, y = context.examples()
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    return [clean & ~pgd(model, x, y, context.threat, seed=context.seed, **some).success for some in _ATTACKS.values()]


def _right_under_autoattack(context: StudyContext, model: nn.Module) -> Tensor:
    """Return which of the first test examples are right under AutoAttack."""
    found = evaluate(
        model,
        context.base.load_data("test"),
        threat=context.threat,
        suite="standard",
        n=_autoattacked(context),
        seed=context.seed,
        diagnostics=(),
        quiet=True,
    )
    return torch.tensor([attack is None for attack in found.broken_by])


def _autoattacked(context: StudyContext) -> int:
    return min(AUTOATTACKED, len(context.examples()[1]))


def _in_words(masks: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{percent(mask):.1f} % ({what})" for what, mask in masks.items())


def _by_attack(seeds: list[list[list[Tensor]]]) -> dict[str, Tensor]:
    """Return for each attack the masks (S, K, N) of seeds, kept epochs and examples."""
    attacks = [*_ATTACKS, _AUTOATTACK]
    return {
        attack: torch.stack([torch.stack([masks[place] for masks in epochs]) for epochs in seeds])
        for place, attack in enumerate(attacks)
    }


def draw_reweighting_and_attacks(result: StudyResult) -> Figure:
    """Accuracy of each training under each attack at its best epoch, over kept epochs, and PGD accuracy over all of them."""
    attacked: Mapping[str, Any] = result.series["attacked"]
    attacks = list(next(iter(attacked.values())))
    figure, (bars, *plots, robust) = column_figure((1.9, *[1.25] * len(attacks), 1.4))
    columns = [name for name in result.rows[0] if name.endswith(", %") and "with weights" not in name]
    width = 0.8 / len(result.rows)
    for k, row in enumerate(result.rows):
        places = [place + width * (k - (len(result.rows) - 1) / 2) for place in range(len(columns))]
        errors = error_bars([row[error_of(name)] for name in columns])
        values = [row[name] for name in columns]
        bars.bar(places, values, 0.95 * width, yerr=errors, capsize=2, label=row["training"], **bar_style(k))
    names = [name.removesuffix(", %") for name in columns]
    bars.set(xticks=range(len(columns)), xticklabels=names, ylabel="accuracy, %", ylim=(0, 100))
    bars.grid(False, axis="x")
    put_legend(bars)
    for axes, attack in zip(plots, attacks, strict=True):
        for k, (name, one) in enumerate(attacked.items()):
            draw_mean(axes, result.series["kept"], one[attack], label=name, **line_style(k))
        axes.axvline(result.series["begin"], color=INK, linestyle=":", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylabel=f"{attack}, %")
    put_legend(plots[0])
    plots[-1].set(xlabel="epoch")
    same_limits(plots)
    draw_epochs(robust, result.series["epochs"], "PGD")
    robust.axvline(result.series["begin"], color=INK, linestyle=":", linewidth=0.8)
    if legend := robust.get_legend():  # that of the bars is of these, too
        legend.remove()
    return figure
