"""Pictures that several studies share."""

from typing import Any

from matplotlib.axes import Axes

from hauberk.experiments.figures import plot_lines
from hauberk.experiments.studies.masks import ACCURACIES, error_of
from hauberk.experiments.studies.result import StudyResult


def draw_accuracies(axes: Axes, result: StudyResult, x: list[Any], **labels: Any) -> None:
    """Draw a line for each accuracy over x, with standard errors."""
    series = {name: result.column(name) for name in ACCURACIES}
    plot_lines(axes, x, series, {name: result.column(error_of(name)) for name in series}, ylabel="accuracy, %", **labels)
