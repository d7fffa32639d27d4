"""The report of a robustness curve, which ``hauberk evaluate --curve`` takes its picture and its table from, too."""

from typing import Any

import numpy as np

from hauberk.core.errors import UserError
from hauberk.evaluation import RobustnessCurve
from hauberk.evaluation.robustness_curve import FORMAT, draw_curve
from hauberk.report.html import Figure, Metric, Page, Section
from hauberk.report.words import interval_in_words


def curve_of(stored: dict[str, Any]) -> RobustnessCurve:
    """Return the curve that :meth:`hauberk.RobustnessCurve.save` wrote. Raises UserError if it is of another format."""
    if stored.get("format") != FORMAT:
        raise UserError(f"a curve has the format {FORMAT}, not {stored.get('format')!r:.60}; measure it again")
    distances = np.array([np.inf if one is None else one for one in stored["distances"]], float)
    same = {name: stored[name] for name in ("threat", "norm", "eps_text", "found_by", "provenance")}
    return RobustnessCurve(eps=tuple(float(point["eps"]) for point in stored["curve"]), distances=distances, **same)


def curve_figure(curve: RobustnessCurve, name: str = "curve") -> Figure:
    """Return the picture of a curve with its numbers."""
    caption = (
        "Robust accuracy at every ε, at most: a step for each example, where its nearest adversarial example was found; a "
        f"stronger attack may find nearer ones. {curve.about}"
    )
    rows = [
        [curve.eps_name(eps), f"{100 * curve.robust_accuracy(eps):.1f}", interval_in_words(curve.interval(eps))]
        for eps in (0.0, *curve.eps)
    ]
    header = [f"ε in {curve.norm}", "robust at most, %", "95 % interval"]
    return Figure(name, caption, header, rows, draw_curve(curve))


def curve_page(curve: RobustnessCurve) -> Page:
    """Return the report of a robustness curve."""
    middle = "none" if np.isnan(curve.median_distance) else f"{curve.median_distance:.4g}"
    clean = f"95 % interval {interval_in_words(curve.interval(0.0))}"
    metrics = [
        Metric("clean accuracy", f"{100 * curve.clean_accuracy:.1f} %", clean),
        Metric("median distance", middle, f"in {curve.norm}, of those right without an attack"),
    ]
    sections = [Section("Robust accuracy against ε", [curve_figure(curve)])]
    return Page("Robust accuracy at every ε", curve.about, metrics, [], sections)
