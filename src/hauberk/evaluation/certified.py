"""Certificates within an evaluation: what is proved robust is attacked no more, and the result has a floor, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hauberk.attacks import Suite
from hauberk.certification.certify import certify
from hauberk.core.distributed import World
from hauberk.core.errors import UserError
from hauberk.core.intervals import Interval, wilson_interval
from hauberk.data import Subset
from hauberk.evaluation.runner import EvaluationRunner
from hauberk.objectives.functional import AttackLoss, fooled

CONTROLS = 16  # certified examples that are attacked all the same


@dataclass(frozen=True, eq=False)
class Certified:
    """What is proved of the examples of an evaluation: a lower bound of its robust accuracy.

    Attributes:
        proved_by: for each example the name of the bound that proved that no point of the threat model's set is misclassified,
            None where nothing did.
        seconds: that the proofs took.
    """

    proved_by: list[str | None]
    seconds: float

    def __repr__(self) -> str:
        return f"<Certified: {self.accuracy:.1%} of {len(self.proved_by)} examples>"

    @property
    def examples(self) -> np.ndarray:
        """Which examples are certified, (n,) bool."""
        return np.array([name is not None for name in self.proved_by])

    @property
    def accuracy(self) -> float:
        """Fraction of all examples that is certified."""
        return int(self.examples.sum()) / len(self.proved_by)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of it, for the population that the examples were drawn from."""
        return wilson_interval(int(self.examples.sum()), len(self.proved_by))


def check_certifiable(goal: AttackLoss, draws: int) -> None:
    """Refuse, by a UserError, to certify what certificates do not speak of."""
    if goal.criterion is not fooled:
        raise UserError("certificates are of classes: there are none with criterion= or a reject class")
    if draws > 1:
        raise UserError("a random model has no certificates; hb.certify_smoothed certifies what it is on average")


def certify_standing(runner: EvaluationRunner, suite: Suite, world: World, folder: Path | None) -> Certified:
    """Run the first attack, and certify what it leaves; later attacks see no more of that than a few, as a check.

    Args:
        runner: after the clean pass.
        suite: what runs.
        world: the processes, which share the examples.
        folder: of the evaluation, whose certificates are kept in ``certificates`` there; None for nowhere.
    """
    records, first = runner.records, next(iter(suite.stages))
    runner.run_attacks([first])
    records.share(world)
    standing = np.flatnonzero(records.right & ~records.broken([first]))
    proved_by: list[str | None] = [None] * records.n
    if not len(standing):
        return Certified(proved_by, 0.0)
    runner.display.line(f"certifying the {len(standing)} examples that stand after {first}")
    found = certify(
        runner.reference_model.model,
        Subset(runner.source, torch.from_numpy(standing)),
        threat=runner.threat,
        out=None if folder is None else folder / "certificates",
        quiet=runner.display.hidden,
    )
    runner.display.line(f"proved robust: {int(found.certified.sum())} of these {len(standing)}")
    for i, name in zip(standing.tolist(), found.proved_by, strict=True):
        proved_by[i] = name
    proved = np.flatnonzero(found.certified)
    controls = proved[np.argsort(found.bound[proved], kind="stable")[:CONTROLS]]  # whose proofs have the least to spare
    records.certified[standing[proved]] = True
    records.spared[standing[proved]] = True
    records.spared[standing[controls]] = False
    return Certified(proved_by, found.provenance["seconds"])


def joined(parts: Sequence[Certified]) -> Certified:
    """What is certified under each of several threat models is so under their union."""
    names = zip(*(part.proved_by for part in parts), strict=True)
    proved_by = [" and ".join(dict.fromkeys(name for name in some if name)) if all(some) else None for some in names]
    return Certified(proved_by, sum(part.seconds for part in parts))
