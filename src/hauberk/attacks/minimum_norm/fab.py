"""FAB: fast adaptive boundary attack (Croce and Hein 2020), which looks for the nearest adversarial example."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import Attack
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.state import AttackInputs, AttackState, count_targets, initial_state, where_rows
from hauberk.core.errors import UserError
from hauberk.objectives.functional import LossLike
from hauberk.threat.norms import Norm

ALPHA_MAX = 0.1  # how far at most towards the projection of the clean input
ETA = 1.05  # overshoot
BETA = 0.9  # how far back towards the clean input from an adversarial point

_ROUNDING = 4e-6  # of a norm in float32
_TINY = 1e-30
_FAR = 1e12  # instead of infinity, where the box has no bound


@dataclass(frozen=True)
class FAB(Attack["FABState"]):
    """Fast adaptive boundary attack (Croce and Hein 2020), as in AutoAttack: FAB-T, or FAB where ``targeted`` is False.

    Each step moves to the boundary of the classifier linearised at the current point, drawn a little towards the projection of
    the clean input: ``x' = (1-α)(x + η d) + α(x_0 + η d_0)`` with η = 1.05, and 10 % of the way back to the clean input from a
    point that is misclassified. It knows of ε only in that it stops where an adversarial point inside is found, which the
    official code finds out at the end. Where nothing was found, the result is the clean input.

    Attributes:
        steps: iterations of each run, at two forwards and one backward each.
        targeted: aim at one of the most likely wrong classes in each run (FAB-T); otherwise at the nearest of all linearised
            boundaries, at one backward pass for each class and step.
        targets: how many classes to aim at.
        restarts: runs (for each target), the first from the clean input, the others from random points at ε/2.
        loss: whose boundary it looks for: "cw-targeted", or "evade-targeted" for a model whose last output is a class of
            adversarial inputs, which is to be avoided too.
    """

    steps: int = 100
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    loss: LossLike = "cw-targeted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("cw-targeted", "evade-targeted"):
            raise UserError(f"FAB looks for the boundary of 'cw-targeted' or 'evade-targeted', not of {self.loss!r:.40}")
        if self.loss == "evade-targeted" and not self.targeted:
            raise UserError("untargeted FAB is not defined for a model with a class of adversarial inputs; use FAB-T")

    @property
    def passes_per_step(self) -> int:  # type: ignore[override]
        """Two forwards and one backward, or one for each class (of ten)."""
        return 3 if self.targeted else 12

    def n_runs(self, n_classes: int) -> int:
        """Restarts, times targets."""
        return self.restarts * (count_targets(self.attack_loss, self.targets, n_classes) if self.targeted else 1)

    def init(self, inputs: AttackInputs) -> "FABState":
        """Start at the clean input, or at a random point near it."""
        feasible, x = inputs.feasible, inputs.feasible.x
        assert inputs.clean_logits is not None  # needs_clean_logits
        targets = count_targets(self.attack_loss, self.targets, inputs.clean_logits.shape[1]) if self.targeted else 1
        near = x + 0.5 * (feasible.random_far(inputs.rng, inputs.tag) - x)
        point = where_rows(inputs.run >= targets, near, x)
        target = inputs.reference(self.attack_loss, self.targets) if self.targeted else inputs.y
        scale, free = feasible.scale, (feasible.radius > 0).to(x.dtype)
        return FABState(
            **initial_state(inputs),
            target=target,
            point=point,
            above=(free * ((feasible.high - x) / scale).clamp_max(_FAR)).flatten(1),
            below=(free * ((x - feasible.low) / scale).clamp_max(_FAR)).flatten(1),
        )

    def step(self, state: "FABState", queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Step onto the linearised boundary, beyond it, and back from there if it was crossed."""
        feasible, x, norm = state.feasible, state.feasible.x, state.feasible.norm
        above, below = state.above, state.below
        # Everything below is in units of ε, as offsets from the clean input.
        at = ((state.point - x) / feasible.radius.clamp_min(_TINY)).flatten(1)
        radius = feasible.radius.expand(x.shape).flatten(1) if feasible.radius.ndim else feasible.radius
        gap, normal = self._boundary(state, queries, radius)
        of_clean = gap + (normal * at).sum(1), below, above
        from_here, from_clean = _onto_hyperplane(norm, normal, (gap, at + below, above - at), of_clean)
        here, clean = (norm.length(d).clamp_min(1e-8) for d in (from_here, from_clean))
        alpha = (here / (here + clean)).clamp(0.0, ALPHA_MAX)[:, None]
        moved = (at * (1 - alpha)).addcmul_(from_here, ETA * (1 - alpha)).addcmul_(from_clean, ETA * alpha)
        point = feasible.clamp(x + moved.view_as(x) * feasible.radius)
        logits = queries.logits(point)
        wrong = state.criterion(logits, state.y)
        length = norm.length(((point - x) / feasible.radius.clamp_min(_TINY)).flatten(1))
        inside = wrong & (length <= (1 if norm.is_box else 1 - _ROUNDING))
        offered = feasible.project(point) if norm.is_box else point  # what is not inside is never kept
        state.offer(offered, logits, torch.where(inside, -length, -torch.inf), inside)
        state.point = where_rows(wrong, x + BETA * (point - x), point)

    def _boundary(self, state: "FABState", queries: ModelQueries, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The linearised boundary to aim at: how much the logit gap has to grow, (B,), and its gradient, (B, D)."""
        if self.targeted:
            _, value, grad = queries.value_and_grad(state.point, self.attack_loss, state.y, state.target)
            return -value.to(grad.dtype), grad.flatten(1) * scale
        best: tuple[Tensor, ...] = ()  # distance, gap and normal of the nearest boundary so far; of equal ones the first
        for classes, logits, grads in queries.logit_gradients(state.point, state.y):
            normals = grads.flatten(2) * (scale[:, None] if scale.ndim else scale)
            gaps = (logits.gather(1, state.y[:, None]) - logits)[:, classes]
            own = torch.arange(classes.start, classes.stop, device=gaps.device) == state.y[:, None]
            distance = (gaps.abs() / (state.feasible.norm.dual.length(normals) + 1e-12)).masked_fill(own, torch.inf)
            nearest = distance.argmin(1, keepdim=True)
            normal = normals.gather(1, nearest[:, :, None].expand(-1, -1, normals.shape[2])).squeeze(1)
            found = distance.gather(1, nearest), gaps.gather(1, nearest), normal
            if not best:
                best = found
                continue
            nearer = torch.cat([best[0], found[0]], 1).argmin(1) == 1
            best = tuple(where_rows(nearer, one, other) for one, other in zip(found, best, strict=True))
        _, gap, normal = best
        return gap.squeeze(1).to(normal.dtype), normal


def _onto_hyperplane(norm: Norm, normal: Tensor, *problems: tuple[Tensor, Tensor, Tensor]) -> Sequence[Tensor]:
    """Solve :meth:`hauberk.threat.Norm.onto_hyperplane` for several gaps and rooms below and above, of the same normals."""
    if normal.device.type == "cpu":  # whose caches hold one better than both
        return [norm.onto_hyperplane(normal, *problem) for problem in problems]
    together = (torch.cat(part) for part in zip(*problems, strict=True))
    return norm.onto_hyperplane(normal.repeat(len(problems), 1), *together).chunk(len(problems))


@dataclass
class FABState(AttackState):
    """FAB under way."""

    target: Tensor
    point: Tensor  # inside the box, perhaps outside the ball
    above: Tensor  # how far each coordinate may go up within the box, (B, D) in units of ε
    below: Tensor


fab = as_function(FAB, "fab", "Fast adaptive boundary attack (Croce and Hein 2020), as in AutoAttack.")
