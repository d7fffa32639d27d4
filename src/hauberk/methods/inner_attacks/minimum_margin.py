"""The search of MMA for the nearest adversarial example of each input."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, AttackResult, frozen_model, run_attack
from hauberk.attacks.base import attack_batch
from hauberk.core.arguments import check_argument, shown
from hauberk.core.device import send
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import refuse_radii
from hauberk.objectives.functional import fooled
from hauberk.threat import ThreatModel, expand_to, make_threat

LEAST_FRACTION = 0.1  # MMA's smallest radius; the public code has 0.005 of d_max 12/255 on CIFAR-10


class MinimumMargin(nn.Module):
    """MMA's search for the nearest adversarial example (Ding et al. 2020, AN-PGD), each with a radius that is remembered.

    PGD on the soft logit margin with each example's own radius finds a direction; bisection along it, up to the paper's d_max,
    finds where the prediction flips. The public code searches to 1.05·d_max and then leaves out what lies beyond d_max; ours
    never leaves d_max. Where that is larger than ε, x* may leave the threat model.

    Args:
        attack: PGD whose number of steps K counts; its loss is the soft logit margin and its step 2.5 times the radius / K.
        bisections: passes of the bisection.
        d_max: radius of the search, the largest margin that is trained for, in the units of the input: a number or a fraction
            such as "12/255"; None for the ε of the threat model.

    Attributes:
        fractions: (N,) radius of each example as a part of d_max, by its index.
    """

    def __init__(self, attack: PGD, bisections: int = 10, d_max: float | str | None = None):
        super().__init__()
        self.attack, self.bisections = attack, bisections
        self.d_max: float | str | None = check_argument("d_max", d_max, float | str | None)
        self.fractions = torch.ones(0)  # no buffer, because it grows, and is the same in all processes anyway

    def __call__(self, context: StepContext) -> AttackResult:
        """Search, and remember the radii found, at least 0.1, of the examples that have an index."""
        refuse_radii(context, "MMA's search has radii of its own")
        index, world = context.index, context.world
        fraction = self.radius_fractions(index, context.y)
        with context.attack_model("eval") as model:
            batch = model, context.x, context.y, self.reach(context.threat, context.eps_scale)
            wanted = context.return_clean_logits
            found, distance = self.search(*batch, fraction, seed=context.rng, return_clean_logits=wanted, run=attack_batch)
        if index is not None:
            index = index if world.size == 1 else torch.cat(world.all_gather_object(index.cpu()))
            distance = context.all_gather(distance)
            self._with_room(index, distance.device)[send(index, distance.device)] = distance.clamp(LEAST_FRACTION, 1.0).float()
        return found

    def reach(self, threat: ThreatModel, eps_scale: float = 1.0) -> ThreatModel:
        """Return the threat model with d_max, times how far ε has grown in its warm-up, in place of its ε.

        Raises:
            UserError: for a d_max that is no radius in this threat model, such as 12 for 12/255.
        """
        if self.d_max is None:
            return threat
        if isinstance(threat.eps, Tensor):
            raise UserError(f"d_max is one number, and {threat} has an ε of each feature: leave it out, and train under those")
        rest = threat.low, threat.high, threat.frozen, threat.monotone, threat.one_hot
        try:
            return make_threat(threat.norm, self.d_max, *rest).scaled(eps_scale)
        except UserError as error:
            raise UserError(f"d_max = {shown(self.d_max)} is no radius here: {error}") from error

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
            the distance to it as a part of the threat model's ε, 1 where there is none.
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
        """Return each example's radius as a part of d_max, (B,): 0.1 at first, and always where ``index`` is None."""
        if index is None:
            return torch.full(y.shape, LEAST_FRACTION, device=y.device)
        return self._with_room(index, y.device)[send(index, y.device)]

    def fresh(self) -> "MinimumMargin":
        """Return the same search with nothing remembered."""
        return MinimumMargin(self.attack, self.bisections, self.d_max)

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
