"""Whether mistakes become dearer in the course of time, where the test set comes in its order."""

from collections.abc import Mapping
from typing import Any

from hauberk.report.figures import lines
from hauberk.report.html import Figure


def costs_over_time(found: Mapping[str, Any]) -> Figure | None:
    """Draw and list what mistakes cost in parts of the test set, in order of time; None where that is not known.

    Args:
        found: the JSON of an evaluation.
    """
    parts = (found.get("cost") or {}).get("over_time") or []
    if len(parts) < 2:  # one says nothing of time
        return None
    series = {title: [part[key] for part in parts] for key, title in (("cost", "clean"), ("cost_attacked", "under attack"))}
    caption = (
        f"Mean cost of an example, in {len(parts)} equal parts of the test set in order of time; under attack the highest that "
        "was found, at least. Both rise where the data drift away from the training; the gap between them is the adversary's"
    )
    rows = [[part["period"], part["n"], f"{part['cost']:.4g}", f"{part['cost_attacked']:.4g}"] for part in parts]
    picture = lines([part["period"] for part in parts], series, xlabel="part of the test set, in order of time", ylabel="cost")
    return Figure("evaluation-cost-over-time", caption, ["part", "examples", "cost", "under attack"], rows, picture)
