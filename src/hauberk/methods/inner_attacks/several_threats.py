"""Attacks under several threat models: one of them for each batch (E-AT), or the worst for each example (MAX, RAMP)."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, AttackResult
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import run_in_step
from hauberk.methods.inner_attacks.mm_at import best_of
from hauberk.objectives.functional import cross_entropy
from hauberk.threat import threats_of


class WorstThreat:
    """Each example at the worst of the points found under the threat models, by cross-entropy (MAX, Tramèr and Boneh 2019).

    Under each threat model the best point that the attack visits counts, as in the public code of RAMP (MAX.py). The points of
    all are left in ``context.x_adv_by_threat``.

    Args:
        attack: PGD, or another that returns the best point it has seen; steps in parts of ε suit several norms.
        most: how many of the threat models to attack under, the first ones; None for all.
    """

    takes_several_threats = True

    def __init__(self, attack: PGD, most: int | None = None):
        self.attack, self.most = attack, most

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch under each."""
        results = [run_in_step(self.attack, context, threat) for threat in threats_of(context.threat)[: self.most]]
        context.x_adv_by_threat = tuple(found.x_adv for found in results)
        return best_of(results, [self._loss(found, context) for found in results])

    @staticmethod
    def _loss(found: AttackResult, context: StepContext) -> Tensor:
        assert found.logits is not None  # the attack looks at the point it returns
        return cross_entropy(found.logits, context.y if context.targets is None else context.targets)


class AlternatingThreats(nn.Module):
    """Each batch under one of the threat models, the more often the less robust the network is under it (E-AT).

    ``P(threat t) ∝ 1 - a_t`` with a_t the share of the training examples so far that withstood the attack under t; all alike
    until each has been used (Croce and Hein 2022). The shares are those of the epochs before, which the host knows without
    waiting for a device; the public code has those of all batches before.

    Args:
        attack: as of :class:`WorstThreat`.
        seed: of the choice.

    Attributes:
        robust: (T,) how many examples have withstood the attack, by threat model.
        seen: how many have been attacked, likewise.
    """

    takes_several_threats = True
    looks_back = True

    def __init__(self, attack: PGD, seed: int = 0):
        super().__init__()
        self.attack, self.seed = attack, seed
        self.robust: Tensor = torch.zeros(0, dtype=torch.float64)  # no buffer, because its size is known late
        self.seen: list[int] = []
        self.calls, self.epoch = 0, -1
        self.chances: list[float] = []

    def __call__(self, context: StepContext) -> AttackResult:
        """Choose, attack, and count."""
        threats = threats_of(context.threat)
        if len(self.seen) != len(threats):
            self.robust, self.seen = torch.zeros(len(threats), dtype=torch.float64), [0] * len(threats)
            self.epoch = -1
        self.robust = self.robust.to(context.x.device)
        if context.epoch != self.epoch:
            self.epoch, self.chances = context.epoch, self._chances()
        draw = random.Random(f"{self.seed} {self.calls}")  # the same in all processes
        which = draw.choices(range(len(threats)), weights=self.chances)[0]
        found = run_in_step(self.attack, context, threats[which])
        withstood = context.all_gather(~found.success)
        self.robust = self.robust.index_add(0, torch.full((1,), which, device=withstood.device), withstood.double().sum()[None])
        self.seen[which] += sum(context.sizes)
        self.calls += 1
        return found

    def _chances(self) -> list[float]:
        """What is left of the robust shares, by threat model; the host waits for the device, once an epoch."""
        if not all(self.seen):
            return [1.0] * len(self.seen)
        left = [1 - robust / seen for robust, seen in zip(self.robust.tolist(), self.seen, strict=True)]
        return left if any(left) else [1.0] * len(left)

    def fresh(self) -> "AlternatingThreats":
        """Return the same with nothing counted."""
        return AlternatingThreats(self.attack, self.seed)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``."""
        names = ("robust", "seen", "calls", "epoch", "chances")
        return {name: getattr(self, name) for name in names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name, value in state.items():
            setattr(self, name, value)
        self.seen, self.chances = list(self.seen), list(self.chances)
