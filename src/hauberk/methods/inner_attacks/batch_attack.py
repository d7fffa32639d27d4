"""An attack on the batch of a training step: its settings, draws and radii are those of the step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, AttackResult
from hauberk.attacks.base import attack_batch
from hauberk.attacks.step_size import RelativeStep, parse_step_size
from hauberk.core.arguments import check_argument, check_callable
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.threat import ThreatModel

InnerAttack: TypeAlias = Callable[[StepContext], AttackResult | Tensor]


class BatchAttack:
    """An attack of :mod:`hauberk.attacks` on the batch. PGD hands back its last point without looking at it: the loss does.

    Args:
        attack: what to run.
        taus: τ of friendly training by the progress of the training: (part of the training up to which, τ), rising.
        evaluate_last: let PGD look at its last point all the same, which moves BatchNorm's statistics in mode "train".
        own_steps: whether a step that is a part of ε is so of each example's own radius, where it has one, or of ε.
        later_radius: ε times this from the epoch on in which the learning rate first drops, by the same steps; above 1, x'
            may leave the threat model then. None for ε to the end.
        later_steps: K of PGD from that epoch on; None for the same to the end.

    Raises:
        UserError: for a radius or a number of steps that is not positive.
    """

    def __init__(
        self,
        attack: Attack[Any],
        taus: tuple[tuple[float, int], ...] = (),
        evaluate_last: bool = False,
        own_steps: bool = True,
        later_radius: float | None = None,
        later_steps: int | None = None,
    ):
        self.attack: Attack[Any] = attack
        self.own_steps = own_steps
        self.later_radius: float | None = check_argument("later_radius", later_radius, float | None)
        self.later_steps: int | None = check_argument("later_steps", later_steps, int | None)
        for name in ("later_radius", "later_steps"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"{name} must be positive, got {value}")
        self.taus: tuple[tuple[float, int], ...] = ()
        self._friendly: list[Attack[Any]] = []
        if isinstance(attack, PGD):
            self.attack = trained = replace(attack, return_last=True, evaluate_last=evaluate_last)
            self.taus, self._friendly = taus, [replace(trained, tau=tau) for _, tau in taus]

    @property
    def follows_progress(self) -> bool:
        """Whether it is another attack at another part of the training."""
        return bool(self.taus) or self.later_radius is not None or self.later_steps is not None

    def attack_at(self, progress: float) -> Attack[Any]:
        """Return the attack with the τ of a point of the training, where it has one."""
        reached = (attack for (part, _), attack in zip(self.taus, self._friendly, strict=True) if progress <= part)
        return next(reached, self._friendly[-1] if self.taus else self.attack)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        attack, threat, later = self.attack_at(context.progress), context.threat, context.epoch >= context.schedule.first_drop
        if later and self.later_steps is not None and isinstance(attack, PGD):
            attack = replace(attack, steps=self.later_steps)
        if context.radii is not None and not self.own_steps and isinstance(attack, PGD):
            attack = attack.with_steps_of(threat.eps)
        if not later or self.later_radius is None:
            return run_in_step(attack, context, threat)
        if isinstance(attack, PGD) and isinstance(size := parse_step_size(attack.step_size), RelativeStep):
            attack = replace(attack, step_size=RelativeStep(size.times, size.over * self.later_radius))
        found = run_in_step(attack, context, threat.scaled(self.later_radius))
        context.largest_radius *= self.later_radius  # in which the points are
        return found


def run_in_step(
    attack: Attack[Any],
    context: StepContext,
    threat: ThreatModel,
    around: Callable[[nn.Module], nn.Module] | None = None,
    **more: Any,
) -> AttackResult:
    """Attack the batch of a step, with its random draws, soft labels, radii and precision.

    Args:
        attack: what to run.
        context: of the step.
        threat: where the points must be, which may be another than the step's.
        around: makes what is attacked from the network of the step.
        **more: further arguments of :func:`hauberk.attacks.base.attack_batch`.
    """
    more.setdefault("return_clean_logits", context.return_clean_logits)
    if context.targets is not None and isinstance(attack, PGD) and attack.loss == "ce":
        attack, more["reference"] = replace(attack, loss="soft-ce"), context.targets
    if context.radii is not None:
        threat = threat.scaled(context.largest_radius)
        more["radius_fraction"] = (context.radii / context.largest_radius).clamp(0, 1)
    with context.attack_model(attack.mode) as model:
        model = model if around is None else around(model)
        return attack_batch(attack, model, context.x, context.y, threat, seed=context.rng, **more)


def refuse_radii(context: StepContext, why: str) -> None:
    """Raise UserError where a part has set a radius of each example, which an attack cannot keep to."""
    if context.radii is not None:
        raise UserError(f"{why}, and a part of this method sets a radius of each example; take another attack")


class SmallBall(BatchAttack):
    """An attack in a smaller ball around each input, which leaves room for a box around what it finds (SABR, Müller 2023).

    Args:
        attack: what to run.
        subselection_ratio: λ; the ball has radius (1 - λ)ε.
        evaluate_last: as of :class:`BatchAttack`.
    """

    def __init__(self, attack: Attack[Any], subselection_ratio: float = 0.4, evaluate_last: bool = False):
        super().__init__(attack, evaluate_last=evaluate_last)
        self.subselection_ratio = subselection_ratio

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        return super().__call__(replace(context, threat=context.threat.scaled(1 - self.subselection_ratio)))


def as_inner_attack(attack: Any) -> InnerAttack | None:
    """Return what a method calls, from an attack of :mod:`hauberk.attacks`, a callable of the context, or None.

    Raises:
        UserError: if it is none of these.
    """
    if attack is None:
        return None
    if isinstance(attack, Attack):
        return BatchAttack(attack)
    check_callable("attack", attack, "context")
    return attack  # type: ignore[no-any-return]
