"""IKL and GKL: KL divergence taken apart into a weighted squared error and a cross-entropy (Cui et al. 2024, 2026)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hauberk.core.arguments import shown, unchecked
from hauberk.core.class_means import ClassMeans
from hauberk.core.errors import UserError
from hauberk.core.step_context import LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import at_least_float32, cross_entropy, log_softmax
from hauberk.threat.batch import checked_batch


@checked_batch
def ikl(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 20.0,
    alpha: float = 4.0,
    prior: Tensor | None = None,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """IKL (Cui et al. 2024): ``ℓ = β·wMSE(f(x), f(x')) + α·CE(f(x'), p(x))``, ``r = CE(f(x), y)``.

    ``wMSE(z, z') = Σ_{jk} s_j s_k ((z_j - z_k) - (z'_j - z'_k))² / 4``, with s the mean prediction of the class of y. The
    gradient of wMSE flows through both logits, that of the second term through f(x') alone, as in the public code.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is β, ``alpha`` α; ``prior``, (B, C), has s of each example, by
    default 1/C.

    Raises:
        UserError: if ``prior`` is of another shape.
    """
    apart = _weighted_squared_error(logits, logits_adv, _prior(prior, logits))
    fit = cross_entropy(logits, y if targets is None else targets)
    return LossTerms(beta * apart + alpha * _cross_entropy_from(logits, logits_adv), fit)


@checked_batch
def gkl(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 20.0,
    alpha: float = 4.0,
    prior_exponent: float = 0.2,
    prior: Tensor | None = None,
    total: Tensor | None = None,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """GKL (Cui et al. 2026), IKL with a flatter prior: ``ℓ = β·wMSE(f(x), f(x')) + α·CE(f(x'), p(x))``, ``r = CE(f(x), y)``.

    ``wMSE(z, z') = Σ_{jk} s_j^γ s_k^γ ((z_j - z_k) - (z'_j - z'_k))² / (4 Z)`` with Z the mean of ``Σ_{jk} s_j^γ s_k^γ`` over
    the batch.

    Arguments as in :func:`hauberk.objectives.ikl`; ``prior_exponent`` is γ; ``total``, a scalar, is Z where it is known.

    Raises:
        UserError: if ``prior`` is of another shape.
    """
    s = _prior(prior, logits).pow(prior_exponent)
    total = s.sum(1).square().mean() if total is None else total
    apart = _weighted_squared_error(logits, logits_adv, s) / total
    fit = cross_entropy(logits, y if targets is None else targets)
    return LossTerms(beta * apart + alpha * _cross_entropy_from(logits, logits_adv), fit)


def _prior(prior: Tensor | None, logits: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    if prior is None:
        return torch.full(logits.shape, 1 / logits.shape[1], dtype=wide, device=logits.device)
    if prior.shape != logits.shape or not prior.is_floating_point():
        raise UserError(f"prior must be probabilities of shape {tuple(logits.shape)}, got {shown(prior)}")
    return prior.detach().to(logits.device, wide)


def _weighted_squared_error(logits: Tensor, logits_adv: Tensor, s: Tensor) -> Tensor:
    """``Σ_{jk} s_j s_k (d_j - d_k)² / 4`` with d the difference of logits, which is half of Σs times a weighted variance."""
    d = at_least_float32(logits) - at_least_float32(logits_adv)
    whole = s.sum(1, keepdim=True)
    centred = d - (s * d).sum(1, keepdim=True) / whole
    return 0.5 * whole.squeeze(1) * (s * centred.square()).sum(1)


def _cross_entropy_from(logits: Tensor, logits_adv: Tensor) -> Tensor:
    return cross_entropy(logits_adv, log_softmax(logits.detach()).exp())


@dataclass(eq=False)
class IKL(Objective, nn.Module):
    """IKL, with ``beta`` and ``alpha`` as in :func:`hauberk.objectives.ikl`, and priors from the last epoch.

    The prior of a class is the mean of ``softmax(f(x)/T)`` over its examples in the last epoch, and uniform in the first.

    Attributes:
        prior_temperature: T.
    """

    beta: float = 20.0
    alpha: float = 4.0
    prior_temperature: float = 4.0
    looks_back: ClassVar[bool] = True
    equation: ClassVar[str] = (  # type: ignore[misc]
        "ω·(β·wMSE(f(x), f(x')) + α·CE(f(x'), p(x))) + CE(f(x), y); wMSE is of differences of logits, weighted by the mean "
        "predictions of the class of y in the last epoch"
    )
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(ikl)

    def __post_init__(self) -> None:
        nn.Module.__init__(self)
        super().__post_init__()
        if self.prior_temperature <= 0:
            raise UserError(f"prior_temperature must be positive, got {self.prior_temperature}")
        self.means = ClassMeans()

    def fresh(self) -> "IKL":
        """Return the same loss with nothing remembered."""
        return replace(self)

    def before_step(self, context: StepContext) -> None:
        """Count what the step before has noted."""
        self.means.begin_step(context)

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and note the predictions."""
        assert context.logits is not None  # needed
        logits = context.logits.detach()
        classes = logits.shape[1]
        prior = self.means.of(context.y, classes, logits.dtype)
        self.means.note(context, (logits / self.prior_temperature).softmax(1), classes)
        more = {"beta": self.beta, "alpha": self.alpha, "prior": prior, "targets": context.loss_targets}
        more |= self._more(context, prior)
        return unchecked(type(self).function)(context.logits, context.logits_adv, context.y, **more)

    def _more(self, context: StepContext, prior: Tensor) -> dict[str, Any]:
        """Further arguments of the function."""
        return {}


@dataclass(eq=False)
class GKL(IKL):
    """GKL, with ``beta``, ``alpha`` and ``prior_exponent`` as in :func:`hauberk.objectives.gkl`, and priors as of :class:`IKL`.

    Attributes:
        prior_temperature: T of the priors, as in :class:`IKL`.
    """

    prior_temperature: float = 1.0
    prior_exponent: float = 0.2
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(gkl)

    def _more(self, context: StepContext, prior: Tensor) -> dict[str, Any]:
        sizes = prior.pow(self.prior_exponent).sum(1).square()
        return {"prior_exponent": self.prior_exponent, "total": context.all_gather(sizes).mean()}
