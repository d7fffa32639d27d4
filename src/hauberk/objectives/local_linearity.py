"""Terms against catastrophic overfitting, added to any objective: GradAlign and ELLE ask for a loss that is linear nearby."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError
from hauberk.core.step_context import ADVERSARIAL, CLEAN, LossTerms, StepContext
from hauberk.objectives.functional import cross_entropy
from hauberk.threat import expand_to

_GRADALIGN_TAG, _ELLE_TAG = 99_700, 99_800  # of random draws that no attack gets to; each of ELLE's three takes ten


@dataclass(frozen=True)
class GradAlign:
    """Gradient alignment (Andriushchenko and Flammarion 2020): ``λ·(1 - cos(∇_x CE(f(x), y), ∇_x CE(f(x + η), y)))``.

    η is uniform in the ball, not clipped to the box. The gradient at x is a constant, as in the public code; that at x + η has
    a graph, so the backward pass goes through it twice. Examples where either gradient is 0 do not count, and the others are
    averaged. The authors' λ at ε on CIFAR-10 is ``0.02·10^(255·ε/8)``: 0.2 at 8/255, 2 at 16/255. Costs two forwards and two
    backwards to the input.

    Attributes:
        gradalign_lam: λ.
    """

    gradalign_lam: float = 0.2
    equation: ClassVar[str] = "λ·(1 - cos(∇CE(f(x), y), ∇CE(f(x + η), y)))"

    def __post_init__(self) -> None:
        _check_positive(self)

    def __call__(self, context: StepContext) -> Tensor:
        """Return the term of each example, (b,)."""
        compared = context.threat.around(context.x).random_in_ball(context.rng, _GRADALIGN_TAG)
        here, there = (_input_gradient(context, x, graph) for x, graph in ((context.x, False), (compared, True)))
        counts = (here.abs().amax(1) > 0) & (there.detach().abs().amax(1) > 0)
        here, there = (torch.where(counts[:, None], grad, torch.ones_like(grad)) for grad in (here, there))  # 0 points nowhere
        cosine = F.cosine_similarity(here, there, dim=1)
        share = context.mean_one(counts.to(cosine.dtype)) * counts
        return self.gradalign_lam * share * (1 - cosine)


def _input_gradient(context: StepContext, x: Tensor, graph: bool) -> Tensor:
    """Return ∇_x of the cross-entropy in a pass of its own, (b, D), each scaled to a largest entry of 1."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = cross_entropy(context.forward(x), _labels(context)).sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=graph)
    context.more_backwards += 1
    grad = grad.flatten(1).float() if grad.element_size() < 4 else grad.flatten(1)
    largest = grad.detach().abs().amax(1, keepdim=True)
    return grad / torch.where(largest > 0, largest, torch.ones_like(largest))  # so that squares of tiny ones do not vanish


@dataclass(frozen=True)
class ELLE:
    """Efficient local linearity (Abad Rocamora et al. 2024): ``λ·(ℓ(x_c) - (1 - α)·ℓ(x_a) - α·ℓ(x_b))²``, ℓ = CE(f(·), y).

    x_a and x_b are uniform in the ball, not clipped to the box, α is uniform in [0, 1], and ``x_c = (1 - α)·x_a + α·x_b``. All
    three go through the network as one batch, at three forwards and no backward to the input. Adaptive (ELLE-A): λ is 0 at
    first; after a step whose mean squared error lies more than ``elle_sensitivity`` standard deviations above the mean of those
    before (three at least) it is ``elle_lam``, after any other ``elle_decay`` times what it was. The authors' λ on CIFAR-10 is
    1000 up to ε 8/255, 5000 up to 20/255 and 10000 above; for ELLE-A 4000 everywhere.

    Attributes:
        elle_lam: λ.
        elle_adaptive: whether λ waits until the loss is less linear than it was.
        elle_decay: factor of λ after a step without that.
        elle_sensitivity: standard deviations that call for it.
    """

    elle_lam: float = 1000.0
    elle_adaptive: bool = False
    elle_decay: float = 0.99
    elle_sensitivity: float = 2.0
    equation: ClassVar[str] = "λ·(CE(f(x_c), y) - (1 - α)·CE(f(x_a), y) - α·CE(f(x_b), y))²"

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.elle_decay > 1:
            raise UserError(f"elle_decay must be at most 1, got {self.elle_decay}")

    def fresh(self) -> "Callable[[StepContext], Tensor]":
        """Return what computes it: this, or what remembers the errors so far."""
        return AdaptiveELLE(self) if self.elle_adaptive else self

    def __call__(self, context: StepContext) -> Tensor:
        """Return the term of each example, (b,)."""
        return self.elle_lam * self.errors(context)

    def errors(self, context: StepContext) -> Tensor:
        """Return the squared error of linearity of each example, (b,)."""
        ball, rng, y = context.threat.around(context.x), context.rng, _labels(context)
        a, b = (ball.random_in_ball(rng, _ELLE_TAG + ten) for ten in (0, 10))
        alpha = rng.uniform(context.x.new_empty(len(y), 1), _ELLE_TAG + 20).squeeze(1)
        part = expand_to(alpha, a)
        logits = context.forward(torch.cat([a, b, (1 - part) * a + part * b]))
        at_a, at_b, between = cross_entropy(logits, y.repeat(3, *[1] * (y.ndim - 1))).view(3, -1)
        apart: Tensor = between - (1 - alpha) * at_a - alpha * at_b
        return apart.square()


class AdaptiveELLE(nn.Module):
    """ELLE with the λ of ELLE-A, which follows from the errors of all steps before; kept in ``state_dict``.

    Args:
        settings: of ELLE.
    """

    state: Tensor  # (4,): λ, how many errors there have been, their mean, and the sum of their squared distances from it

    def __init__(self, settings: ELLE):
        super().__init__()
        self.settings = settings
        self.register_buffer("state", torch.zeros(4, dtype=torch.float64))
        self._lam = self.state[0]  # of the step that is under way

    @property
    def equation(self) -> str:
        """What it computes of an example."""
        return self.settings.equation

    def fresh(self) -> "AdaptiveELLE":
        """Return the same with nothing remembered."""
        return AdaptiveELLE(self.settings)

    def forward(self, context: StepContext) -> Tensor:
        """Return the term of each example, (b,), and remember the error of the whole batch, once in a step."""
        errors = self.settings.errors(context)
        if not context.weights_perturbed:
            if self.state.device != errors.device:
                self.state = self.state.to(errors.device)
            self._lam = self.state[0]
            self._remember(context.all_gather(errors.detach()).double().mean())
        return self._lam.to(errors.dtype) * errors

    def _remember(self, error: Tensor) -> None:
        lam, count, mean, spread = self.state.unbind()
        limit = mean + self.settings.elle_sensitivity * (spread / count.clamp_min(1)).sqrt()
        alarmed = (count > 2) & (error > limit)
        lam = torch.where(alarmed, torch.full_like(lam, self.settings.elle_lam), lam * self.settings.elle_decay)
        away, count = error - mean, count + 1
        mean = mean + away / count
        self.state = torch.stack([lam, count, mean, spread + away * (error - mean)])


class Regularized(nn.Module):
    """An objective with terms added to its r, such as GradAlign or ELLE. What else is asked of it, the objective answers.

    Args:
        objective: what any method takes as one.
        *terms: functions of the context that return what is added to r of each example, (b,).
    """

    def __init__(self, objective: Any, *terms: Callable[[StepContext], Tensor]):
        super().__init__()
        self.objective = _fresh(objective)
        self.terms = [_fresh(term) for term in terms]
        self._modules |= {f"term{i}": term for i, term in enumerate(self.terms) if isinstance(term, nn.Module)}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("objective", "terms"):  # while it is being made
                raise
            return getattr(self.objective, name)

    @property
    def needs(self) -> frozenset[str]:
        """The logits that the objective needs."""
        return frozenset(getattr(self.objective, "needs", CLEAN | ADVERSARIAL))

    @property
    def equation(self) -> str:
        """What all compute of an example."""
        return with_terms(str(getattr(self.objective, "equation", "the objective")), self.terms)

    def fresh(self) -> "Regularized":
        """Return the same with nothing remembered."""
        return Regularized(self.objective, *self.terms)

    def forward(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch."""
        robust, regularizer = self.objective(context)
        for term in self.terms:
            regularizer = regularizer + term(context)
        return LossTerms(robust, regularizer)


def with_terms(equation: str, terms: Iterable[Any]) -> str:
    """Return the equation of an objective with those of what is added to it, before its semicolon."""
    formula, semicolon, meanings = equation.partition(";")
    return " + ".join([formula, *(getattr(term, "equation", "r") for term in terms)]) + semicolon + meanings


def _fresh(part: Any) -> Any:
    """Return a part with nothing remembered, itself if it never does."""
    return part.fresh() if hasattr(part, "fresh") else part


def _labels(context: StepContext) -> Tensor:
    """What the loss compares with: labels, or probabilities of the classes."""
    targets = None if context.logits is None and context.logits_adv is None else context.loss_targets
    return context.y if targets is None else targets


def _check_positive(settings: Any) -> None:
    check_fields(settings)
    for name, value in vars(settings).items():
        if value < 0:
            raise UserError(f"{name} must not be negative, got {value!r}")
