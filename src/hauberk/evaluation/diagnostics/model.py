"""Diagnostics of what attacks take for granted of a model and a table: measured by a few passes over clean inputs."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from hauberk.attacks.checks import are_probabilities
from hauberk.attacks.frozen_model import ModelQueries
from hauberk.data import IndexedDataset
from hauberk.evaluation.result import Finding
from hauberk.objectives.functional import find_attack_loss
from hauberk.tables import reach_of
from hauberk.threat import ThreatModel

SPREAD = 1e-4  # of normalised logits, between passes over the same inputs; AutoAttack's own threshold
_REPEATS = 5


@dataclass(frozen=True)
class CleanInputs:
    """What diagnostics that need "model" are given.

    Attributes:
        model: in evaluation mode, lent by ``frozen_model``.
        x: some clean inputs, (b, ...).
        draws: passes that the evaluation averages over; more than 1 is for random models.
        source: the data.
        threat: the threat model.
    """

    model: nn.Module
    x: Tensor
    draws: int
    source: IndexedDataset
    threat: ThreatModel

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the inputs, (b, C)."""
        return ModelQueries(self.model).logits(self.x)

    @cached_property
    def spread(self) -> float:
        """How far the logits of further passes over the same inputs are from the first ones."""
        return max(_distance(self.logits, ModelQueries(self.model).logits(self.x)) for _ in range(_REPEATS - 1))


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest L2 distance of the logits of an example, each divided by its length."""
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True).clamp_min(1e-30) for z in (one, other))
    return float((a - b).norm(dim=1).max())


def probabilities(clean: CleanInputs) -> list[Finding]:
    """Whether the outputs look like those of a softmax."""
    found = are_probabilities(clean.logits)
    return [Finding(float(found), f"the outputs are {'' if found else 'no '}probabilities")]


def randomness(clean: CleanInputs) -> list[Finding]:
    """How far passes over the same inputs differ, where the evaluation does not average over passes."""
    return [_repeated(clean, clean.spread)] if clean.draws == 1 else []


def needless_averaging(clean: CleanInputs) -> list[Finding]:
    """Whether the evaluation averages over passes that do not differ."""
    return [_repeated(clean, float(clean.spread <= SPREAD))] if clean.draws > 1 else []


def _repeated(clean: CleanInputs, value: float) -> Finding:
    return Finding(value, f"{_REPEATS} passes over the same inputs differ by up to {clean.spread:.2g} (normalised logits)")


def training_modules(clean: CleanInputs) -> list[Finding]:
    """How many modules ignore ``eval()``."""
    found = [type(module).__name__ for module in clean.model.modules() if module.training]
    return [Finding(len(found), f"{len(found)} modules stay in training mode" + (f" ({found[0]}, ...)" if found else ""))]


def side_effects(clean: CleanInputs) -> list[Finding]:
    """How many parameters and buffers a pass changes."""
    before = [value.clone() for value in (*clean.model.parameters(), *clean.model.buffers())]
    ModelQueries(clean.model).logits(clean.x)
    after = [*clean.model.parameters(), *clean.model.buffers()]
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return [Finding(changed, f"a forward pass in evaluation mode changes {changed} parameters or buffers")]


def gradients_in_forward(clean: CleanInputs) -> list[Finding]:
    """How many tensors that autograd has saved in a forward pass are used before it ends."""
    used, before = 0, 0

    def unpack(saved: Tensor) -> Tensor:
        nonlocal used
        used += 1
        return saved

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal before
        before = used  # the forward pass ends here
        return logits.sum(1)

    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, unpack):
        ModelQueries(clean.model).value_and_grad(clean.x[:2], find_attack_loss(loss), clean.x[:2])
    return [Finding(before, f"a forward pass takes {'' if before else 'no '}gradients")]


def batch_dependence(clean: CleanInputs) -> list[Finding]:
    """How far logits of inputs alone differ from those in a batch, for models that are not random."""
    if clean.spread > SPREAD:
        return []
    alone = torch.cat([ModelQueries(clean.model).logits(one) for one in clean.x[:4].split(1)])
    distance = _distance(alone, clean.logits[: len(alone)])
    return [Finding(distance, f"inputs alone and in a batch differ by up to {distance:.2g} (normalised logits)")]


def changeable_columns(clean: CleanInputs) -> list[Finding]:
    """Which columns of a table can change: 0 if all that may, 1 if not all of them, 2 if none."""
    reach = reach_of(clean.source, clean.threat)
    return [] if reach is None else [Finding(2 if not reach.moving else 1 if reach.stuck else 0, str(reach))]
