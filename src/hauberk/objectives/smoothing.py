"""Cross-entropy under Gaussian noise: training for randomised smoothing."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.core.step_context import LossTerms, Objective, StepContext
from hauberk.objectives.functional import cross_entropy, log_softmax

NOISE_TAG = 99_999  # of the draws; the last of an attack's first run, which none gets to


def gaussian_noise(like: Tensor, sigma: float, draws: int, rng: ExampleRng) -> Tensor:
    """Draw σn for each example, n ~ N(0, I), the same for an attack and the loss after it: (B, ...) -> (B, M, ...)."""
    return sigma * rng.normal(like[:, None].expand(-1, draws, *like.shape[1:]), NOISE_TAG)


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Log of the mean probabilities over noisy copies, in at least float32: (B, M, C) -> (B, C)."""
    every = log_softmax(logits.flatten(0, 1)).view(logits.shape)
    return every.logsumexp(1) - math.log(logits.shape[1])


@dataclass(frozen=True)
class NoisyStandard(Objective):
    """Cross-entropy at inputs with Gaussian noise (Cohen, Rosenfeld and Kolter 2019): ``ℓ = mean_j CE(f(x + σn_j), y)``.

    It makes the pass over all noisy copies itself, as one batch. Where nothing else has computed logits of x, those of the
    output are the logarithms of the mean probabilities over the draws, so that metrics of clean inputs are of noisy ones.

    Attributes:
        sigma: σ, in the units of the input.
        draws: m, noisy copies of each example.
    """

    sigma: float = 0.25
    draws: int = 1
    needs = frozenset()
    equation = "ω·CE(f(x + σ·n), y); n is N(0, I), the mean over the draws of it"
    takes_targets = True
    at_adversarial: ClassVar[bool] = False  # whether the noise is added to the adversarial input

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise UserError(f"draws must be at least 1, got {self.draws}")

    def __call__(self, context: StepContext) -> LossTerms:
        """Return the terms of a batch."""
        x = context.x_adv if self.at_adversarial else context.x
        if x is None:
            raise UserError(f"{type(self).__name__} adds noise to adversarial inputs, so it needs an attack")
        noise = gaussian_noise(x, self.sigma, self.draws, context.rng)
        logits = context.forward((x[:, None] + noise).flatten(0, 1)).unflatten(0, noise.shape[:2])
        field = "logits_adv" if self.at_adversarial else "logits"
        if getattr(context, field) is None:
            setattr(context, field, log_mean_softmax(logits))
        targets = context.loss_targets
        labels = (context.y if targets is None else targets).repeat_interleave(self.draws, 0)
        loss = cross_entropy(logits.flatten(0, 1), labels).view(-1, self.draws).mean(1)
        return LossTerms(loss, torch.zeros_like(loss))


@dataclass(frozen=True)
class NoisyAT(NoisyStandard):
    """Cross-entropy at adversarial inputs with Gaussian noise (Salman et al. 2019): ``ℓ = mean_j CE(f(x' + σn_j), y)``.

    The draws are those that :class:`hauberk.attacks.SmoothAdv` has seen. Where nothing else has computed logits of x', those of
    the output are the logarithms of the mean probabilities over the draws.

    Attributes:
        sigma: σ, in the units of the input.
        draws: m, noisy copies of each example.
    """

    equation = "ω·CE(f(x' + σ·n), y); n is N(0, I), the mean over the draws of it"
    at_adversarial = True
