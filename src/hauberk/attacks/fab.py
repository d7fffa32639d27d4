"""FAB: fast adaptive boundary attack (Croce and Hein 2020), which looks for the nearest adversarial example."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.apgd import far_start
from hauberk.attacks.fab_projections import onto_hyperplane
from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh, where_rows
from hauberk.attacks.targets import count_targets, pick_target
from hauberk.core.errors import UserError
from hauberk.objectives.functional import fooled, make_loss
from hauberk.threat import FeasibleSet, Norm

ALPHA_MAX = 0.1  # how far at most towards the projection of the clean input
ETA = 1.05  # overshoot
BETA = 0.9  # how far back towards the clean input from an adversarial point

_ROUNDING = 4e-6  # of a norm in float32
_TINY = 1e-30
_FAR = 1e12  # instead of infinity, where the box has no bound


@dataclass(frozen=True)
class Fab:
    """FAB with AutoAttack's numbers; see :func:`hauberk.attacks.fab`.

    Attributes:
        steps: iterations of each run.
        targeted: aim at one of the most likely wrong classes in each turn (FAB-T); otherwise at the nearest of all linearised
            boundaries, at one backward pass for each class and step.
        targets: how many.
        restarts: runs, the first from the clean input, the others from random points at ε/2.
        evading: the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    steps: int = 100
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    evading: bool = False
    stride = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.targets < 1:
            numbers = f"{self.steps}, {self.restarts} and {self.targets}"
            raise UserError(f"fab needs at least 1 step, restart and target, got {numbers}")
        if self.evading and not self.targeted:
            raise UserError("untargeted FAB is not defined for a model with a class of adversarial inputs; use FAB-T")

    @property
    def length(self) -> int:
        """Looks in a turn that count."""
        return self.steps

    @property
    def _loss(self) -> str:
        return "evade-targeted" if self.evading else "cw-targeted"

    def turns(self, classes: int) -> int:
        """Restarts, times targets."""
        return self.restarts * (count_targets(self._loss, self.targets, classes) if self.targeted else 1)

    def begin(self, task: Task) -> "FABState":
        """Start at the clean input, or at a random point near it."""
        region, x = task.region, task.region.x
        targets = count_targets(self._loss, self.targets, task.clean.shape[1]) if self.targeted else 1
        near = region.x + 0.5 * (far_start(region, task.rng, task.tag) - region.x)
        point = where_rows(task.turn >= targets, near, x)
        target = pick_target(task, self._loss, self.targets) if self.targeted else task.y
        scale, free = region.scale, (region.radius > 0).to(x.dtype)
        return FABState(
            *fresh(task),
            target=target,
            point=point,
            above=(free * ((region.high - x) / scale).clamp_max(_FAR)).flatten(1),
            below=(free * ((x - region.low) / scale).clamp_max(_FAR)).flatten(1),
        )

    def advance(self, rows: "FABState", passes: ModelQueries, clock: Clock) -> None:
        """Step onto the linearised boundary, beyond it, and back from there if it was crossed."""
        region, x = rows.region, rows.region.x
        above, below = rows.above, rows.below
        # Everything below is in units of ε, as offsets from the clean input.
        at = ((rows.point - x) / region.radius.clamp_min(_TINY)).flatten(1)
        gap, normal = self._boundary(
            rows, passes, region.radius.expand(x.shape).flatten(1) if region.radius.ndim else region.radius
        )
        from_here = onto_hyperplane(region.norm, normal, gap, at + below, above - at)
        from_clean = onto_hyperplane(region.norm, normal, gap + (normal * at).sum(1), below, above)
        here, clean = (_length(region.norm, d).clamp_min(1e-8) for d in (from_here, from_clean))
        alpha = (here / (here + clean)).clamp(0.0, ALPHA_MAX)[:, None]
        moved = (at * (1 - alpha)).addcmul_(from_here, ETA * (1 - alpha)).addcmul_(from_clean, ETA * alpha)
        point = _within(region, x + moved.view_as(x) * region.radius)
        wrong = self._judge(rows, point, passes)
        rows.point = where_rows(wrong, x + BETA * (point - x), point)

    def _boundary(self, rows: "FABState", passes: ModelQueries, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The linearised boundary to aim at: how much the logit gap has to grow, (B,), and its gradient, (B, D)."""
        if self.targeted:
            loss = make_loss(self._loss)
            _, value, grad = passes.gradient(rows.point, lambda z: loss(z, rows.y, rows.target))
            return -value.to(grad.dtype), grad.flatten(1) * scale
        logits, grads = passes.gradients(rows.point, rows.y)
        normals = grads.flatten(2) * (scale[:, None] if scale.ndim else scale)
        gaps = logits.gather(1, rows.y[:, None]) - logits
        norms = _length(_dual(rows.region.norm), normals)
        distance = (gaps.abs() / (norms + 1e-12)).scatter(1, rows.y[:, None], torch.inf)
        nearest = distance.argmin(1, keepdim=True)
        normal = normals.gather(1, nearest[:, :, None].expand(-1, -1, normals.shape[2])).squeeze(1)
        return gaps.gather(1, nearest).squeeze(1).to(normal.dtype), normal

    def _judge(self, rows: "FABState", point: Tensor, passes: ModelQueries) -> Tensor:
        """Look at where we are; what counts as found is inside the ball, and as found anyway may be outside."""
        logits = passes.look(point)
        wrong = fooled(logits, rows.y, self.evading)
        region = rows.region
        length = _length(region.norm, ((point - region.x) / region.radius.clamp_min(_TINY)).flatten(1))
        if region.norm == "Linf":
            offered, inside = region.project(point), wrong & (length <= 1)
        else:
            offered, inside = point, wrong & (length <= 1 - _ROUNDING)
        rows.offer(offered, logits, torch.where(inside, -length, -torch.inf), inside)
        return wrong


@dataclass
class FABState(Rows):
    """FAB under way."""

    target: Tensor
    point: Tensor  # inside the box, perhaps outside the ball
    above: Tensor  # how far each coordinate may go up within the box, (B, D) in units of ε
    below: Tensor


def _within(region: FeasibleSet, point: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(point, region.low), region.high)


def _length(norm: Norm, d: Tensor) -> Tensor:
    """Length along the last dimension."""
    if norm == "Linf":
        return d.abs().amax(-1)
    length: Tensor = d.norm(p=2 if norm == "L2" else 1, dim=-1)
    return length


def _dual(norm: Norm) -> Norm:
    return {"Linf": "L1", "L2": "L2", "L1": "Linf"}[norm]  # type: ignore[return-value]
