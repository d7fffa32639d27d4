"""PGD and its kin on rows: the evaluator's form of the engine in ``ascent.py``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.attacks.model_queries import ModelQueries
from hauberk.attacks.rows import Clock, Rows, Task, fresh
from hauberk.attacks.steps import Ascent, accumulate, best_step, first_point, parse_step
from hauberk.attacks.targets import count_targets, pick_target
from hauberk.core.errors import UserError
from hauberk.objectives.functional import make_loss
from hauberk.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class Climb:
    """An ascent of the settings, for rows that are each at their own step.

    Attributes:
        settings: steps, step size, start, loss, restarts, momentum, ...; in evaluation mode, not friendly.
        threat: whose ε the step size refers to.
        targets: for a loss with a target, how many of the most likely wrong classes are targets in turn.
    """

    settings: Ascent
    threat: ThreatModel
    targets: int = 9
    stride = 4

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.mode != "eval" or settings.tau is not None or settings.jitter or isinstance(settings.start, Tensor):
            raise UserError("these settings are for training; evaluation attacks in mode 'eval', from a start by name")

    @property
    def length(self) -> int:
        """Looks in a turn."""
        return self.settings.steps + 1

    @property
    def evading(self) -> bool:
        """Whether the model's last output is a class of adversarial inputs."""
        return self.settings.loss.startswith("evade")

    def turns(self, classes: int) -> int:
        """Restarts, times targets."""
        return self.settings.restarts * count_targets(self.settings.loss, self.targets, classes)

    def begin(self, task: Task) -> "ClimbRows":
        """Draw the starts."""
        start = first_point(self.settings, task.region, task.rng, task.tag)
        target = pick_target(task, self.settings.loss, self.targets)
        return ClimbRows(*fresh(task), target=target, point=start, before=start, velocity=torch.zeros_like(start))

    def advance(self, rows: "ClimbRows", passes: ModelQueries, clock: Clock) -> None:
        """Look, with the gradient, and step."""
        settings, region = self.settings, rows.region
        loss = make_loss(settings.loss, settings.confidence)
        aim = rows.clean if settings.loss == "kl" else rows.target
        point = before = rows.point
        last = bool((clock >= settings.steps).all())
        if settings.nesterov and not last:
            point = region.project(point + settings.nesterov * (point - rows.before))
        if last:
            logits = passes.look(point)
            rows.see(point, logits, loss(logits, rows.y, aim).to(point.dtype), self.evading)
            return
        logits, value, grad = passes.gradient(point, lambda z: loss(z, rows.y, aim))
        rows.see(point, logits, value.to(point.dtype), self.evading)
        if settings.momentum:
            rows.velocity = grad = accumulate(rows.velocity, grad, settings.momentum)
        size = parse_step(settings.step_size, self.threat)
        size = size.to(point) if isinstance(size, Tensor) else size

        def gain(candidate: Tensor) -> Tensor:
            return loss(passes.look(candidate), rows.y, aim)

        rows.before, rows.point = before, best_step(region, point, grad, size, settings.line_search, gain)


@dataclass
class ClimbRows(Rows):
    """An ascent under way."""

    target: Tensor
    point: Tensor
    before: Tensor
    velocity: Tensor
