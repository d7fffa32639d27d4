"""What studies of training measure: which test examples stand, and whether one network is better than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import apgd, pgd
from hauberk.threat import ThreatModel

_AT_ONCE = 250


@dataclass(frozen=True, eq=False)
class Standing:
    """Which examples a network has right, each (N,) bool.

    Attributes:
        clean: without an attack.
        pgd: and under PGD-20 (steps of ε/4).
        strong: and under APGD on cross-entropy, and on the targeted DLR loss towards the 3 most likely wrong classes: less than
            AutoAttack, of which the first is one attack and the second a third of another.
    """

    clean: Tensor
    pgd: Tensor
    strong: Tensor

    def row(self, **name: Any) -> dict[str, Any]:
        """Return a row of a table: what it is, and accuracies in percent."""
        shares = {"clean, %": self.clean, "PGD-20, %": self.pgd, "strong, %": self.strong}
        return {**name, **{key: percent(right) for key, right in shares.items()}}


def standing(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Standing:
    """Attack a network; x (N, ...), y (N,)."""
    parts = [
        _standing(model, *some, threat, seed + k)
        for k, some in enumerate(zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True))
    ]
    return Standing(*(torch.cat([getattr(part, name) for part in parts]) for name in ("clean", "pgd", "strong")))


def _standing(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Standing:
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    left = clean & ~pgd(model, x, y, threat, steps=20, step_size="eps/4", seed=seed).success
    strong = left.clone()
    for loss in ("ce", "dlr-targeted"):
        places = strong.nonzero().squeeze(1)
        if len(places):
            strong[places] = ~apgd(model, x[places], y[places], threat, loss=loss, targets=3, seed=seed).success
    return Standing(clean, left, strong)


def percent(right: Tensor) -> float:
    """Share of True, in percent; NaN of nothing."""
    return 100 * float(right.double().mean())


def difference(ours: Tensor, others: Tensor) -> tuple[float, float]:
    """Return by how many points one network is better on the same examples, and the standard error of that (paired)."""
    points = ours.double() - others.double()
    return 100 * float(points.mean()), 100 * float(points.std()) / sqrt(len(points))


def outputs_match(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool | None:
    """Judge claims that the first network of each pair is better on the same examples.

    Returns:
        True if all are, by two standard errors; False if one is worse by two; otherwise None. The error is that of the test
        examples only: a second training would scatter further.
    """
    found = [difference(*pair) for pair in pairs]
    if any(points < -2 * error for points, error in found):
        return False
    return True if all(points > 2 * error for points, error in found) else None


def said(ours: Tensor, others: Tensor) -> str:
    """Return a difference as text."""
    points, error = difference(ours, others)
    return f"{points:+.1f} ± {error:.1f}"
