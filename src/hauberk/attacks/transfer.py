"""Points that something else has made, tried on the model: by an attack on a surrogate, or by a function of the user's."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.attacks.base import Attack, run_attack
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.attacks.pgd import PGD
from hauberk.attacks.state import AttackInputs, AttackResult, AttackState, initial_state
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import logit_margin
from hauberk.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class _Tried(Attack[AttackState]):
    """An attack that looks once at points which it has from elsewhere."""

    threat: ThreatModel | None = field(default=None, kw_only=True)
    has_reject_class: bool = field(default=False, kw_only=True)
    check_every = 1
    passes_per_step = 1
    uses_gradients = False

    @property
    def max_steps(self) -> int:
        """One."""
        return 1

    def adapted(
        self, threat: ThreatModel, n_classes: int, has_reject_class: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with the threat model, for what makes the points."""
        return replace(self, threat=threat, has_reject_class=has_reject_class), ""

    def init(self, inputs: AttackInputs) -> AttackState:
        """Set up."""
        return AttackState(**initial_state(inputs))

    def made(self, state: AttackState, queries: ModelQueries) -> Tensor:
        """Make the points, (B, ...)."""
        raise NotImplementedError

    def step(self, state: AttackState, queries: ModelQueries, host_steps: np.ndarray) -> None:
        """Make the points, look at the model."""
        point = self.made(state, queries)
        logits = queries.logits(point)
        state.observe(point, logits, -logit_margin(logits, state.y), self.has_reject_class)


@dataclass(frozen=True, eq=False)
class Transfer(_Tried):
    """Adversarial examples crafted on a surrogate (the black-box tables of TRADES and MART), at one pass of the model.

    Attributes:
        attack: what runs on the surrogate; its last point is tried.
        surrogate: a model of the same inputs and classes.
        threat: ball and box.
        has_reject_class: whether the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    attack: PGD = field(default_factory=lambda: PGD(20, "eps/10"))
    surrogate: nn.Module | None = None

    def adapted(
        self, threat: ThreatModel, n_classes: int, has_reject_class: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with the surrogate that it is crafted on; a UserError without one."""
        surrogate = self.surrogate if surrogate is None else surrogate
        if surrogate is None:
            raise UserError("a transfer attack is crafted on another model; give surrogate=")
        return replace(self, surrogate=surrogate, threat=threat, has_reject_class=has_reject_class), ""

    def cost(self, n_classes: int = 10) -> int:
        """Passes of an example, those of the surrogate among them."""
        return 1 + self.attack.cost(n_classes)

    def made(self, state: AttackState, queries: ModelQueries) -> Tensor:
        """Craft on the surrogate."""
        assert self.surrogate is not None  # given by ``adapted`` or ``transfer``
        assert self.threat is not None
        crafting = replace(self.attack, return_last=True, evaluate_last=False)
        return run_attack(crafting, self.surrogate, state.feasible.x, state.y, self.threat, seed=state.rng, trusted=True).x_adv


@dataclass(frozen=True, eq=False)
class CallableAttack(_Tried):
    """A function of the user's as an attack. What it returns is looked at, and checked, as every other claim.

    Attributes:
        function: ``f(model, x, y, threat) -> x_adv``, of a frozen model in evaluation mode, inputs (b, ...) and labels (b,).
        threat: ball and box.
        has_reject_class: whether the model's last output is a class of adversarial inputs, which is to be avoided too.
    """

    function: Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor] | None = None
    uses_gradients = True
    sees_original = True

    def made(self, state: AttackState, queries: ModelQueries) -> Tensor:
        """Call the function; what it returns must be a batch of inputs, and the model must be as it was."""
        assert self.function is not None
        assert self.threat is not None
        model, x = queries.model, state.feasible.x
        before = [value.clone() for value in (*model.parameters(), *model.buffers())]
        modes = [module.training for module in model.modules()]
        point = self.function(model, x.clone(), state.y.clone(), self.threat)
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
    changed = False
    for value, old in zip((*model.parameters(), *model.buffers()), before, strict=True):
        if not torch.equal(value, old):
            changed = True
            value.copy_(old)
    for module, mode in zip(model.modules(), modes, strict=True):
        changed |= module.training != mode
        module.training = mode
    return changed


def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    surrogate: nn.Module,
    attack: PGD | None = None,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Craft adversarial examples on a surrogate and try them on the model.

    Args:
        model: under test; only looked at.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,).
        threat: ball and box.
        surrogate: another classifier of the same inputs; unchanged afterwards.
        attack: on the surrogate; by default PGD-20 with steps of ε/10, as TRADES and MART.
        seed: of the random starts; an integer, or an ``ExampleRng`` keyed by example.

    Returns:
        AttackResult of the model under test; its passes are those of the model under test.
    """
    crafting = Transfer(surrogate=surrogate, threat=threat)
    crafting = crafting if attack is None else replace(crafting, attack=attack)
    return run_attack(crafting, model, x, y, threat, seed=seed)
