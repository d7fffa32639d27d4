"""DAFA: weights and radii of the classes, from which classes are taken for which (Lee et al. 2024)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, BurnIn, LossTerms, PresetName, StepContext, is_official
from hauberk.objectives.class_wise import ClassWiseObjective
from hauberk.objectives.cross_entropy import at
from hauberk.objectives.functional import log_softmax
from hauberk.objectives.trades import trades


@checked
@torch.no_grad()
def dafa(similarity: Tensor, lam: float = 1.0, preset: PresetName = "paper") -> Tensor:
    """DAFA's weights of the classes (Lee et al. 2024).

    ``w_i = 1 + λ·Σ_{j≠i} ([s_ii < s_jj]·s_ij·s_jj - [s_ii ≥ s_jj]·s_ji·s_ii)``, where ``s_ij`` is the mean probability of class
    j at adversarial inputs of class i: what an easier class gives, a harder one that is taken for it gets. The public code
    subtracts ``s_ij·s_jj`` ("official").

    Args:
        similarity: s, (C, C).
        lam: λ ≥ 0.
        preset: ``"paper"`` or ``"official"``.

    Returns:
        (C,), detached, at least 0.

    Raises:
        UserError: for another shape or preset, and a negative λ.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or lam < 0:
        raise UserError(f"similarity must be (C, C), and lam not negative, got {shown(similarity)} and {lam}")
    own = similarity.diagonal()
    gains = similarity * own  # s_ij·s_jj
    loses = gains if is_official(preset) else gains.T  # s_ji·s_ii
    change = torch.where(own[:, None] < own, gains, -loses)
    return (1 + lam * (change.sum(1) - change.diagonal())).clamp_min(0)


@dataclass(eq=False)
class DAFAAT(ClassWiseObjective):
    """Adversarial training with DAFA's weights of the classes, on the loss and on the radius, from a look back at one epoch.

    ``ℓ = w_y·CE(f(x'), y)``, x' within ``w_y·ε``; w by :func:`hauberk.objectives.dafa` from the epoch before ``begin``.
    A radius may be up to ``(1 + λ)·ε``: training may leave the threat model, evaluation never does. (The public code of this
    one, not that of TRADES, takes a second step within ε itself, which undoes the radii.)

    Attributes:
        class_lam: λ.
        begin: first epoch, from 0, with such weights; below 1 a part of the training. The public code has 70 of 110.
        preset: ``"paper"`` or ``"official"``.
    """

    class_lam: float = 1.0
    begin: BurnIn = 70 / 110
    preset: PresetName = "paper"
    needs = ADVERSARIAL
    equation = "ω·u·CE(f(x'), y); u, of the class of y, scales the radius of x', too"
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(at)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_official(self.preset)
        self._weights: Tensor | None = None  # (C,), once they are known

    def fresh(self) -> "DAFAAT":
        """Return the same loss with nothing remembered."""
        return replace(self)

    def settings_of_classes(self, context: StepContext) -> Tensor | None:
        """Return the weights of the classes, (C,), made once; None before."""
        if self._weights is None:
            similarity = super().settings_of_classes(context)
            if similarity is None:
                return None
            self._weights = unchecked(dafa)(similarity, self.class_lam, self.preset)
        self._weights = self._weights.to(context.y.device)
        return self._weights

    def radii_of_classes(self, values: Tensor) -> Tensor:
        """The weights, (C,)."""
        return values

    @property
    def largest_radius(self) -> float:
        """``1 + λ``, as no class is taken for others with more than probability 1."""
        return 1 + self.class_lam

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and note the predictions."""
        assert context.logits_adv is not None  # needed
        values = self.settings_of_classes(context)
        self.note(context, log_softmax(context.logits_adv.detach()).exp())
        terms = self._terms(context)
        return terms if values is None else self._weighted(terms, values[context.y].to(terms.robust.dtype))

    def _terms(self, context: StepContext) -> LossTerms:
        assert context.logits_adv is not None  # needed
        return unchecked(at)(None, context.logits_adv, context.y, targets=context.loss_targets)

    def _weighted(self, terms: LossTerms, weights: Tensor) -> LossTerms:
        return LossTerms(weights * terms.robust, terms.regularizer)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``."""
        return {"weights": self._weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._weights = state["weights"]


@dataclass(eq=False)
class DAFATrades(DAFAAT):
    """TRADES with DAFA's weights of the classes on the clean loss and on the radius, as :class:`DAFAAT` has them.

    Attributes:
        beta: trade-off of TRADES.
        class_lam: λ.
        begin: first epoch, from 0, with such weights; below 1 a part of the training.
        preset: ``"paper"`` or ``"official"``.
    """

    beta: float = 6.0
    needs = CLEAN | ADVERSARIAL
    equation = "ω·β·KL(p(x)‖p(x')) + u·CE(f(x), y); u, of the class of y, scales the radius of x', too"
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(trades)

    def _terms(self, context: StepContext) -> LossTerms:
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        function = unchecked(trades)
        return function(context.logits, context.logits_adv, context.y, beta=self.beta, targets=context.loss_targets)

    def _weighted(self, terms: LossTerms, weights: Tensor) -> LossTerms:
        return LossTerms(terms.robust, weights * terms.regularizer)
