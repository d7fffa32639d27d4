"""CFA: a radius and a trade-off of each class, from its robust accuracy in the last epoch (Wei et al. 2023)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from hauberk.core.arguments import shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, BurnIn, LossTerms, PresetName, StepContext, is_official
from hauberk.objectives.class_wise import ClassWiseObjective, rightness
from hauberk.objectives.cross_entropy import at
from hauberk.objectives.functional import cross_entropy, kl_divergence
from hauberk.threat.batch import checked_batch


@checked_batch
def cfa(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 6.0,
    beta_lam: float = 0.5,
    robust_accuracy: Tensor | None = None,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """TRADES with CFA's trade-off of each class (Wei et al. 2023): ``ℓ = b·KL(p(x)‖p(x'))``, ``r = (1 - b)·CE(f(x), y)``.

    ``b = (λ₂ + ρ)·β / (1 + (λ₂ + ρ)·β)`` with ρ the robust accuracy of the class of y in the last epoch; ``β / (1 + β)`` where
    it is not known. Both are times 1 + β, so that this is TRADES where all classes are alike, and its learning rates fit; the
    paper and its code ("official") have not that factor.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is β, ``beta_lam`` λ₂, ``robust_accuracy`` ρ of each example, (B,).

    Raises:
        UserError: if ``robust_accuracy`` is of another shape.
    """
    if robust_accuracy is not None and robust_accuracy.shape != y.shape:
        raise UserError(f"robust_accuracy must be ({len(y)},), got {shown(robust_accuracy)}")
    fit, apart = cross_entropy(logits, y if targets is None else targets), kl_divergence(logits, logits_adv)
    odds = beta if robust_accuracy is None else (beta_lam + robust_accuracy.to(apart)) * beta
    scale = 1.0 if is_official(preset) else 1 + beta
    share = odds / (1 + odds)
    return LossTerms(scale * share * apart, scale * (1 - share) * fit)


@dataclass(eq=False)
class CFAAT(ClassWiseObjective):
    """Adversarial training with CFA's radius of each class, ``ε_c = (λ₁ + ρ_c)·ε``.

    ρ_c is the robust accuracy of the class in the last epoch. A class that is easy gets a radius of up to ``(λ₁ + 1)·ε``,
    beyond the threat model, and a hard one less than ε: training leaves the threat model, evaluation never does. FAWA, the
    moving average of the weights that takes an epoch in only where the worst class of held-out images is robust enough, is a
    setting of the training (``fawa`` of ``hb.train``).

    Attributes:
        radius_lam: λ₁.
        begin: first epoch, from 0, with such radii; below 1 a part of the training. The public code has 10 of 200.
    """

    radius_lam: float = 0.5
    begin: BurnIn = 0.05
    needs = ADVERSARIAL
    equation = "ω·CE(f(x'), y); x' within a radius of the class of y"
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(at)

    def fresh(self) -> "CFAAT":
        """Return the same loss with nothing remembered."""
        return replace(self)

    def radii_of_classes(self, values: Tensor) -> Tensor:
        """``λ₁ + ρ_c``, (C,)."""
        return self.radius_lam + values[:, 0]

    @property
    def largest_radius(self) -> float:
        """``λ₁ + 1``."""
        return self.radius_lam + 1

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and note which examples are right."""
        assert context.logits_adv is not None  # needed
        self.note(context, rightness(context.logits_adv, context.y))
        return unchecked(at)(None, context.logits_adv, context.y, targets=context.loss_targets)


@dataclass(eq=False)
class CFATrades(CFAAT):
    """TRADES with CFA's trade-off of each class, see :func:`hauberk.objectives.cfa`, and its radius, see :class:`CFAAT`.

    Attributes:
        beta: β.
        beta_lam: λ₂.
        radius_lam: λ₁.
        begin: first epoch, from 0, that looks back; below 1 a part of the training.
        preset: ``"paper"`` or ``"official"``, which has no factor 1 + β.
    """

    beta: float = 6.0
    beta_lam: float = 0.5
    preset: PresetName = "paper"
    needs = CLEAN | ADVERSARIAL
    equation = "(1 + β)·(ω·b·KL(p(x)‖p(x')) + (1 - b)·CE(f(x), y)); b and the radius of x' are of the class of y"
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(cfa)

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and note which examples are right."""
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        values = self.settings_of_classes(context)
        self.note(context, rightness(context.logits_adv, context.y))
        accuracy = None if values is None else values[context.y, 0]
        return unchecked(cfa)(
            context.logits, context.logits_adv, context.y, beta=self.beta, beta_lam=self.beta_lam, robust_accuracy=accuracy,
            preset=self.preset,
            targets=context.loss_targets,
        )  # fmt: skip
