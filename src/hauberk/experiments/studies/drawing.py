"""Pictures that several studies share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from hauberk.core.figures import bar_style, error_bars, plot_lines, plot_points, put_legend
from hauberk.experiments.studies.context import StudyContext
from hauberk.experiments.studies.masks import ACCURACIES, error_of, strong_words
from hauberk.experiments.studies.result import StudyResult

SHORT = {"clean, %": "clean", "PGD-20, %": "PGD-20", "strong, %": "strong"}
ERRORS_CAPTION = "Error bars: standard errors over seeds and test examples."


def strong_caption(context: StudyContext) -> str:
    """Say below a picture what the stronger attacks are."""
    return f"Strong: {strong_words(context.classes)}."


def draw_accuracies(axes: Axes, result: StudyResult, x: Sequence[Any], **labels: Any) -> None:
    """Draw a line for each accuracy over the numbers x, with standard errors."""
    series = {SHORT[name]: result.column(name) for name in ACCURACIES}
    errors = {SHORT[name]: result.column(error_of(name)) for name in ACCURACIES}
    plot_lines(axes, x, series, errors, ylabel="accuracy, %", **labels)
    put_legend(axes)


def draw_accuracy_points(axes: Axes, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Draw a row for each of the rows of a table, with a point for each accuracy, from 0 to 100 %."""
    series = {SHORT[name]: [row[name] for row in rows] for name in ACCURACIES}
    errors = {SHORT[name]: [row[error_of(name)] for row in rows] for name in ACCURACIES}
    plot_points(axes, names, series, errors, xlabel="accuracy, %", xlim=(0, 100))


def draw_bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], errors: Sequence[float | None], number: int = 0, **labels: Any
) -> None:
    """Draw a horizontal bar from 0 for each value, the first on top, with its standard error and its number in digits."""
    style = bar_style(number)
    look: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8}
    axes.barh(range(len(names)), values, height=0.7, xerr=error_bars(errors), error_kw=look, **style)
    reach = [value + (error or 0.0) for value, error in zip(values, errors, strict=True)]
    for place, (end, value) in enumerate(zip(reach, values, strict=True)):
        axes.text(end, place, f" {value:.1f}", va="center", fontsize=6)
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlim=(0, None), **labels)
    axes.grid(False, axis="y")
