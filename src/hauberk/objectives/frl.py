"""FRL: weights of the clean and of the boundary error of each class, and a radius of each class (Xu et al. 2021)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hauberk.core.arguments import checked, shown, unchecked
from hauberk.core.class_weights import frl as multiplied
from hauberk.core.errors import UserError
from hauberk.core.step_context import BurnIn, LossTerms, PresetName, StepContext, is_official
from hauberk.objectives.class_wise import ClassWiseObjective, rightness
from hauberk.objectives.functional import cross_entropy, kl_divergence
from hauberk.threat.batch import checked_batch

_SMALLEST = 0.98  # radius of a class, as a part of ε


@checked_batch
def frl(
    logits: Tensor,
    logits_adv: Tensor,
    y: Tensor,
    *,
    beta: float = 1.0,
    clean_weights: Tensor | None = None,
    boundary_weights: Tensor | None = None,
    targets: Tensor | None = None,
) -> LossTerms:
    """TRADES with FRL's weights of the classes (Xu et al. 2021, Reweight): ``ℓ = β·w·KL(p(x)‖p(x'))``, ``r = u·CE(f(x), y)``.

    Arguments as in :func:`hauberk.objectives.at`; ``beta`` is β, ``clean_weights`` u and ``boundary_weights`` w of each
    example, (B,), 1 where they are not given.

    Raises:
        UserError: if such weights are of another shape.
    """
    apart, fit = kl_divergence(logits, logits_adv), cross_entropy(logits, y if targets is None else targets)
    for name, weights in (("clean_weights", clean_weights), ("boundary_weights", boundary_weights)):
        if weights is not None and weights.shape != y.shape:
            raise UserError(f"{name} must be ({len(y)},), got {shown(weights)}")
    w, u = (1.0 if weights is None else weights.to(fit) for weights in (boundary_weights, clean_weights))
    return LossTerms(beta * w * apart, u * fit)


@checked
@torch.no_grad()
def frl_radii(
    error: Tensor, exponents: Tensor, rate: float = 0.1, bound: float = 0.1, limit: float = 2.5
) -> tuple[Tensor, Tensor]:
    """One update of FRL's radii of the classes (Xu et al. 2021, Remargin).

    ``λ_c ← λ_c + η·(e_c - mean e - τ)``; the radius is ``exp(2·λ_c)`` as a part of ε, from 0.98 up to a limit, so that a class
    with a large error near its inputs is trained on a larger ball.

    Args:
        error: e, boundary error of each class: robust error less clean error, (C,).
        exponents: λ, (C,); 0 at first.
        rate: η ≥ 0.
        bound: τ.
        limit: the largest radius, at least 1.

    Returns:
        Radii and new exponents, (C,) each, detached.

    Raises:
        UserError: for other shapes, a negative rate and a limit below 1.
    """
    if error.ndim != 1 or error.shape != exponents.shape:
        raise UserError(f"error and exponents must be (C,) each, got {shown(error)} and {shown(exponents)}")
    if rate < 0 or limit < 1:
        raise UserError(f"rate must not be negative, and limit at least 1, got {rate} and {limit}")
    new = exponents + rate * (error - error.mean() - bound)
    return (2 * new).exp().clamp(_SMALLEST, limit), new


@dataclass(eq=False)
class FRL(ClassWiseObjective):
    """TRADES with FRL's weights and radii of the classes, from their errors in the last epoch.

    The clean error of a class raises its weight u of the clean loss, its boundary error (robust less clean) the weight w of the
    divergence (Reweight), each by :func:`hauberk.weighting.frl`, and its radius (Remargin), by
    :func:`hauberk.objectives.frl_radii`: x' may leave the threat model in training, evaluation never does. The public code
    measures errors on held-out images by PGD of 20 steps before each epoch, and begins with a trained network, which is what
    ``begin`` is for; here errors are those that the epoch before has seen in training, at no cost, which are smaller.

    Attributes:
        beta: β of TRADES; the public code has 1.
        clean_rate: η of the weights of the clean loss; 0 leaves them at 1.
        boundary_rate: η of the weights of the divergence, likewise.
        radius_rate: η of the radii, likewise.
        clean_bound: τ, by which the clean error of a class may be above the mean.
        boundary_bound: the same of the boundary error.
        weight_limit: of the sum of the multipliers behind each kind of weights, in [0, 1).
        radius_limit: the largest radius as a part of ε, at least 1.
        begin: first epoch, from 0, with such weights and radii; below 1 a part of the training.
        preset: ``"paper"``, which is TRADES where all classes are alike; ``"official"`` divides by the mean of u + w over the
            batch, and halves the rates of the weights after each third of the training.
    """

    beta: float = 1.0
    clean_rate: float = 0.05
    boundary_rate: float = 0.1
    radius_rate: float = 0.0
    clean_bound: float = 0.1
    boundary_bound: float = 0.1
    weight_limit: float = 0.5
    radius_limit: float = 2.5
    begin: BurnIn = 0
    preset: PresetName = "paper"
    equation = "ω·β·w·KL(p(x)‖p(x')) + u·CE(f(x), y); u, w and the radius of x' are of the class of y"
    function: ClassVar[Callable[..., LossTerms]] = staticmethod(frl)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_official(self.preset)
        if self.weight_limit >= 1 or self.radius_limit < 1:
            raise UserError(
                f"weight_limit must be below 1, and radius_limit at least 1, got {self.weight_limit} and {self.radius_limit}"
            )
        self._multipliers: Tensor | None = None  # (3, C): of the two kinds of weights, and the exponents of the radii
        self._classes: Tensor | None = None  # (C, 3): u, w and radius
        self._epoch = -1  # in which they were made

    def fresh(self) -> "FRL":
        """Return the same loss with nothing remembered."""
        return replace(self)

    @property
    def follows_progress(self) -> bool:
        """Whether the length of the training matters: to rates that are halved, too."""
        return is_official(self.preset) or super().follows_progress

    def before_step(self, context: StepContext) -> None:
        """Count the step before, and set the radius of each example, where there are such."""
        if self.radius_rate:
            super().before_step(context)
        else:
            self.means.begin_step(context)

    def settings_of_classes(self, context: StepContext) -> Tensor | None:
        """Return u, w and radius of the classes, (C, 3), made anew once an epoch; None before."""
        right = super().settings_of_classes(context)
        if right is None:
            return None
        if self._epoch != context.epoch:
            self._update(right, context)
        assert self._classes is not None  # made with the first update
        self._classes = self._classes.to(context.y.device)
        return self._classes

    def _update(self, right: Tensor, context: StepContext) -> None:
        clean, boundary = 1 - right[:, 0], right[:, 0] - right[:, 1]
        old = torch.zeros_like(right[:, :1].T).repeat(3, 1) if self._multipliers is None else self._multipliers.to(right)
        halvings = 3 * (context.epoch + 1) // context.schedule.epochs if is_official(self.preset) else 0
        made = (
            unchecked(multiplied)(clean, old[0], self.clean_rate * 0.5**halvings, self.clean_bound, self.weight_limit),
            unchecked(multiplied)(boundary, old[1], self.boundary_rate * 0.5**halvings, self.boundary_bound, self.weight_limit),
            unchecked(frl_radii)(boundary, old[2], self.radius_rate, self.boundary_bound, self.radius_limit),
        )
        self._classes = torch.stack([of_classes for of_classes, _ in made], 1)
        self._multipliers = torch.stack([multipliers for _, multipliers in made])
        self._epoch = context.epoch

    def radii_of_classes(self, values: Tensor) -> Tensor:
        """The radii, (C,)."""
        return values[:, 2]

    @property
    def largest_radius(self) -> float:
        """``radius_limit``."""
        return self.radius_limit

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms, and note which examples are right."""
        assert context.logits is not None  # needed
        assert context.logits_adv is not None
        values = self.settings_of_classes(context)
        rows = (rightness(logits, context.y) for logits in (context.logits, context.logits_adv))
        self.note(context, torch.cat(list(rows), 1))
        u, w = (None, None) if values is None else values[context.y, :2].unbind(1)
        terms = unchecked(frl)(
            context.logits, context.logits_adv, context.y, beta=self.beta, clean_weights=u, boundary_weights=w,
            targets=context.loss_targets,
        )  # fmt: skip
        if not is_official(self.preset):
            return terms
        both = 2.0 if u is None or w is None else context.all_gather(u + w).mean().to(terms.robust)
        return LossTerms(terms.robust / both, terms.regularizer / both)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into ``state_dict``."""
        return {"multipliers": self._multipliers, "classes": self._classes, "epoch": self._epoch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._multipliers, self._classes, self._epoch = (state[key] for key in ("multipliers", "classes", "epoch"))
