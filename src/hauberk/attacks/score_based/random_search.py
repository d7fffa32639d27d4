"""Random points in the threat model: the weakest attack there is, and a check on all the others."""

from dataclasses import dataclass

import numpy as np

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackState, where_rows
from hauberk.objectives.functional import LossLike
from hauberk.threat import Norm


@dataclass(frozen=True)
class RandomSearch(Attack[AttackState]):
    """Independent points, by turns uniform in the ball and, in L∞, at its corners (every coordinate at ± ε).

    A model on which this finds more than gradients do hides its gradients.

    Attributes:
        steps: how many points.
        loss: the larger, the better a point: "cw" (margin), "evade" for a model whose last output is a class of adversarial
            inputs, or a function of outputs and labels.
    """

    steps: int = 100
    loss: LossLike = "cw"
    check_every = 10
    passes_per_step = 1
    uses_gradients = False

    def defined_in(self, norm: Norm) -> bool:
        """In all."""
        return True

    def step(self, state: AttackState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Look at one more point."""
        feasible, tag = state.feasible, state.tag + 4 * state.step
        at_corner = (host_steps % 2 == 1) & feasible.norm.is_box
        points = []
        if not at_corner.all():
            points.append(feasible.random(state.rng, tag))
        if at_corner.any():
            points.append(feasible.random_corner(state.rng, tag + 3))
        point = points[0] if len(points) == 1 else where_rows(state.step % 2 == 0, *points)
        logits = queries.logits(point)
        loss = self.attack_loss(logits, state.y)
        state.observe(point, logits, loss)


random_search = as_function(RandomSearch, "random_search", "Look at random points: a check on all other attacks.")
