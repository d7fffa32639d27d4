"""Which differences between methods chance would explain, and the accuracies of saved evaluations that they are of."""

from collections.abc import Mapping
from math import isnan
from typing import Any

CLEAN, WORST, CERTIFIED = "clean", "worst case", "certified"


def accuracy(found: dict[str, Any], column: str) -> float:
    """Return one of the accuracies of an evaluation, as it was saved, in [0, 1]."""
    if column == CLEAN:
        return float(found["clean_accuracy"])
    if column == CERTIFIED:
        return float(found["certified"]["accuracy"])
    return float(found["robust_accuracy"] if column == WORST else found["by_attack"][column])


def mcnemar(ours: int, theirs: int) -> float:
    """Return the two-sided p-value of McNemar's (1947) exact test.

    Args:
        ours: how many examples only the one has right.
        theirs: how many only the other.
    """
    from scipy.stats import binomtest

    return float(binomtest(ours, ours + theirs, 0.5).pvalue) if ours + theirs else 1.0


def count_discordant(
    found: Mapping[str, dict[str, Any]], baselines: Mapping[str, str], column: str
) -> dict[str, tuple[int, int]]:
    """Count, of the same test examples, those that only a method has right and those that only its baseline has.

    Args:
        found: by method, what :meth:`hauberk.Evaluation.save` wrote.
        baselines: by method, what it is compared with.
        column: of the table.

    Returns:
        The two counts by method, without those of which the evaluations do not tell.
    """
    right = {method: _right(one, column) for method, one in found.items()}
    counts = {}
    for method, baseline in baselines.items():
        ours, theirs = right[method], right[baseline]
        if ours and len(ours) == len(theirs):
            pairs = list(zip(ours, theirs, strict=True))
            counts[method] = pairs.count((True, False)), pairs.count((False, True))
    return counts


def _right(found: dict[str, Any], column: str) -> list[bool]:
    """Return of each example whether it is right in a column; empty where this cannot be told."""
    broken_by = [example["broken_by"] for example in found.get("examples", [])]
    if column == CLEAN:
        return [name != CLEAN for name in broken_by]
    # Robust examples are among those that stand in any column: where there are as many, they are the same ones.
    same = not found.get("estimate") and column != CERTIFIED and accuracy(found, column) == found["robust_accuracy"]
    return [name is None for name in broken_by] if same else []


def holm(raw: dict[str, float]) -> dict[str, float]:
    """Adjust p-values for being several (Holm 1979); NaN stays."""
    known = sorted((p, name) for name, p in raw.items() if not isnan(p))
    adjusted = dict(raw)
    least = 0.0
    for k, (p, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - k) * p))
        adjusted[name] = least
    return adjusted
