"""UIAT: adversarial predictions drawn to those of inverse adversarial inputs, of the least loss nearby (Dong et al. 2023)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from hauberk.core.arguments import shown, unchecked
from hauberk.core.class_means import ClassMeans
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, Objective, PresetName, StepContext
from hauberk.objectives.functional import cross_entropy, kl_divergence, log_softmax
from hauberk.threat.batch import checked_batch


@checked_batch
def uiat(
    logits: Tensor | None,
    logits_adv: Tensor,
    y: Tensor,
    *,
    logits_inverse: Tensor,
    class_mean: Tensor | None = None,
    class_share: float = 0.0,
    beta: float = 3.5,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """UIAT (Dong et al. 2023) behind adversarial training: ``ℓ = CE(f(x'), y)``, ``r = β·KL(q‖p(x'))``.

    ``q = (1 - γ)·p(x̌) + γ·m_y``: x̌ is the inverse adversarial input, of the least cross-entropy nearby, m_y a mean of p(x̌)
    over the class of y. The gradient flows through both predictions, not through m_y. No public code of the authors was found:
    x̌ is that of the abstract, β that of other people's code for a comparison, which looks for x̌ by
    ``CE(f(x̌), y) + KL(p(x)‖p(x̌)) - KL(p(x')‖p(x̌))`` and has ``KL(p(x')‖p(x̌))`` in the loss.

    Arguments as in :func:`hauberk.objectives.at`, with ``logits_inverse`` f(x̌), (B, C); ``class_mean`` is m_y of each example,
    (B, C), and None for q = p(x̌); ``class_share`` is γ, ``beta`` β.

    Raises:
        UserError: for a ``class_share`` outside [0, 1), and a ``class_mean`` of another shape.
    """
    fit = cross_entropy(logits_adv, y if targets is None else targets)
    return LossTerms(fit, beta * _apart(logits_adv, logits_inverse, class_mean, class_share))


@checked_batch
def uiat_trades(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    logits_inverse: Tensor,
    class_mean: Tensor | None = None,
    class_share: float = 0.0,
    beta: float = 3.5,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """UIAT (Dong et al. 2023) in TRADES: ``ℓ = β·KL(q‖p(x'))``, ``r = CE(f(x), y)``, with q in place of p(x).

    Arguments as in :func:`hauberk.objectives.uiat`, which says what q is.

    Raises:
        UserError: likewise.
    """
    fit = cross_entropy(logits, y if targets is None else targets)
    return LossTerms(beta * _apart(logits_adv, logits_inverse, class_mean, class_share), fit)


def _apart(logits_adv: Tensor, logits_inverse: Tensor, class_mean: Tensor | None, class_share: float) -> Tensor:
    """``KL(q‖p(x'))`` of each example, (B,)."""
    _check_share(class_share)
    if class_mean is None or not class_share:
        return kl_divergence(logits_inverse, logits_adv)
    if class_mean.shape != logits_adv.shape or not class_mean.is_floating_point():
        raise UserError(f"class_mean must be probabilities of shape {tuple(logits_adv.shape)}, got {shown(class_mean)}")
    log_p = log_softmax(logits_inverse)
    own = log_p + torch.log1p(log_p.new_tensor(-class_share))
    return kl_divergence(torch.logaddexp(own, (class_share * class_mean.detach().to(log_p)).log()), logits_adv)


def _check_share(class_share: float) -> None:
    if not 0 <= class_share < 1:
        raise UserError(f"class_share must be at least 0 and below 1, got {class_share}")


@dataclass(eq=False)
class UIAT(Objective, nn.Module):
    """UIAT behind adversarial training, see :func:`hauberk.objectives.uiat`.

    The attack leaves the inverse adversarial inputs in ``context.x_inverse``; they make a pass. The paper is remembered to
    draw them to a mean over their class, too; since no text of it was at hand, that is off unless ``class_share`` is set.

    Attributes:
        beta: β.
        class_share: γ of the mean of p(x̌) over the class in the last epoch; 0 in the first epoch.
    """

    beta: float = 3.5
    class_share: float = 0.0
    needs: ClassVar[frozenset[str]] = ADVERSARIAL
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(uiat)

    def __post_init__(self) -> None:
        nn.Module.__init__(self)
        super().__post_init__()
        _check_share(self.class_share)
        self.means = ClassMeans()

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        return f"ω·CE(f(x'), y) + β·{self._divergence}"

    @property
    def _divergence(self) -> str:
        """The divergence, and behind a semicolon what its names mean."""
        where = "x_inv is the input of the least cross-entropy within the ball"
        if not self.class_share:
            return f"KL(p(x_inv)‖p(x')); {where}"
        return f"KL(q‖p(x')); q is (1 - γ)·p(x_inv) + γ times its mean over the class in the last epoch, {where}"

    @property
    def looks_back(self) -> bool:
        """Whether it looks at means of the last epoch."""
        return self.class_share > 0

    def fresh(self) -> "UIAT":
        """Return the same loss with nothing remembered."""
        return replace(self)

    def before_step(self, context: StepContext) -> None:
        """Count what the step before has noted."""
        if self.class_share:
            self.means.begin_step(context)

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms after a pass more, and note the predictions of the inverse adversarial inputs."""
        if context.x_inverse is None:
            raise UserError("UIAT compares with inverse adversarial inputs, which its attack leaves in context.x_inverse")
        inverse = context.forward(context.x_inverse)
        mean = None
        if self.class_share:
            probabilities = log_softmax(inverse.detach()).exp()
            if self.means.values is not None:
                mean = self.means.of(context.y, inverse.shape[1], probabilities.dtype)
            self.means.note(context, probabilities, inverse.shape[1])
        more = {"beta": self.beta, "class_share": self.class_share, "class_mean": mean, "targets": context.loss_targets}
        return unchecked(type(self).function)(context.logits, context.logits_adv, context.y, logits_inverse=inverse, **more)


@dataclass(eq=False)
class UIATTrades(UIAT):
    """UIAT in TRADES, see :func:`hauberk.objectives.uiat_trades`; ``beta`` and ``class_share`` as of :class:`UIAT`."""

    needs: ClassVar[frozenset[str]] = CLEAN | ADVERSARIAL
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(uiat_trades)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        formula, _, meanings = self._divergence.partition(";")
        return f"ω·β·{formula} + CE(f(x), y);{meanings}"
