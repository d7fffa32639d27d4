"""Points that something else has made, tried on the model: by an attack on a surrogate, or by a function of the user's."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.as_function import as_function
from hauberk.attacks.base import GOAL, Attack, attack_batch
from hauberk.attacks.model.queries import ModelQueries
from hauberk.attacks.pgd import PGD
from hauberk.attacks.state import AttackState
from hauberk.core.errors import UserError
from hauberk.objectives.functional import AttackLoss, LossLike, loss_for
from hauberk.threat import Norm, ThreatModel

_PGD_20 = PGD(20, "eps/10")  # of TRADES and MART


@dataclass(frozen=True, eq=False)
class _Tried(Attack[AttackState]):
    """An attack that looks once at points which it has from elsewhere."""

    threat: ThreatModel | None = field(default=None, kw_only=True)
    loss: LossLike = field(default="cw", kw_only=True)
    steps = 1
    check_every = 1
    passes_per_step = 1
    uses_gradients = False

    def defined_in(self, norm: Norm) -> bool:
        """In all."""
        return True

    def for_threat(self, threat: ThreatModel) -> Attack[Any]:
        """The attack that tells the threat model to what makes the points."""
        return replace(self, threat=threat)

    def craft(self, state: AttackState, queries: ModelQueries, threat: ThreatModel) -> Tensor:
        """Make the points, (B, ...)."""
        raise NotImplementedError

    def step(self, state: AttackState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Make the points, look at the model."""
        assert self.threat is not None  # given by ``for_threat``
        point = self.craft(state, queries, self.threat)
        logits = queries.logits(point)
        state.observe(point, logits, self.attack_loss(logits, state.y))


@dataclass(frozen=True, eq=False)
class Transfer(_Tried):
    """Adversarial examples crafted on a surrogate (the black-box tables of TRADES and MART), at one pass of the model.

    Who runs it fills in ``threat``, and ``loss``, which goes with the result.

    Attributes:
        attack: what runs on the surrogate, PGD-20 with steps of ε/10 as in TRADES and MART; its last point is tried.
        surrogate: another classifier of the same inputs and classes; unchanged afterwards.
    """

    attack: PGD = _PGD_20
    surrogate: nn.Module | None = None

    def adapted(
        self, threat: ThreatModel, n_classes: int, goal: AttackLoss = GOAL, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with the surrogate that it is crafted on, whose outputs are those of the task."""
        attack = self if surrogate is None else replace(self, surrogate=surrogate)
        if goal.is_own:
            attack = replace(attack, attack=replace(self.attack, loss=loss_for(self.attack.loss, goal, n_classes)[0]))
        return super(Transfer, attack).adapted(threat, n_classes, goal)

    @cached_property
    def attack_loss(self) -> AttackLoss:
        """What is maximised on the surrogate, if that is the caller's, and otherwise the margin."""
        crafting = self.attack.attack_loss
        return crafting if crafting.is_own else super().attack_loss

    def for_threat(self, threat: ThreatModel) -> Attack[Any]:
        """The attack within a threat model; a UserError without a surrogate."""
        if self.surrogate is None:
            raise UserError("a transfer attack is crafted on another model; give surrogate=")
        return super().for_threat(threat)

    def cost(self, n_classes: int = 10) -> int:
        """Passes of an example, those of the surrogate among them."""
        return 1 + self.attack.cost(n_classes)

    def craft(self, state: AttackState, queries: ModelQueries, threat: ThreatModel) -> Tensor:
        """Craft on the surrogate."""
        assert self.surrogate is not None  # see ``for_threat``
        crafting = replace(self.attack, return_last=True, evaluate_last=False)
        return attack_batch(crafting, self.surrogate, state.feasible.x, state.y, threat, seed=state.rng).x_adv


@dataclass(frozen=True, eq=False)
class CallableAttack(_Tried):
    """A function of the user's as an attack. What it returns is looked at, and checked, as every other claim.

    Who runs it fills in ``threat``, and ``loss``, which goes with the result.

    Attributes:
        function: ``f(model, x, y, threat) -> x_adv``, of a frozen model in evaluation mode, inputs (b, ...) and labels (b,).
    """

    function: Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor] | None = None
    uses_gradients = True
    sees_original = True

    def craft(self, state: AttackState, queries: ModelQueries, threat: ThreatModel) -> Tensor:
        """Call the function; what it returns must be a batch of inputs, and the model must be as it was."""
        assert self.function is not None
        model, x = queries.model, state.feasible.x
        before = [value.clone() for value in (*model.parameters(), *model.buffers())]
        modes = [module.training for module in model.modules()]
        point = self.function(model, x.clone(), state.y.clone(), threat)
        point = getattr(point, "x_adv", point)
        if not isinstance(point, Tensor) or point.shape != x.shape:
            got = tuple(point.shape) if isinstance(point, Tensor) else type(point).__name__
            raise UserError(f"{self} must return inputs of shape {tuple(x.shape)}, it returned {got}")
        if _put_back(model, before, modes):
            raise UserError(f"{self} changes the model that it attacks (weights, buffers or training mode); that is no attack")
        return point.detach().to(x)

    def __str__(self) -> str:
        function = self.function
        return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"


@torch.no_grad()
def _put_back(model: nn.Module, before: list[Tensor], modes: list[bool]) -> bool:
    """Put back weights, buffers and modes that have been changed since; returns whether there were any."""
    pairs = list(zip((*model.parameters(), *model.buffers()), before, strict=True))
    same = [(value == old).all() for value, old in pairs]
    changed = bool(same) and not bool(torch.stack([one.to(same[0].device) for one in same]).all())  # one wait for all
    if changed:
        for value, old in pairs:
            value.copy_(old)
    for module, mode in zip(model.modules(), modes, strict=True):
        changed |= module.training != mode
        module.training = mode
    return changed


transfer = as_function(Transfer, "transfer", "Craft adversarial examples on a surrogate and try them on the model.")
