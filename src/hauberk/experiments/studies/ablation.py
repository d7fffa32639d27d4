"""MART's loss without some of its parts, or with others."""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from hauberk.experiments.figures import COLOURS, error_bars, new_figure
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies, trained_masks
from hauberk.experiments.studies.method_variants import BETA, MART_LOSSES, split_method, with_loss
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, gain, percent, sentence
from hauberk.methods import Method

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
