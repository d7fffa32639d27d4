"""Sentences of a claim: differences over seeds and examples, and whether two standard errors tell them from 0."""

from math import isfinite, nan, sqrt
from typing import Any

from torch import Tensor

AGREES, DISAGREES, UNTOLD = "agrees", "does not agree", "cannot be told"
NOTHING = 1.0  # points of accuracy, or percent: where a source says "nothing", "almost nothing" or "as many" (ours)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean over seeds of means over examples, and its standard error from both.

    The error is ``sqrt(var_s(m_s) / S + var_i(u_i) / N)``, m_s the mean of seed s over its examples, u_i the mean over seeds of
    what example i moves m_s by; networks of all seeds are tried on the same examples. Where seeds and examples interact, that
    part counts twice, so the error is rather too large.

    Args:
        values: (S, N), one for each seed and example; NaN where there is none.

    Returns:
        Mean and standard error; both NaN if a seed has no value, and the error if there is one seed, or one example.
    """
    plain = _without_gaps(values)
    means, (seeds, count) = plain.mean(1), plain.shape
    if seeds < 2 or count < 2:
        return float(means.mean()), nan
    moved = (plain - means[:, None]).mean(0)
    return float(means.mean()), sqrt(float(means.var()) / seeds + float(moved.var()) / count)


def sentence(says: str, values: Tensor, unit: str = "points") -> dict[str, Any]:
    """Test a sentence of a claim: that a difference is above 0, by two standard errors over seeds and examples.

    Args:
        says: the sentence.
        values: (S, N), the difference for each seed and example, NaN where there is none.
        unit: of the difference; "points" are those of percent, of values that are shares. Of n examples these have a standard
            error of 1/n at least: that none of a few was seen does not say that there are none.

    Returns:
        A row of a table: the sentence, the difference, its standard error, and "agrees" where the difference is above 0 by two,
        "does not agree" where it is below 0 by two, otherwise "cannot be told". None for a number that cannot be told.
    """
    difference, error = mean_and_error(values)
    if unit == "points":
        known = int(values.isfinite().any(0).sum())
        difference, error = 100 * difference, 100 * (max(error, 1 / known) if known and isfinite(error) else error)
    verdict = AGREES if difference > 2 * error else DISAGREES if difference < -2 * error else UNTOLD
    numbers = {"difference": difference, "±": error}
    return {"sentence": says} | {k: v if isfinite(v) else None for k, v in numbers.items()} | {"unit": unit, "verdict": verdict}


def difference_of(ours: Tensor, others: Tensor) -> Tensor:
    """Return values (S, N) with the differences of the means of ``ours`` and ``others``, whose NaN may be in other places."""
    return _without_gaps(ours) - _without_gaps(others)


def _without_gaps(values: Tensor) -> Tensor:
    """Return values (S, N) without NaN, of which each row has the same mean, and each example moves it by as much."""
    values = values.double()
    known = values.isfinite()
    counts = known.sum(1, keepdim=True)
    means = values.where(known, 0.0).sum(1, keepdim=True) / counts  # NaN of a row of NaN
    return means + ((values - means) * values.shape[1] / counts).where(known, 0.0)


def only(mask: Tensor, values: Tensor) -> Tensor:
    """Return values (S, N) as numbers where the mask is True, and NaN elsewhere."""
    return values.double().where(mask, nan)


def gain(ours: Tensor, others: Tensor, least: float = 0.0) -> Tensor:
    """Return how much more often the first networks are right, (S, N), beyond ``least`` points."""
    return ours.double() - others.double() - least / 100


def number_or_none(value: float) -> float | None:
    """Return a number, or None in place of NaN and infinities."""
    return value if isfinite(value) else None


def number_text(value: float | None, digits: int = 1) -> str:
    """Return a number with so many digits behind the point, "?" where it cannot be told."""
    return "?" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def percent(right: Tensor) -> float:
    """Share of True, in percent, over all seeds and examples; NaN of nothing."""
    return 100 * float(right.double().mean())
