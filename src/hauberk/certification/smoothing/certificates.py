"""What randomised smoothing has certified: a radius for each example, and accuracy at every radius."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from hauberk.core.errors import UserError, printable
from hauberk.core.intervals import Interval, clopper_pearson_lower, wilson_interval
from hauberk.core.io import write_result

FORMAT = "hauberk-smoothing/1"
ABSTAINED = -1
_ROUNDED = 1e-12  # of SciPy's functions in float64, relative; their own errors are some 1e-14


def certified_radius(counts: np.ndarray, draws: int, alpha: float, sigma: float, error: np.ndarray) -> np.ndarray:
    """Return ``R = σ Φ⁻¹(p_A)`` with a lower bound p_A of each probability, or 0 where that is not above 1/2.

    Args:
        counts: how many of the draws gave the class, (m,).
        draws: n.
        alpha: with what probability a bound may be above the truth.
        sigma: σ.
        error: how far the draws are from Gaussian noise, (m,), which is taken off the bound.
    """
    from scipy.special import ndtri  # slow to import, seldom needed

    lower = clopper_pearson_lower(counts, draws, alpha) * (1 - _ROUNDED) - error
    return np.where(lower > 0.5, sigma * ndtri(np.maximum(lower, 0.5)) * (1 - _ROUNDED), 0.0)


@dataclass(frozen=True, eq=False)
class SmoothedCertificates:
    """Certified L2 radii of a smoothed classifier (Cohen, Rosenfeld and Kolter 2019, CERTIFY).

    They are of the **smoothed** classifier, which answers with the class that the network gives most often to an input with
    noise; they say nothing of the network alone. Each holds with a probability of at least 1 - α over the noise that was drawn,
    for all inputs nearer than its radius, inside the box or not.

    Attributes:
        sigma: σ, standard deviation of the noise, in the units of the input.
        draws: n, how many noisy copies of each example bound the probability of its class.
        selection_draws: n₀, how many others chose the class.
        alpha: α.
        labels: (m,) int64.
        selected: (m,) int64, the class that was chosen.
        counts: (m,) int64, how many of the n draws gave it.
        sampling_error: (m,) float64, taken off each bound: how far the draws are from Gaussian noise, in total variation.
        provenance: seed, data, passes, seconds, versions, machine.
    """

    sigma: float
    draws: int
    selection_draws: int
    alpha: float
    labels: np.ndarray
    selected: np.ndarray
    counts: np.ndarray
    sampling_error: np.ndarray
    provenance: dict[str, Any]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @cached_property
    def radius(self) -> np.ndarray:
        """Certified L2 radius of each example, (m,) float64, in the units of the input; 0 where it abstains."""
        return certified_radius(self.counts, self.draws, self.alpha, self.sigma, self.sampling_error)

    @property
    def abstained(self) -> np.ndarray:
        """For which examples nothing is certified, not even the class, (m,) bool."""
        return np.asarray(self.radius == 0)

    @property
    def predicted(self) -> np.ndarray:
        """The class of the smoothed classifier, (m,) int64; -1 where it abstains."""
        return np.where(self.abstained, ABSTAINED, self.selected)

    @property
    def right(self) -> np.ndarray:
        """Which examples the smoothed classifier gives their label, (m,) bool; an abstention is a mistake."""
        return np.asarray(self.predicted == self.labels)

    @property
    def largest_radius(self) -> float:
        """The radius where all draws gave the class: more needs more draws, whatever the network."""
        all_of_them, error = np.array([self.draws]), self.sampling_error.min(keepdims=True)
        return float(certified_radius(all_of_them, self.draws, self.alpha, self.sigma, error)[0])

    @property
    def average_radius(self) -> float:
        """Mean of the radii, with 0 for the examples that are not right (the average certified radius, ACR)."""
        return float(np.where(self.right, self.radius, 0.0).mean())

    def certified(self, radius: float) -> np.ndarray:
        """Which examples are right at every input within an L2 ball of this radius, (m,) bool.

        Raises:
            UserError: for a negative radius.
        """
        if not radius >= 0:
            raise UserError(f"a radius is 0 or more, got {radius}")
        return np.asarray(self.right & (self.radius > radius))

    def certified_accuracy(self, radius: float) -> float:
        """The fraction of the examples that are certified within a radius; at 0 the accuracy of the smoothed classifier."""
        return int(self.certified(radius).sum()) / self.n

    def interval(self, radius: float) -> Interval:
        """Wilson's 95 % interval of that, for the population that the examples were drawn from."""
        return wilson_interval(int(self.certified(radius).sum()), self.n)

    @property
    def radii(self) -> tuple[float, ...]:
        """Multiples of σ/2 up to the largest radius: where the curve is shown if nobody says otherwise."""
        return tuple(k * self.sigma / 2 for k in range(int(2 * self.largest_radius / self.sigma) + 1))

    def curve(self, radii: Sequence[float] = ()) -> list[dict[str, Any]]:
        """Certified accuracy against the radius: "radius", "certified_accuracy" and "interval" for each of ``radii``."""
        return [
            {"radius": r, "certified_accuracy": self.certified_accuracy(r), "interval": list(self.interval(r))}
            for r in radii or self.radii
        ]

    def table(self, radii: Sequence[float] = ()) -> Table:
        """Lay out the curve at some ``radii``."""
        shown = Table(
            title=Text(f"Certified accuracy in % of the smoothed classifier, σ = {self.sigma:g}, n = {self.n}"),
            caption=f"Lower bounds with 95 % intervals; each certificate holds with probability {1 - self.alpha:.4g}.",
        )
        shown.add_column("L2 radius", justify="right")
        shown.add_column("certified at least", justify="right")
        for point in self.curve(radii):
            share, (low, high) = point["certified_accuracy"], point["interval"]
            shown.add_row(f"{point['radius']:.4g}", Text(f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"))
        return shown

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        columns = {
            "label": self.labels, "predicted": self.predicted, "radius": self.radius, "selected": self.selected,
            "count": self.counts,
        }  # fmt: skip
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return {
            "format": FORMAT, "bound": "lower", "classifier": "smoothed", "norm": "L2", "sigma": self.sigma, "n": self.n,
            "draws": self.draws, "selection_draws": self.selection_draws, "alpha": self.alpha,
            "accuracy": self.certified_accuracy(0), "abstained": int(self.abstained.sum()) / self.n,
            "average_radius": self.average_radius, "curve": self.curve(), "provenance": self.provenance,
            "examples": [{"i": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(rows)],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, each example on a line of its own.

        Raises:
            UserError: if it cannot be written.
        """
        write_result(Path(path), self.to_dict())

    def __str__(self) -> str:
        points = ", ".join(
            f"{100 * p['certified_accuracy']:.1f} % [{100 * p['interval'][0]:.1f}, {100 * p['interval'][1]:.1f}] "
            + (f"within L2 {p['radius']:.4g}" if p["radius"] else "at the input itself")
            for p in self.curve()[:4]
        )
        return printable(
            f"smoothed classifier (σ = {self.sigma:g}; not the network alone) certified right at least {points}; it abstains "
            f"on {100 * int(self.abstained.sum()) / self.n:.1f} %, n = {self.n}, each certificate holds with probability "
            f"{1 - self.alpha:.4g}"
        )

    def __repr__(self) -> str:
        return f"<SmoothedCertificates: {self}>"
