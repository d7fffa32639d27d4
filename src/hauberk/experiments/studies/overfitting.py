"""Studies of training that learns something else than robustness: FGSM's blind spot, and labels by heart."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.attacks import fgsm, pgd
from hauberk.core.figures import bar_style, column_figure, error_bars, from_zero, plot_points, put_legend, same_limits
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
from hauberk.experiments.studies.masks import accuracies, error_of
from hauberk.experiments.studies.method_variants import with_eps
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import gain, percent, sentence

FGSM_FACTORS = (1.0, 2.0)  # of ε, in training and in the attacks
_ATTACKS = ("clean", "FGSM", "PGD-20", "PGD-20, best epoch")


def fgsm_training(context: StudyContext) -> StudyResult:
    """Train with FGSM and with PGD, and attack both by both, at the last epoch and at the best."""
    one_step = {"steps": 1, "step_size": "eps", "start": "clean"}
    variants: dict[str, Variant] = {}
    for factor in FGSM_FACTORS:
        label, usual = ("", True) if factor == 1 else (f" at {factor:g} ε", False)
        pgd_trained = Variant("at") if usual else Variant(f"at{label}", custom=with_eps("at", factor), decides=False)
        variants[f"PGD, {factor:g} ε"] = pgd_trained
        variants[f"FGSM, {factor:g} ε"] = Variant(f"fgsm{label}", custom=with_eps("at", factor, **one_step), decides=usual)
    x, y = context.examples()
    seen: dict[str, list[list[Tensor]]] = {name: [] for name in variants}
    for name, one, best in context.networks(variants):
        last = one.trained_variant(variants[name], "last")
        threat = context.threat.scaled(float(name.split()[1]))
        with torch.no_grad():
            clean = last(x).argmax(1) == y
        one_step_right = clean & ~fgsm(last, x, y, threat).success
        right = [clean & ~pgd(last, x, y, threat, steps=20, step_size="eps/4", seed=one.seed).success]
        right.append(~pgd(best, x, y, threat, steps=20, step_size="eps/4", seed=one.seed).success)
        seen[name].append([clean, one_step_right, *right])
    found = {name: dict(zip(_ATTACKS, map(torch.stack, zip(*some, strict=True)), strict=True)) for name, some in seen.items()}
    said = [
        sentence(
            f"trained at {factor:g} ε with FGSM a network is less robust to PGD-20 than with PGD",
            gain(found[f"PGD, {factor:g} ε"]["PGD-20"], found[f"FGSM, {factor:g} ε"]["PGD-20"]),
        )
        for factor in FGSM_FACTORS
    ]
    blind, far = ({kind: found[f"{kind}, {factor:g} ε"] for kind in ("FGSM", "PGD")} for factor in FGSM_FACTORS)
    hidden = [gain(some["FGSM"], some["PGD-20"]) for some in blind.values()]
    said.append(sentence("between FGSM and PGD-20 it loses more than one trained with PGD", hidden[0] - hidden[1]))
    lost = [gain(some["PGD-20, best epoch"], some["PGD-20"]) for some in far.values()]
    said.append(sentence("at 2 ε it loses more from the best to the last epoch (PGD-20)", lost[0] - lost[1]))
    return StudyResult(
        "under PGD-20 at the last epoch "
        + ", ".join(f"{percent(one['PGD-20']):.1f} % are right after {name}" for name, one in found.items()),
        said,
        [
            {"trained with": name, **accuracies({f"{what}, %": mask for what, mask in one.items()})}
            for name, one in found.items()
        ],
        {"epochs": epoch_curves(context, variants)},
        caption=f"Trained and attacked with the same ε; last epoch, but where the best is named. {ERRORS_CAPTION} "
        f"{EPOCHS_CAPTION}",
    )


def draw_fgsm_training(result: StudyResult) -> Figure:
    """Accuracies under each attack, and PGD accuracy over epochs for each ε."""
    figure, (points, *plots) = column_figure((2.0, *[1.6] * len(FGSM_FACTORS)))
    names = [f"{what}, %" for what in _ATTACKS]
    series = {what.removesuffix(", %"): result.column(what) for what in names}
    errors = {what.removesuffix(", %"): result.column(error_of(what)) for what in names}
    plot_points(points, result.column("trained with"), series, errors, xlabel="accuracy, %", xlim=(-2, 102))
    put_legend(points, 2)
    for axes, factor in zip(plots, FGSM_FACTORS, strict=True):
        draw_epochs(axes, result.series["epochs"], "PGD", [f"{kind}, {factor:g} ε" for kind in ("PGD", "FGSM")])
        from_zero(axes)
    same_limits(plots)
    return figure


def memorising(context: StudyContext) -> StudyResult:
    """Train on true and on random labels, with and without an attack, and compare training with test examples."""
    random = {"subset": {"label_noise": 1.0}}
    variants = {name: Variant(name) for name in ("standard", "at")}
    variants |= {f"{name}, random labels": Variant(name, parts=random, decides=False) for name in ("standard", "at")}
    seen: dict[str, list[list[Tensor]]] = {name: [] for name in variants}
    for name, one, _ in context.networks(variants):
        last = one.trained_variant(variants[name], "last")
        own, others = one.with_parts(variants[name].parts).trained_on(), one.examples()
        seen[name].append([mask for x, y in (own, others) for mask in _right(one, last, x, y)])
    columns = ("training, clean", "training, PGD-20", "test, clean", "test, PGD-20")
    found = {name: dict(zip(columns, map(torch.stack, zip(*some, strict=True)), strict=True)) for name, some in seen.items()}
    count = min(mask.shape[1] for mask in found["at"].values())
    cut = {name: {what: mask[:, :count] for what, mask in one.items()} for name, one in found.items()}
    drops = {
        (name, kind): gain(cut[name][f"training, {kind}"], cut[name][f"test, {kind}"])
        for name in ("standard", "at")
        for kind in ("clean", "PGD-20")
    }
    learnt = {name: found[f"{name}, random labels"]["training, clean"] for name in ("standard", "at")}
    return StudyResult(
        f"of random labels standard training has {percent(learnt['standard']):.1f} % by heart, adversarial training "
        f"{percent(learnt['at']):.1f} %; on true labels clean accuracy drops by "
        f"{100 * float(drops['standard', 'clean'].mean()):.1f} "
        f"and {100 * float(drops['at', 'clean'].mean()):.1f} points from training to test examples, adversarial training's "
        "under "
        f"PGD-20 by {100 * float(drops['at', 'PGD-20'].mean()):.1f}",
        [
            sentence(
                "of random labels adversarial training remembers fewer than standard training",
                gain(learnt["standard"], learnt["at"]),
            ),
            sentence(
                "its clean accuracy drops less from training to test examples than standard training's",
                drops["standard", "clean"] - drops["at", "clean"],
            ),
            sentence(
                "its robust accuracy drops more from training to test examples than its clean accuracy",
                drops["at", "PGD-20"] - drops["at", "clean"],
            ),
        ],
        [{"network": name, **accuracies({f"{what}, %": mask for what, mask in one.items()})} for name, one in found.items()],
        {"epochs": epoch_curves(context, variants)},
        caption="Last epoch, on training examples with the labels they were trained on, and on test examples. "
        f"{ERRORS_CAPTION} "
        f"{EPOCHS_CAPTION} Training accuracy is that of each method's own examples: clean ones or those under its attack.",
    )


def _right(context: StudyContext, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return which examples are right, without an attack and under PGD-20."""
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    return [clean, clean & ~pgd(model, x, y, context.threat, steps=20, step_size="eps/4", seed=context.seed).success]


def draw_memorising(result: StudyResult) -> Figure:
    """Training and test accuracy of each network, and training and held-out accuracy over epochs."""
    figure, (clean, robust, true, random) = column_figure((1.5, 1.2, 1.5, 1.4))
    names = [name.replace(", ", ",\n") for name in result.column("network")]
    for axes, kind in ((clean, "clean"), (robust, "PGD-20")):
        for k, split in enumerate(("training", "test")):
            column = f"{split}, {kind}, %"
            places = [place + 0.38 * (k - 0.5) for place in range(len(names))]
            bars = error_bars(result.column(error_of(column)))
            axes.bar(places, result.column(column), 0.36, yerr=bars, capsize=2, label=f"{split} examples", **bar_style(k))
        axes.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 100), ylabel=f"{kind}, %")
        axes.grid(False, axis="x")
    put_legend(clean)
    curves: dict[str, Any] = result.series["epochs"]
    at, standard, remembered = curves["at"], curves["standard, random labels"], curves["at, random labels"]
    own = {"at, training": {"PGD": at["training, PGD"]}} if "training, PGD" in at else {}
    draw_epochs(true, own | {"at, held out": at}, "PGD")
    both = {
        "standard, random labels": {"own": standard.get("training, clean")},
        "at, random labels": {"own": remembered.get("training, PGD")},
    }
    draw_epochs(random, {name: one if one["own"] else {} for name, one in both.items()}, "own", columns=2, ylabel="training, %")
    return figure
