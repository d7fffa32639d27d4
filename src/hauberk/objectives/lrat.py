"""LRAT: weights within each pair of a clean input and its adversarial one (Gao et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hauberk.core.arguments import check_fields, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy
from hauberk.threat.batch import checked_batch


@checked_batch
def lrat(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    share: Tensor,
    beta: float = 0.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """LRAT with one attack (Gao et al. 2021): ``ℓ = g·CE(f(x'), y)``, ``r = max(1 - g, 0)·CE(f(x), y)``.

    Arguments as in :func:`hauberk.objectives.at`; ``share``, (B,), is g of each example, small where it is safe from the
    attack: so a safe one is learned as it is, and none is left out.

    Raises:
        UserError: if ``share`` is of another shape.
    """
    if share.shape != y.shape:
        raise UserError(f"share must be ({len(y)},), got {shown(share)}")
    labels = y if targets is None else targets
    share = share.detach()
    return LossTerms(share * cross_entropy(logits_adv, labels), (1 - share).clamp_min(0) * cross_entropy(logits, labels))


@dataclass(frozen=True)
class LRAT(Objective):
    """LRAT, see :func:`hauberk.objectives.lrat`, with GAIRAT's function for PGD: ``g = (1 + tanh(λ + 5·(1 - 2κ/K)))/2``.

    κ is how many of the K iterates are classified right. The paper trains on several attacks at once, each with a function of
    its own; this is one of them.

    Attributes:
        pair_lam: λ; -1 as in GAIRAT.
    """

    pair_lam: float = -1.0
    equation = "ω·g·CE(f(x'), y) + (1 - g)·CE(f(x), y); g is GAIRAT's function of how many iterates are right, in [0, 1]"
    function = staticmethod(lrat)

    def __post_init__(self) -> None:
        check_fields(self)  # alone, as λ may be negative

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch whose attack has counted."""
        if context.attack is None:
            raise UserError("LRAT needs a method whose attack counts its steps")
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        with torch.no_grad():
            kappa = context.attack.kappa.to(context.logits_adv.dtype)
            share = (1 + torch.tanh(self.pair_lam + 5 * (1 - 2 * kappa / context.attack.steps))) / 2
        return unchecked(lrat)(context.logits, context.logits_adv, context.y, share=share, targets=context.loss_targets)
