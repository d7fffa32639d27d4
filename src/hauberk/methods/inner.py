"""Inner maximisation: how a method finds the adversarial inputs of a training step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, AttackResult, frozen_model, run_attack
from hauberk.attacks.base import attack_batch
from hauberk.core.arguments import check_callable
from hauberk.core.device import send
from hauberk.core.step_context import StepContext
from hauberk.objectives.functional import fooled
from hauberk.threat import ThreatModel, expand_to

InnerAttack: TypeAlias = Callable[[StepContext], AttackResult | Tensor]

LEAST_FRACTION = 0.1  # MMA's smallest radius; the public code has 0.005 of d_max 12/255 on CIFAR-10


class BatchAttack:
    """An attack of :mod:`hauberk.attacks` on the batch. PGD hands back its last point without looking at it: the loss does.

    Args:
        attack: what to run.
        taus: τ of friendly training by the progress of the training: (part of the training up to which, τ), rising.
        evaluate_last: let PGD look at its last point all the same, which moves BatchNorm's statistics in mode "train".
        own_steps: whether a step that is a part of ε is so of each example's own radius, where it has one, or of ε.
    """

    def __init__(
        self,
        attack: Attack[Any],
        taus: tuple[tuple[float, int], ...] = (),
        evaluate_last: bool = False,
        own_steps: bool = True,
    ):
        self.attack: Attack[Any] = attack
        self.own_steps = own_steps
        self.taus: tuple[tuple[float, int], ...] = ()
        self._friendly: list[Attack[Any]] = []
        if isinstance(attack, PGD):
            self.attack = trained = replace(attack, return_last=True, evaluate_last=evaluate_last)
            self.taus, self._friendly = taus, [replace(trained, tau=tau) for _, tau in taus]

    @property
    def follows_progress(self) -> bool:
        """Whether it is another attack at another part of the training."""
        return bool(self.taus)

    def attack_at(self, progress: float) -> Attack[Any]:
        """Return the attack with the τ of a point of the training, where it has one."""
        reached = (attack for (part, _), attack in zip(self.taus, self._friendly, strict=True) if progress <= part)
        return next(reached, self._friendly[-1] if self.taus else self.attack)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        attack = self.attack_at(context.progress)
        if context.radii is not None and not self.own_steps and isinstance(attack, PGD):
            attack = attack.with_steps_of(context.threat.eps)
        return run_in_step(attack, context, context.threat)


def run_in_step(attack: Attack[Any], context: StepContext, threat: ThreatModel, **more: Any) -> AttackResult:
    """Attack the batch of a step, with its random draws, soft labels, radii and precision.

    Args:
        attack: what to run.
        context: of the step.
        threat: where the points must be, which may be another than the step's.
        own_steps: as of :class:`BatchAttack`.
        **more: further arguments of :func:`hauberk.attacks.base.attack_batch`.
    """
    more.setdefault("return_clean_logits", context.return_clean_logits)
    if context.targets is not None and isinstance(attack, PGD) and attack.loss == "ce":
        attack, more["reference"] = replace(attack, loss="soft-ce"), context.targets
    if context.radii is not None:
        threat = threat.scaled(context.largest_radius)
        more["radius_fraction"] = (context.radii / context.largest_radius).clamp(0, 1)
    with context.attack_model(attack.mode) as model:
        return attack_batch(attack, model, context.x, context.y, threat, seed=context.rng, **more)


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


class MinimumMargin(nn.Module):
    """MMA's search for the nearest adversarial example (Ding et al. 2020, AN-PGD), each with a radius that is remembered.

    PGD on the soft logit margin with each example's own radius finds a direction; bisection along it, up to the threat
    model's ε (the paper's d_max), finds where the prediction flips. The public code searches to 1.05·d_max and then leaves out
    what lies beyond d_max; ours never leaves the threat model.

    Args:
        attack: PGD whose number of steps K counts; its loss is the soft logit margin and its step 2.5 times the radius / K.
        bisections: passes of the bisection.

    Attributes:
        fractions: (N,) radius of each example as a part of ε, by its index.
    """

    def __init__(self, attack: PGD, bisections: int = 10):
        super().__init__()
        self.attack, self.bisections = attack, bisections
        self.fractions = torch.ones(0)  # no buffer, because it grows, and is the same in all processes anyway

    def __call__(self, context: StepContext) -> AttackResult:
        """Search, and remember the radii found, at least 0.1, of the examples that have an index."""
        index, world = context.index, context.world
        fraction = self.radius_fractions(index, context.y)
        with context.attack_model("eval") as model:
            batch = model, context.x, context.y, context.threat
            wanted = context.return_clean_logits
            found, distance = self.search(*batch, fraction, seed=context.rng, return_clean_logits=wanted, run=attack_batch)
        if index is not None:
            index = index if world.size == 1 else torch.cat(world.all_gather_object(index.cpu()))
            distance = context.all_gather(distance)
            self._with_room(index, distance.device)[send(index, distance.device)] = distance.clamp(LEAST_FRACTION, 1.0).float()
        return found

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        radius_fraction: Tensor,
        *,
        seed: Any = 0,
        return_clean_logits: bool = False,
        run: Callable[..., AttackResult] = run_attack,
    ) -> tuple[AttackResult, Tensor]:
        """Search within the threat model; arguments as in :func:`hauberk.attacks.run_attack`, which ``run`` is.

        Returns:
            AttackResult, ``x_adv`` the nearest adversarial example found, or x, and ``success`` whether one was found; and (B,)
            the distance to it as a part of ε, 1 where there is none.
        """
        steps = self.attack.steps
        attack = PGD(steps, f"2.5*eps/{steps}", loss="slm", return_last=True, evaluate_last=False)
        found = run(
            attack, model, x, y, threat, seed=seed, radius_fraction=radius_fraction, return_clean_logits=return_clean_logits
        )
        feasible = threat.around(x)
        change = (found.x_adv - x) / expand_to(radius_fraction.to(x.dtype), x)  # scaled so that length 1 is about ε

        def at(length: Tensor) -> Tensor:
            return feasible.project(x + change * expand_to(length.to(x.dtype), x))

        low, high = torch.zeros_like(radius_fraction), torch.ones_like(radius_fraction)
        with frozen_model(model) as view, torch.no_grad():
            success = fooled(view(at(high)), y)
            probe = radius_fraction.clone()
            for _ in range(self.bisections):
                wrong = fooled(view(at(probe)), y)
                low, high = torch.where(wrong, low, probe), torch.where(wrong, probe, high)
                probe = (low + high) / 2
        high = torch.where(success, high, torch.ones_like(high))
        x_adv = torch.where(expand_to(success, x), at(high), x)
        passes = found.forwards + 1 + self.bisections
        return replace(found, x_adv=x_adv.detach(), success=success, logits=None, forwards=passes), high

    def radius_fractions(self, index: Tensor | None, y: Tensor) -> Tensor:
        """Return each example's radius as a part of ε, (B,): 0.1 at first, and always where ``index`` is None."""
        if index is None:
            return torch.full(y.shape, LEAST_FRACTION, device=y.device)
        return self._with_room(index, y.device)[send(index, y.device)]

    def fresh(self) -> "MinimumMargin":
        """Return the same search with nothing remembered."""
        return MinimumMargin(self.attack, self.bisections)

    def get_extra_state(self) -> Tensor:
        """Return what goes into ``state_dict``."""
        return self.fractions

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a state."""
        self.fractions = state

    def _with_room(self, index: Tensor, device: torch.device) -> Tensor:
        """Return all radii, with room for ``index``; the host does not wait if that is on the CPU."""
        needed = int(index.max()) + 1 - len(self.fractions)
        self.fractions = self.fractions.to(device)
        if needed > 0:
            self.fractions = torch.cat([self.fractions, torch.full((needed,), LEAST_FRACTION, device=device)])
        return self.fractions


class FreeReplay(nn.Module):
    """Free adversarial training (Shafahi et al. 2019): the perturbation of the last batch, moved by its own backward pass.

    Args:
        n_replays: times each batch is to be used in a row.
    """

    attack = PGD(1, "eps")

    def __init__(self, n_replays: int = 8):
        super().__init__()
        self.n_replays = n_replays
        self._point: Tensor | None = None  # the last input, whose gradient the caller's backward fills
        self._clean: Tensor | None = None

    def __call__(self, context: StepContext) -> Tensor:
        """Return the next input, (B, ...) inside the threat model: a leaf that takes a gradient.

        The last perturbation is moved by ε along the gradient of the last backward. What is not finite in it, after a batch
        that was not, begins again at 0.
        """
        x, threat = context.x, context.threat
        point = x
        if self._point is not None and self._clean is not None and self._point.shape == x.shape:
            grad, last = self._point.grad, self._point.detach()
            if grad is not None:
                before = threat.around(self._clean)
                last = before.step(last, grad.nan_to_num(0.0, 0.0, 0.0), before.eps)
            point = threat.around(x).project(x + (last - self._clean).nan_to_num(0.0, 0.0, 0.0))
        self._point, self._clean = point.detach().clone().requires_grad_(), x
        return self._point

    def fresh(self) -> "FreeReplay":
        """Return the same with nothing carried over."""
        return FreeReplay(self.n_replays)

    def local_state(self) -> dict[str, Any]:
        """Return what each of several processes has of its own: the carried perturbation."""
        if self._point is None:
            return {}
        return {"point": self._point.detach(), "clean": self._clean, "grad": self._point.grad}

    get_extra_state = local_state

    def load_local_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; {} for a beginning."""
        self._point, self._clean = None, state.get("clean")
        if state:
            self._point = state["point"].clone().requires_grad_()
            self._point.grad = state["grad"]

    set_extra_state = load_local_state


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
