"""MART's loss without some of its parts, or with others."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from hauberk.core.figures import column_figure, from_zero, plot_lines
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.drawing import ERRORS_CAPTION, draw_bars
from hauberk.experiments.studies.epochs import EPOCHS_CAPTION, draw_epochs, epoch_curves, last_masks
from hauberk.experiments.studies.masks import accuracies, trained_masks
from hauberk.experiments.studies.method_variants import BETA, MART_LOSSES, split_method, with_loss
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, gain, percent, sentence
from hauberk.methods import Method

# Losses whose last epoch is attacked, too.
LATE = ("whole", "without KL", "without both", "BCE on clean inputs")
FRACTIONS = (0.25, 0.5, 0.75)  # of the training examples that are regularised; 0 is "without both", 1 is MART


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
    variants = {name: Variant(f"mart {name}", custom=build) for name, build in custom.items()}
    found = trained_masks(context, variants)
    late = last_masks(context, {name: variants[name] for name in LATE})
    lost = {name: gain(found[name].pgd, late[name].pgd) for name in LATE}  # from the best to the last epoch
    best, shares = found["whole"].pgd, [0.0, *FRACTIONS, 1.0]
    regularised = [found[name].pgd for name in ("without both", *parts, "whole")]
    tilt = torch.tensor(shares, dtype=torch.float64)
    tilt = tilt - tilt.mean()
    slope = torch.tensordot(tilt / tilt.square().sum(), torch.stack(regularised).double().cpu(), 1)
    said = [sentence(f"MART is more robust than {name}", gain(best, found[name].pgd)) for name in MART_LOSSES]
    kl = gain(best, found["KL inner loss"].pgd, -NOTHING)
    said.append(sentence(f"KL as the inner loss gains nothing (MART is above it less {NOTHING:g} point)", kl))
    said.append(sentence("the more is regularised, the more robust (none to all, by a straight line)", slope))
    said += [
        sentence("without KL more is lost from the best to the last epoch than by MART", lost["without KL"] - lost["whole"]),
        sentence("with BCE on clean inputs, too", lost["BCE on clean inputs"] - lost["whole"]),
    ]
    cells = [accuracies({"robust": one}) for one in regularised]
    rows = []
    for name, one in found.items():
        known = {"lost by the last epoch, points": lost[name]} if name in lost else {}
        empty = dict.fromkeys(("lost by the last epoch, points", "lost by the last epoch, points ±"), "")
        rows.append(one.row(loss=name) | empty | accuracies(known))
    return StudyResult(
        f"with 0, 25, 50, 75, 100 % of the data regularised PGD-20 accuracy is "
        f"{', '.join(f'{percent(one):.1f}' for one in regularised)} %; from the best to the last epoch "
        f"{', '.join(f'{name!r} loses {100 * float(one.mean()):.1f}' for name, one in lost.items())} points",
        said,
        rows,
        {
            "share": shares,
            **{key: [cell[key] for cell in cells] for key in cells[0]},
            "epochs": epoch_curves(context, variants),
        },
        caption=f"Bars: PGD-20 accuracy on test examples. {ERRORS_CAPTION} {EPOCHS_CAPTION}",
    )


def draw_ablation(result: StudyResult) -> Figure:
    """PGD-20 accuracy of each loss, over the part of the data that is regularised, and over epochs."""
    figure, (bars, line, clean, robust) = column_figure((1.9, 1.3, 1.6, 1.5))
    rows = [row for row in result.rows if "%" not in row["loss"]]
    names = ["MART" if row["loss"] == "whole" else row["loss"] for row in rows]
    draw_bars(bars, names, [row["PGD-20, %"] for row in rows], [row["PGD-20 ±"] for row in rows], xlabel="PGD-20 accuracy, %")
    shares = [100 * share for share in result.series["share"]]
    labels = {"xlabel": "training examples regularised, %", "ylabel": "PGD-20, %", "xticks": shares}
    plot_lines(line, shares, {"PGD-20": result.series["robust"]}, {"PGD-20": result.series["robust ±"]}, **labels)
    from_zero(line)
    curves = {"MART" if name == "whole" else name: one for name, one in result.series["epochs"].items()}
    shown = ["MART", *(name for name in LATE if name != "whole")]
    draw_epochs(clean, curves, "clean", shown, columns=2)
    draw_epochs(robust, curves, "PGD", shown)
    robust.legend().remove()
    return figure
