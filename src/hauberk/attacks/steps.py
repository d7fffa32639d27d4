"""How an ascent is set up: numbers of steps, step sizes in the field's notations, starts."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.attacks.frozen_model import Mode
from hauberk.core.errors import UserError
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import LossName
from hauberk.threat import FeasibleSet, ThreatModel, parse_fraction

StepSize: TypeAlias = float | str | Tensor
Start: TypeAlias = Literal["uniform", "normal", "clean"] | Tensor

NORMAL_START = 0.001  # of TRADES' public code

_IN_EPS = re.compile(r"(?:(?P<times>[\d./]+)\s*\*\s*)?eps(?:\s*/\s*(?P<over>[\d.]+))?")


@dataclass(frozen=True, eq=False)
class Ascent:
    """Settings of one projected gradient ascent; what the engine in ``ascent.py`` runs.

    Attributes:
        steps: K, number of gradient steps.
        step_size: length of a step in the units of the input: a number, a fraction string ("2/255"), a part of ε
            ("eps/4", "2*eps", "1.25*eps/10"), or one value per feature.
        start: where to begin: "uniform" in the ball, "normal" (x + 0.001·N(0, 1)), "clean" (x itself), or a tensor
            (B, ...), used exactly as given for the first gradient.
        loss: what to maximise: "ce", "kl" (from the clean prediction), "cw" (margin), "dlr", "slm" (soft logit margin),
            "evade" (label and class of adversarial inputs together).
        confidence: κ of the "cw" loss.
        restarts: how many independent starts; the best point of all is kept.
        momentum: μ of the accumulated gradient (Dong et al. 2018); 0 for plain PGD.
        mode: how the model behaves meanwhile: "eval", "train-frozen" or "train", see ``frozen_model``.
        tau: τ of friendly adversarial training: an example stops once it is misclassified and has been so τ times before;
            None to take all K steps.
        jitter: ω, standard deviation of Gaussian noise added to each step (FAT's public code: 0.001).
        nesterov: μ of Nesterov's look-ahead: the gradient is taken at ``Π(x^t + μ (x^t - x^{t-1}))``; 0 for none.
        line_search: factors of the step size that are tried at each step, the best by loss is taken; empty for none.
    """

    steps: int = 10
    step_size: StepSize = "eps/4"
    start: Start = "uniform"
    loss: LossName = "ce"
    confidence: float = 0.0
    restarts: int = 1
    momentum: float = 0.0
    mode: Mode = "eval"
    tau: int | None = None
    jitter: float = 0.0
    nesterov: float = 0.0
    line_search: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UserError(f"an attack needs at least 1 step and 1 restart, got {self.steps} and {self.restarts}")
        if self.restarts > 1 and not isinstance(self.start, str):
            raise UserError("restarts from a given start would all be the same; use a random start")
        if isinstance(self.start, str) and self.start not in ("uniform", "normal", "clean"):
            raise UserError(f"start is 'uniform', 'normal', 'clean' or a tensor, not {self.start!r}")
        if self.mode not in ("eval", "train-frozen", "train"):
            raise UserError(f"mode is 'eval', 'train-frozen' or 'train', not {self.mode!r}")
        if self.tau is not None and (self.tau < 0 or self.restarts > 1):
            raise UserError(f"tau must be 0 or more, with one start, got {self.tau} and {self.restarts}")
        if self.tau is not None and (self.momentum or self.nesterov or self.line_search):
            raise UserError("tau goes with plain steps only, not with momentum, nesterov or line_search")


def parse_step(step: StepSize, threat: ThreatModel) -> float | Tensor:
    """Turn a step size as given into the units of the input.

    Raises:
        UserError: if it cannot be read or is not positive.
    """
    size: float | Tensor
    if isinstance(step, str):
        found = _IN_EPS.fullmatch(step.strip())
        try:
            if found:
                size = threat.eps * (parse_fraction(found["times"] or "1") / float(found["over"] or 1))
            else:
                size = parse_fraction(step)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f"step_size = {step!r} is not a number, '2/255' or 'eps/4'") from error
    else:
        size = step
    smallest = float(size.min()) if isinstance(size, Tensor) else size
    if not smallest >= 0 or (smallest == 0 and not isinstance(size, Tensor) and threat.eps != 0):
        raise UserError(f"step_size must be positive, got {step}")
    return size


def first_point(settings: Ascent, region: FeasibleSet, rng: ExampleRng, tag: int | Tensor) -> Tensor:
    """Return where an ascent begins, (B, ...). A tag is an integer, or one for each example."""
    if isinstance(settings.start, Tensor):
        return settings.start.detach().clone().to(region.x)
    if settings.start == "uniform":
        return region.random(rng, tag)
    if settings.start == "normal":
        return region.project(region.x + NORMAL_START * rng.normal(region.x, tag))
    return region.x


def best_step(
    region: FeasibleSet,
    point: Tensor,
    grad: Tensor,
    size: float | Tensor,
    factors: tuple[float, ...],
    gain: Callable[[Tensor], Tensor],
) -> Tensor:
    """Take a step, or, where there are factors, the best of the steps of those times its size.

    Args:
        region: where to stay.
        point: where we are, (B, ...).
        grad: of what is to be maximised, (B, ...).
        size: step size.
        factors: to try; none for a plain step.
        gain: what is to be maximised, at points (B, ...); (B,).
    """
    if not factors:
        return region.step(point, grad, size)
    best, highest = point, point.new_full((len(point),), -torch.inf)
    for factor in factors:
        candidate = region.step(point, grad, size * factor)
        value = gain(candidate).to(highest.dtype)
        better = value > highest
        best = torch.where(better.view(-1, *[1] * (point.ndim - 1)), candidate, best)
        highest = torch.where(better, value, highest)
    return best


def accumulate(velocity: Tensor | None, grad: Tensor, momentum: float) -> Tensor:
    """``g ← μ·g + ∇ / ‖∇‖₁`` (Dong et al. 2018), with the mean in place of the sum, which changes no direction."""
    scale = grad.abs().flatten(1).mean(1).clamp_min(torch.finfo(grad.dtype).tiny).view(-1, *[1] * (grad.ndim - 1))
    return grad / scale if velocity is None else momentum * velocity + grad / scale
