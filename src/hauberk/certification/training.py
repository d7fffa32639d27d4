"""Certified training: objectives of bounds of the logits on whole sets of inputs, in place of logits of adversarial ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.certification.bounds.differentiable import (
    Box,
    crown_lower_bound,
    interval_lower_bound,
    present_graph,
    propagate_box,
)
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, Objective, StepContext
from hauberk.objectives.functional import at_least_float32, cross_entropy
from hauberk.threat import FeasibleSet, ThreatModel


def worst_case_margins(model: nn.Module, x: Tensor, box: Box, y: Tensor, crown_share: float = 0.0) -> Tensor:
    """Bound ``f_y - f_k`` from below on boxes of inputs, differentiably in the parameters.

    By interval bound propagation, the last layer folded into the difference of logits (Gowal et al. 2018). Rounding is not
    allowed for, so this is for training.

    Args:
        model: classifier, in the mode that counts.
        x: clean inputs, (B, ...), whose statistics batch normalisations in training mode take.
        box: of inputs.
        y: labels, (B,).
        crown_share: β, how much of the bound is CROWN-IBP's.

    Returns:
        Margins (B, C), 0 at the label.

    Raises:
        UserError: if the model does something that there are no bounds for; the layer and the operation are named.
    """
    with torch.autocast(x.device.type, enabled=False):
        graph = present_graph(model, x)
        classes = graph.nodes[graph.output].size
        every = torch.eye(classes, dtype=x.dtype, device=x.device)
        c = F.one_hot(y, classes).to(x.dtype)[:, None] - every
        bounds = propagate_box(graph, box)
        margins = interval_lower_bound(graph, bounds, c)
        if crown_share:
            margins = crown_share * crown_lower_bound(graph, bounds, box, c) + (1 - crown_share) * margins
    return at_least_float32(margins)


@dataclass(frozen=True)
class IBP(Objective):
    """Interval bound propagation (Gowal et al. 2018): cross-entropy of the worst logits that intervals allow on all of S(x).

    ``ℓ = (1 - κ)·CE(-m, y)``, ``r = κ·CE(f(x), y)``; ``m_k``, 0 for k = y, bounds ``f_y - f_k`` from below on the whole set of
    the threat model. κ falls from 1 to ``kappa`` while ε grows (``eps_warmup`` of the training, or ``eps_scale`` of each call),
    and stays there. The set must be a box: L∞, with one ε per feature, bounds, frozen and one-way features where there are
    such. The worst logits are the method's ``logits_adv``, so weightings by margins weigh by them.

    Attributes:
        kappa: κ at the end; the paper has 0.5.
    """

    kappa: float = 0.5
    needs = CLEAN
    computes: ClassVar[frozenset[str]] = ADVERSARIAL
    _bound: ClassVar[str] = "m_k is the lower bound of f_y - f_k on S(x) by intervals"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa > 1:
            raise UserError(f"kappa must be at most 1, got {self.kappa}")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss with this κ."""
        return f"ω·(1 - κ)·CE(-m, y) + κ·CE(f(x), y); {self._bound}, and κ falls from 1 to {self.kappa:g} while ε grows"

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and put the worst logits into the context."""
        assert context.logits is not None  # needed
        box = self.box(context, _set(context.threat, context.x))
        grown = min(context.eps_scale, 1.0)
        margins = worst_case_margins(context.model, context.x, box, context.y, self.crown_share(grown))
        kappa = 1 - (1 - self.kappa) * grown
        context.logits_adv = -margins
        return LossTerms((1 - kappa) * cross_entropy(-margins, context.y), kappa * cross_entropy(context.logits, context.y))

    def box(self, context: StepContext, feasible: FeasibleSet) -> Box:
        """The boxes that logits are bounded on."""
        return Box(feasible.lower, feasible.upper)

    def crown_share(self, grown: float) -> float:
        """How much of the bound is CROWN-IBP's, where ε has grown to a part of itself."""
        return 0.0

    def certified(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """Say for which examples intervals prove, up to rounding, that no input of the set is misclassified. (B,) bool."""
        feasible = _set(threat, x)
        margins = worst_case_margins(model, x, Box(feasible.lower, feasible.upper), y)
        return (margins.scatter(1, y[:, None], torch.inf) > 0).all(1)


@dataclass(frozen=True)
class CrownIBP(IBP):
    """CROWN-IBP (Zhang et al. 2020): :class:`IBP` with a bound that is CROWN-IBP's at first and that of intervals at last.

    ``m = β·m_CROWN-IBP + (1 - β)·m_IBP``; β falls from 1 to 0 while ε grows. CROWN-IBP's bound takes intervals of the values
    before each activation, and goes back from the logits to the inputs by CROWN.
    """

    _bound = "m_k is a lower bound of f_y - f_k on S(x), β by CROWN-IBP and 1 - β by intervals, β falls from 1 to 0"

    def crown_share(self, grown: float) -> float:
        """β."""
        return 1 - grown


@dataclass(frozen=True)
class SABR(IBP):
    """Small adversarial bounding boxes (Müller et al. 2023): :class:`IBP` on a small box around an adversarial input.

    PGD finds x' in the ball of radius (1 - λ)ε; intervals bound the logits on the ball of radius λε around x', which lies in
    that of radius ε around x, and in the box. The public code attacks the whole ball, by steps that fall from ε/2, and moves x'
    inwards. Such networks want better bounds than intervals when they are certified.

    Attributes:
        kappa: κ at the end; the public code has 0.
        subselection_ratio: λ; the public code has 0.4 for MNIST at ε 0.1, 0.6 at 0.3, and for CIFAR-10 0.1 at 2/255, 0.7 at
            8/255.
    """

    kappa: float = 0.0
    subselection_ratio: float = 0.4
    _bound = "m_k is the lower bound of f_y - f_k on the ball of radius λε around x' by intervals"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.subselection_ratio <= 1:
            raise UserError(f"subselection_ratio must be above 0 and at most 1, got {self.subselection_ratio}")

    def box(self, context: StepContext, feasible: FeasibleSet) -> Box:
        """Small boxes around the adversarial inputs, inside the set."""
        if context.x_adv is None:
            raise UserError("SABR bounds logits around adversarial inputs: give it an attack")
        middle, reach = context.x_adv.detach(), self.subselection_ratio * feasible.radius
        return Box(torch.maximum(middle - reach, feasible.lower), torch.minimum(middle + reach, feasible.upper))

    certified = None  # type: ignore[assignment]  # intervals on all of S(x) say little of such a network


def _set(threat: ThreatModel, x: Tensor) -> FeasibleSet:
    if not threat.norm.is_box:
        raise UserError(f"certified training bounds networks on boxes, so it is for L∞ (hb.Linf), not for {threat.norm}")
    return threat.around(x)
