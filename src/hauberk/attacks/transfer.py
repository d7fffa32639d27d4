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
from hauberk.objectives.functional import fooled, logit_margin
from hauberk.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class _Tried(Attack[AttackState]):
    """An attack that looks once at points which it has from elsewhere."""

    check_every = 1
    passes_per_step = 1
    uses_gradients = False

    @property
    def max_steps(self) -> int:
        """One."""
        return 1

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
        state.offer(point, logits, -logit_margin(logits, state.y), fooled(logits, state.y, self.has_reject_class))


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
    threat: ThreatModel | None = None
    has_reject_class: bool = False

    def adapted(
        self, threat: ThreatModel, n_classes: int, has_reject_class: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with what it is crafted on.

        Raises:
            UserError: without a surrogate.
        """
        if surrogate is None and self.surrogate is None:
            raise UserError("a transfer attack is crafted on another model; give surrogate=")
        surrogate = self.surrogate if surrogate is None else surrogate
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
    threat: ThreatModel | None = None
    has_reject_class: bool = False
    uses_gradients = True
    sees_original = True

    def adapted(
        self, threat: ThreatModel, n_classes: int, has_reject_class: bool = False, surrogate: nn.Module | None = None
    ) -> tuple[Attack[Any], str]:
        """Return the attack with the threat model that the function is told."""
        return replace(self, threat=threat, has_reject_class=has_reject_class), ""

    def made(self, state: AttackState, queries: ModelQueries) -> Tensor:
        """Call the function.

        Raises:
            UserError: for an answer that is no batch of inputs, or a model that is not as it was.
        """
        assert self.function is not None
        assert self.threat is not None
        model, x = queries.model, state.feasible.x
        before = _contents(model)
        point = self.function(model, x.clone(), state.y.clone(), self.threat)
        point = getattr(point, "x_adv", point)
        if not isinstance(point, Tensor) or point.shape != x.shape:
            got = tuple(point.shape) if isinstance(point, Tensor) else type(point).__name__
            raise UserError(f"{self} must return inputs of shape {tuple(x.shape)}, it returned {got}")
        if _put_back(model, before):
            raise UserError(f"{self} changes the model that it attacks (weights, buffers or training mode); that is no attack")
        return point.detach().to(x)

    def __str__(self) -> str:
        function = self.function
        return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"


def _contents(model: nn.Module) -> tuple[list[Tensor], list[bool]]:
    """Copies of weights and buffers, and the mode of each module."""
    return [value.clone() for value in (*model.parameters(), *model.buffers())], [m.training for m in model.modules()]


@torch.no_grad()
def _put_back(model: nn.Module, before: tuple[list[Tensor], list[bool]]) -> bool:
    """Put back what has been changed since; returns whether there was anything."""
    changed = False
    for value, old in zip((*model.parameters(), *model.buffers()), before[0], strict=True):
        if not torch.equal(value, old):
            changed = True
            value.copy_(old)
    for module, mode in zip(model.modules(), before[1], strict=True):
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
    crafted = Transfer(surrogate=surrogate, threat=threat) if attack is None else Transfer(attack, surrogate, threat)
    return run_attack(crafted, model, x, y, threat, seed=seed)
