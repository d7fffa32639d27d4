"""MART's study of misclassified examples, S-, and others, S+."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from hauberk.core.figures import INK, bar_style, column_figure, error_bars, from_zero, put_legend, same_limits
from hauberk.data import fetch_for
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves
from hauberk.experiments.studies.masks import trained_masks
from hauberk.experiments.studies.method_variants import at_with_kl, split_method, with_loss
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, gain, percent, sentence
from hauberk.methods import Method

TREATMENTS = ("unperturbed", "FGSM", "regularised")


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
            places = split_by_correctness(one, one.trained("at"))[part]
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
        {"epochs": epoch_curves(context, variants)},
        caption=f"S-: what a first network has wrong without an attack; S+: as many others. {ERRORS_CAPTION} {EPOCHS_CAPTION}",
    )


def draw_subsets(result: StudyResult) -> Figure:
    """PGD-20 accuracy for each treatment of each part, with that of plain adversarial training; and each over epochs."""
    figure, (bars, *plots) = column_figure((1.8, 1.35, 1.35, 1.35))
    rows = {row["training"]: row for row in result.rows}
    for k, part in enumerate(("S+", "S-")):
        shown = [rows[f"{part} {kind}"] for kind in TREATMENTS]
        places = [place + 0.38 * (k - 0.5) for place in range(len(TREATMENTS))]
        errors = error_bars([row["PGD-20 ±"] for row in shown])
        bars.bar(places, [row["PGD-20, %"] for row in shown], 0.36, yerr=errors, capsize=2, label=part, **bar_style(k))
    bars.axhline(rows["at"]["PGD-20, %"], color=INK, linestyle="--", label="AT")
    bars.set(xticks=range(len(TREATMENTS)), xticklabels=TREATMENTS, ylabel="PGD-20 accuracy, %")
    from_zero(bars)
    bars.grid(False, axis="x")
    put_legend(bars)
    for axes, kind in zip(plots, TREATMENTS, strict=True):
        curves = {"AT": result.series["epochs"]["at"]}
        curves |= {f"{part} {kind}": result.series["epochs"][f"{part} {kind}"] for part in ("S+", "S-")}
        draw_epochs(axes, curves, "PGD")
    same_limits(plots)
    return figure
