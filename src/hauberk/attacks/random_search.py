"""Random points in the threat model: the weakest attack there is, and a check on all the others."""

from dataclasses import dataclass

import torch

from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh, where_rows
from hauberk.core.errors import UserError
from hauberk.objectives.functional import fooled, make_loss


@dataclass(frozen=True)
class RandomSearch:
    """Independent points, by turns uniform in the ball and at its corners (L∞: every coordinate at ± ε).

    Attributes:
        steps: how many points.
        evading: the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    steps: int = 100
    evading: bool = False
    stride = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"random search needs at least 1 point, got {self.steps}")

    @property
    def length(self) -> int:
        """Looks."""
        return self.steps

    def turns(self, classes: int) -> int:
        """One."""
        return 1

    def begin(self, task: Task) -> Rows:
        """Set up."""
        return Rows(*fresh(task))

    def advance(self, rows: Rows, passes: ModelQueries, clock: Clock) -> None:
        """Look at one more point."""
        region, tag = rows.region, rows.tag + 4 * rows.tick
        point = region.random(rows.rng, tag)
        if region.norm == "Linf":
            corner = torch.where(rows.rng.uniform(region.x, tag + 3) < 0.5, region.upper, region.lower)
            point = where_rows(rows.tick % 2 == 1, corner, point)
        logits = passes.look(point)
        loss = make_loss("evade" if self.evading else "cw")(logits, rows.y, None)
        rows.offer(point, logits, loss, fooled(logits, rows.y, self.evading))
