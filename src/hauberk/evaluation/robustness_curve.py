"""What a search for the nearest adversarial examples has found: robust accuracy at any ε."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from hauberk.core.errors import printable
from hauberk.core.intervals import Interval, wilson_interval
from hauberk.core.io import as_json, write_atomically
from hauberk.threat import parse_eps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "hauberk-curve/1"


@dataclass(frozen=True, eq=False)
class RobustnessCurve:
    """Robust accuracy against ε: at each ε an upper bound, because a stronger attack may find a nearer example.

    Attributes:
        threat: printable threat model.
        norm: name of its norm.
        eps_text: its ε, as it was given.
        eps: the grid, values at which attacks of a given ε were tried, too, rising.
        distances: (n,) float64, for each example the smallest distance at which a verified adversarial example was found: 0 for
            one that is misclassified as it is, infinity where none was found.
        found_by: for each example the attack that found it, "clean", or None.
        provenance: seed, attacks, passes, seconds, versions, machine.
    """

    threat: str
    norm: str
    eps_text: str
    eps: tuple[float, ...]
    distances: np.ndarray
    found_by: list[str | None]
    provenance: dict[str, Any]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.distances)

    @property
    def clean_accuracy(self) -> float:
        """Accuracy without an attack."""
        return float((self.distances > 0).mean())

    def robust_accuracy(self, eps: float | str) -> float:
        """Fraction of the examples for which no adversarial example within ε was found."""
        return self._robust(eps) / self.n

    def interval(self, eps: float | str) -> Interval:
        """Wilson's 95 % interval of that."""
        return wilson_interval(self._robust(eps), self.n)

    @property
    def median_distance(self) -> float:
        """Median of the distances of the examples that are classified right without an attack; NaN if there are none."""
        right = self.distances[self.distances > 0]
        return float(np.median(right)) if len(right) else float("nan")

    def eps_name(self, eps: float) -> str:
        """Write a value of ε as that of the threat model was written."""
        _, slash, below = self.eps_text.partition("/")
        if slash and below.isdigit():
            return f"{float(Fraction(eps) * int(below)):.4g}/{below}"
        return f"{eps:.4g}"

    def table(self) -> Table:
        """Lay out ε and robust accuracy with its interval."""
        title = f"Robust accuracy in % against ε in {self.norm}, n = {self.n}, clean {100 * self.clean_accuracy:.1f} %"
        caption = "At each ε an upper bound, with 95 % interval: a stronger attack may find nearer examples."
        shown = Table(title=Text(printable(title)), caption=caption)
        shown.add_column("ε", justify="right")
        shown.add_column("robust at most", justify="right")
        for eps in self.eps:
            low, high = self.interval(eps)
            shown.add_row(
                Text(self.eps_name(eps)), f"{100 * self.robust_accuracy(eps):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            )
        return shown

    @property
    def about(self) -> str:
        """Data, threat model, number of examples and seed: what belongs under the picture."""
        origin, n = self.provenance, f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{self.n:,}"
        subset, seed = origin["subset"], f"seed {origin['seed']}"
        return f"{origin['data']}, threat model {self.threat}, {n} ({subset}), {seed}, one network"

    def figure(self) -> "Figure":
        """Draw robust accuracy against ε, with its 95 % intervals, from the accuracy without an attack on, and say of what."""
        from hauberk.core.figures import put_caption

        picture = draw_curve(self)
        put_caption(picture, f"At each ε an upper bound: a stronger attack may find nearer examples. {self.about}")
        return picture

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        points = [
            {"eps": eps, "robust_accuracy": self.robust_accuracy(eps), "interval": list(self.interval(eps))} for eps in self.eps
        ]
        return {
            "format": FORMAT, "bound": "upper", "threat": self.threat, "norm": self.norm, "eps_text": self.eps_text,
            "n": self.n, "clean_accuracy": self.clean_accuracy, "median_distance": self.median_distance, "curve": points,
            "distances": [one if np.isfinite(one) else None for one in self.distances.tolist()], "found_by": self.found_by,
            "provenance": self.provenance,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the curve as JSON.

        Raises:
            UserError: if it cannot be written.
        """
        write_atomically(Path(path), as_json(self.to_dict(), indent=1).encode() + b"\n")

    def __str__(self) -> str:
        at = ", ".join(f"{self.eps_name(eps)}: {100 * self.robust_accuracy(eps):.1f} %" for eps in self.eps)
        return f"robust accuracy at most, in {self.norm} (clean {100 * self.clean_accuracy:.1f} %, n = {self.n}): {at}"

    def __repr__(self) -> str:
        return f"<RobustnessCurve: {self}>"

    def _robust(self, eps: float | str) -> int:
        return int((self.distances > float(parse_eps(eps)[0])).sum())


def draw_curve(curve: RobustnessCurve) -> "Figure":
    """Draw a curve without a caption: a step for each example, and a band of intervals."""
    from hauberk.core.figures import new_figure  # a second to import

    grid = (0.0, *curve.eps)
    picture, (axes,) = new_figure()
    low, high = (100 * np.array([curve.interval(eps)[end] for eps in grid]) for end in (0, 1))
    axes.fill_between(grid, low, high, alpha=0.25, linewidth=0, label="95 % interval")
    steps = np.sort(curve.distances[np.isfinite(curve.distances) & (curve.distances <= grid[-1])])
    x = np.concatenate([[0.0], steps[steps > 0], grid[-1:]])
    axes.step(x, [100 * curve.robust_accuracy(float(eps)) for eps in x], where="post", label="robust accuracy, at most")
    axes.legend(frameon=False)
    axes.set(xlabel=f"ε in {curve.norm}", ylabel="%", ylim=(0, 100), xlim=(0, grid[-1]))
    return picture
