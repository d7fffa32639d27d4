"""Distillation: the predictions of a robust teacher in place of labels (ARD, RSLAD, AdaAD, IGDM, SAAD)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hauberk.core.arguments import unchecked
from hauberk.core.step_context import LossTerms, Objective, PresetName, StepContext, is_official
from hauberk.objectives.functional import cross_entropy, kl_divergence, log_softmax
from hauberk.threat.batch import checked_batch

RSLAD_CODE = 0.1  # the mean over CIFAR-10's classes; on CIFAR-100 the code has ten times the mean, which is the same


@checked_batch
def ard(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    teacher: Tensor,
    alpha: float = 1.0,
    temperature: float = 30.0,
    preset: PresetName = "paper",
    targets: Tensor | None = None,
) -> LossTerms:
    """ARD (Goldblum et al. 2020): ``ℓ = α·τ²·KL(softmax(T(x)/τ)‖softmax(f(x')/τ))``, ``r = (1 - α)·CE(f(x), y)``.

    Arguments as in :func:`hauberk.objectives.at`, with ``teacher`` T(x), logits of the teacher at the clean inputs, (B, C).
    The ``preset`` "official" has the mean over the classes of the divergence in place of the sum, as ``torch.nn.KLDivLoss``
    takes it by default.
    """
    share = 1 / logits_adv.shape[1] if is_official(preset) else 1.0
    divergence = kl_divergence(teacher.detach() / temperature, logits_adv / temperature)
    fit = cross_entropy(logits, y if targets is None else targets)
    return LossTerms(share * alpha * temperature**2 * divergence, (1 - alpha) * fit)


@checked_batch
def rslad(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    teacher: Tensor,
    alpha: float = 5 / 6,
    preset: PresetName = "paper",
) -> LossTerms:
    """RSLAD (Zi et al. 2021): ``ℓ = α·KL(p_T(x)‖p(x'))``, ``r = (1 - α)·KL(p_T(x)‖p(x))``, p_T the teacher's softmax.

    Arguments as in :func:`hauberk.objectives.at`, with ``teacher``, its logits at the clean inputs, (B, C); labels are not
    looked at. The ``preset`` "official" has a tenth of this: the mean over CIFAR-10's classes. (The public code adds 1e-5 to
    the teacher's probabilities in a term that has no gradient; ours does not.)
    """
    share = RSLAD_CODE if is_official(preset) else 1.0
    soft = teacher.detach()
    return LossTerms(share * alpha * kl_divergence(soft, logits_adv), share * (1 - alpha) * kl_divergence(soft, logits))


@checked_batch
def adaad(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    teacher: Tensor,
    teacher_adv: Tensor,
    alpha: float = 1.0,
    preset: PresetName = "paper",
) -> LossTerms:
    """AdaAD (Huang et al. 2023): ``ℓ = α·KL(p_T(x')‖p(x'))``, ``r = (1 - α)·KL(p_T(x)‖p(x))``, p_T the teacher's softmax.

    Arguments as in :func:`hauberk.objectives.at`, with ``teacher`` and ``teacher_adv``, logits of the teacher at the clean and
    at the adversarial inputs, (B, C); labels are not looked at. The ``preset`` "official" has the mean over the classes of the
    divergences in place of the sum.
    """
    share = 1 / logits_adv.shape[1] if is_official(preset) else 1.0
    robust = kl_divergence(teacher_adv.detach(), logits_adv)
    return LossTerms(share * alpha * robust, share * (1 - alpha) * kl_divergence(teacher.detach(), logits))


@checked_batch
def saad(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    teacher: Tensor,
    teacher_adv: Tensor,
    beta: float = 0.0,
    relative_weights: Tensor | None = None,
    preset: PresetName = "paper",
) -> LossTerms:
    """SAAD (Lee and Chung 2026): ``ℓ = KL(p_T(x')‖p(x'))``, ``r = β·(1 - ω/max ω)·KL(p_T(x)‖p(x))``.

    ω, by which ℓ is to be multiplied, comes from the entropy of p_T(x'): :func:`hauberk.weighting.saad`.

    Arguments as in :func:`hauberk.objectives.at`, with ``teacher`` and ``teacher_adv``, logits of the teacher at the clean and
    at the adversarial inputs, (B, C), and ``relative_weights`` ω/max ω, (B,), by default those of this batch; labels are not
    looked at. From the public code, which has β 0 in the training it prints.
    """
    if relative_weights is None:
        relative_weights = share_of_largest(entropy(teacher_adv))
    robust = kl_divergence(teacher_adv.detach(), logits_adv)
    return LossTerms(robust, beta * (1 - relative_weights.detach()) * kl_divergence(teacher.detach(), logits))


@checked_batch
def gradient_matching(logits_adv: Tensor, logits_opposite: Tensor, *, teacher_adv: Tensor, teacher_opposite: Tensor) -> Tensor:
    """IGDM's term (Lee et al. 2025): ``KL(softmax(T(x+δ) - T(x-δ))‖softmax(f(x+δ) - f(x-δ)))``, δ = x' - x.

    Differences of logits stand for the directional derivatives that they approximate.

    Args:
        logits_adv: f(x'), (B, C).
        logits_opposite: f(2x - x'), (B, C).
        teacher_adv: T(x'), (B, C).
        teacher_opposite: T(2x - x'), (B, C).

    Returns:
        The term of each example, (B,).
    """
    return kl_divergence((teacher_adv - teacher_opposite).detach(), logits_adv - logits_opposite)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats, in at least float32, detached. (B, C) -> (B,)."""
    log_p = log_softmax(logits.detach())
    return -(log_p.exp() * log_p).sum(1)


def share_of_largest(measure: Tensor) -> Tensor:
    """``(m_i - min m) / (max m - min m)``, with 1e-8 below. (B,) -> (B,)."""
    above = measure - measure.amin()
    return above / (above.amax() + 1e-8)


@dataclass(frozen=True)
class Distillation(Objective):
    """A loss that compares with a teacher; the objects below differ in it.

    Attributes:
        igdm_alpha: α of IGDM's gradient matching, which grows to that linearly over the training; 0 for none.
    """

    igdm_alpha: float = 0.0
    needs_teacher: ClassVar[bool] = True
    asks: ClassVar[tuple[str, ...]] = ("teacher",)  # what its function is given of the teacher
    looks_at_labels: ClassVar[bool] = False

    @property
    def takes_targets(self) -> bool:
        """Whether the data may have probabilities of the classes in place of labels: always where neither is looked at."""
        return super().takes_targets or not self.looks_at_labels

    @property
    def follows_progress(self) -> bool:
        """Whether gradient matching grows with the training."""
        return self.igdm_alpha > 0

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch whose logits have been computed."""
        found = {name: context.ask("teacher", "clean" if name == "teacher" else "adversarial") for name in self.asks}
        own = {name: value for name, value in vars(self).items() if name != "igdm_alpha"}
        targets = context.loss_targets
        soft = {} if targets is None or not self.looks_at_labels else {"targets": targets}
        robust, regularizer = unchecked(type(self).function)(
            context.logits, context.logits_adv, context.y, **found, **own, **self.more(context), **soft
        )
        if self.igdm_alpha:
            robust = robust + self.igdm_alpha * context.progress * self._gradient_matching(context)
        return LossTerms(robust, regularizer)

    def more(self, context: StepContext) -> dict[str, Any]:
        """What else the function is given."""
        return {}

    def _gradient_matching(self, context: StepContext) -> Tensor:
        assert context.teacher is not None  # needed
        assert context.x_adv is not None
        assert context.logits_adv is not None
        opposite = 2 * context.x - context.x_adv  # which may lie outside the box, as in the public code
        logits_opposite = context.forward(opposite)
        teacher_opposite = context.ask_at(context.teacher, opposite).to(logits_opposite.dtype)
        matched: Tensor = unchecked(gradient_matching)(
            context.logits_adv,
            logits_opposite,
            teacher_adv=context.ask("teacher", "adversarial"),
            teacher_opposite=teacher_opposite,
        )
        return matched


_MATCHING = "a·t·KL(d_T‖d)"
_MATCHING_MEANS = (
    "d and d_T are the softmax of f(x') - f(2x - x') and of T(x') - T(2x - x'), t the part of the training that is done"
)


def _equation(robust: str, rest: str, means: str, matches: bool) -> str:
    """What a distillation computes of an example, with gradient matching or without."""
    if not matches:
        return f"ω·{robust} + {rest}; {means}"
    return f"ω·({robust} + {_MATCHING}) + {rest}; {means}, a is igdm_alpha, {_MATCHING_MEANS}"


@dataclass(frozen=True)
class ARD(Distillation):
    """Adversarially robust distillation, see :func:`hauberk.objectives.ard`.

    Attributes:
        igdm_alpha: of gradient matching, as of :class:`Distillation`.
        alpha: α, between the teacher and the labels.
        temperature: τ of both predictions.
        preset: "paper", or "official" for the mean over the classes.
    """

    alpha: float = 1.0
    temperature: float = 30.0
    preset: PresetName = "paper"
    function = staticmethod(ard)
    looks_at_labels = True

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        means = "q and q_T are the softmax of f/τ and of the teacher's T/τ"
        return _equation("α·τ·τ·KL(q_T(x)‖q(x'))", "(1 - α)·CE(f(x), y)", means, self.follows_progress)


@dataclass(frozen=True)
class RSLAD(Distillation):
    """Robust soft label adversarial distillation, see :func:`hauberk.objectives.rslad`.

    Attributes:
        igdm_alpha: of gradient matching, as of :class:`Distillation`.
        alpha: α, the share of the adversarial inputs.
        preset: "paper", or "official" for a tenth of the loss.
    """

    alpha: float = 5 / 6
    preset: PresetName = "paper"
    function = staticmethod(rslad)

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        means = "p_T is the teacher's softmax"
        return _equation("α·KL(p_T(x)‖p(x'))", "(1 - α)·KL(p_T(x)‖p(x))", means, self.follows_progress)


@dataclass(frozen=True)
class AdaAD(Distillation):
    """Adaptive adversarial distillation, see :func:`hauberk.objectives.adaad`.

    Attributes:
        igdm_alpha: of gradient matching, as of :class:`Distillation`.
        alpha: α, the share of the adversarial inputs.
        preset: "paper", or "official" for the mean over the classes.
    """

    alpha: float = 1.0
    preset: PresetName = "paper"
    function = staticmethod(adaad)
    asks = ("teacher", "teacher_adv")

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        means = "p_T is the teacher's softmax"
        return _equation("α·KL(p_T(x')‖p(x'))", "(1 - α)·KL(p_T(x)‖p(x))", means, self.follows_progress)


@dataclass(frozen=True)
class SAAD(Distillation):
    """Sample-wise adaptive adversarial distillation, see :func:`hauberk.objectives.saad`.

    Attributes:
        igdm_alpha: α of gradient matching; the public code has 1 on CIFAR-10, and 10 on CIFAR-100 and Tiny-ImageNet.
        beta: β of the clean term; the training that the public code prints has 0.
    """

    igdm_alpha: float = 1.0
    beta: float = 0.0
    function = staticmethod(saad)
    asks = ("teacher", "teacher_adv")

    def more(self, context: StepContext) -> dict[str, Any]:
        """ω/max ω of the whole batch of all processes."""
        if not self.beta:
            return {}
        measure = context.all_gather(entropy(context.ask("teacher", "adversarial")))
        return {"relative_weights": context.take_local(share_of_largest(measure))}

    @property
    def equation(self) -> str:  # type: ignore[override]
        """The loss."""
        means = "p_T is the teacher's softmax, v is ω/max ω"
        return _equation("KL(p_T(x')‖p(x'))", "β·(1 - v)·KL(p_T(x)‖p(x))", means, self.follows_progress)
