"""The result of certifying: which examples no attack can break, and what proved it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hauberk.core.intervals import Interval, wilson_interval
from hauberk.core.io import write_result

FORMAT = "hauberk-certificates/1"


@dataclass(frozen=True, eq=False)
class Certificates:
    """Certified robustness of a model: a lower bound, because an example that is not certified may be robust all the same.

    All accuracies are fractions of all examples, in [0, 1].

    Attributes:
        threat: printable threat model.
        methods: names of the bounds that were tried, the cheapest first.
        label: of each example, (n,) int64.
        predicted: what the model says of each example without an attack, (n,) int64.
        margin: of each example without an attack, ``z_y - max_{k≠y} z_k``, (n,) float64.
        bound: of each example, below which this margin is nowhere in the set of the threat model, (n,) float64: the best that
            the bounds that were tried say; NaN where the example is classified wrong, so that none was tried.
        proof: number of the bound, in ``methods``, that proved each example, (n,) int64; -1 for none.
        provenance: seconds, versions, machine.
    """

    threat: str
    methods: tuple[str, ...]
    label: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    bound: np.ndarray
    proof: np.ndarray
    provenance: dict[str, Any]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.label)

    @property
    def certified(self) -> np.ndarray:
        """Which examples are proved to be classified right on the whole set of the threat model, (n,) bool."""
        return np.asarray(self.proof >= 0)

    @property
    def proved_by(self) -> list[str | None]:
        """For each example the name of the bound that proved it, None if none did."""
        return [self.methods[k] if k >= 0 else None for k in self.proof.tolist()]

    @property
    def clean_accuracy(self) -> float:
        """Fraction that is classified right without an attack."""
        return int((self.label == self.predicted).sum()) / self.n

    @property
    def certified_accuracy(self) -> float:
        """Fraction that is certified: no attack on these examples leaves less."""
        return int(self.certified.sum()) / self.n

    @property
    def undecided(self) -> float:
        """Fraction that is right without an attack and not certified: attacks may break these, or not."""
        return int(((self.label == self.predicted) & ~self.certified).sum()) / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the certified accuracy, for the population that the examples were drawn from."""
        return wilson_interval(int(self.certified.sum()), self.n)

    @property
    def examples(self) -> list[dict[str, Any]]:
        """For each example, in order, "i", "label", "predicted", "margin", "bound" and "proved_by", as plain types."""
        columns = {name: getattr(self, name).tolist() for name in ("label", "predicted", "margin", "bound")}
        columns = {"i": list(range(self.n)), **columns, "proved_by": self.proved_by}
        columns["bound"] = [None if value != value else value for value in columns["bound"]]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        plain = "threat methods n clean_accuracy certified_accuracy undecided examples provenance"
        whole = {name: getattr(self, name) for name in plain.split()}
        return {"format": FORMAT, **whole, "bound": "lower", "methods": list(self.methods), "interval": list(self.interval)}

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, each example on a line of its own.

        Raises:
            UserError: if it cannot be written.
        """
        write_result(Path(path), self.to_dict())

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        counts = Counter(name for name in self.proved_by if name)
        how = ", ".join(f"{counts[name]} by {name}" for name in self.methods if counts[name]) or "none"
        return (
            f"robust accuracy at least {100 * self.certified_accuracy:.1f} % [{low:.1f}, {high:.1f}] under {self.threat}, "
            f"clean {100 * self.clean_accuracy:.1f} %, undecided {100 * self.undecided:.1f} %, n = {self.n}, certified: {how}"
        )

    def __repr__(self) -> str:
        return f"<Certificates: {self}>"
