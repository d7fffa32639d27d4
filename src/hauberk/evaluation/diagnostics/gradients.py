"""Diagnostics of gradients and of the search, on a few examples that are classified right, by attacks of their own."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import APGD, BPDA, Attack, ModelQueries, Square, apgd, pgd, random_search, square
from hauberk.core.device import send
from hauberk.core.random import ExampleRng, content_ids
from hauberk.evaluation.finding import Finding
from hauberk.objectives.functional import ATTACK_LOSSES, AttackLoss, LossLike, cw_loss, fooled
from hauberk.threat import ThreatModel

SAMPLE = 48  # examples
CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # times ε
NO_GRADIENT = 0.1  # of the inputs
_CURVE_STEPS, _STEPS, _RANDOM_POINTS, _QUERIES = 20, 50, 50, 200
_GREY = 255  # grey values above 0 of an image in [0, 1]
_ALMOST_GREY = 1e-2  # of a grey value, which float32 keeps
_SMALL_STEP = 1 / 20  # of ε, of the finite differences
_DIRECTIONS = 4
_CLEAR = 2  # times what would be seen without a step
_FEW = 3  # examples of the sample, which are no sign


@dataclass(frozen=True)
class Sample:
    """What diagnostics that need "sample" are given; what several of them look at is measured once.

    Attributes:
        model: in evaluation mode, lent by ``frozen_model``; with the backward pass of its stand-in, if it has one.
        queries: the fastest form of it in its own precision.
        x: clean inputs that are classified right, (b, ...).
        y: labels, (b,).
        threat: the threat model.
        seed: of random draws, which are keyed by the content of each example.
        draws: passes to average over, for a random model.
        goal: what the adversary is after. Where the last output is a class of adversarial inputs, the attacks here do not try
            to hide from it, so nothing is measured by them then.
        attacks: of the evaluation.
    """

    model: nn.Module
    queries: ModelQueries
    x: Tensor
    y: Tensor
    threat: ThreatModel
    seed: int
    draws: int
    goal: AttackLoss
    attacks: Sequence[Attack[Any]] = ()

    def rng(self, stage: int = 1) -> ExampleRng:
        """Random draws; each stage has its own."""
        return ExampleRng(self.seed, send(content_ids(self.x), self.x.device), stage=stage)

    @property
    def has_reject_class(self) -> bool:
        """Whether the last output is a class of adversarial inputs."""
        return self.goal.extra_outputs > 0

    def loss(self, usual: str = "cw") -> LossLike:
        """What an attack maximises: the usual loss, unless the task has its own."""
        return self.goal if self.goal.is_own else usual

    @cached_property
    def margin_gradient(self) -> tuple[Tensor, Tensor]:
        """What is maximised, the margin turned round, at the inputs, (b,), and its gradient, (b, ...)."""
        _, value, slope = self.queries.value_and_grad(self.x, self.goal, self.y)
        return value, slope

    def apgd(self, factor: float = 1.0, steps: int = _STEPS, loss: str = "ce", stage: int = 1) -> Tensor:
        """Which inputs APGD (in L0 PGD) breaks within ``factor`` times ε, (b,) bool."""
        how: dict[str, Any] = {"steps": steps, "loss": self.loss(loss), "seed": self.rng(stage), "eot_iter": self.draws}
        how["criterion"] = self.goal.criterion
        attack = apgd if APGD().defined_in(self.threat.norm) else pgd
        return attack(self.model, self.x, self.y, self.threat.scaled(factor), **how).success

    @cached_property
    def broken(self) -> Tensor:
        """Which inputs APGD on cross-entropy breaks, (b,) bool."""
        return self.apgd()

    @cached_property
    def broken_by_margin(self) -> Tensor:
        """Which inputs APGD on the margin breaks, (b,) bool."""
        return self.broken if self.goal.is_own else self.apgd(loss="cw")

    @cached_property
    def factors(self) -> tuple[float, ...]:
        """Times ε; the last one, at least that of the curve, reaches from one end of the box to the other."""
        region = self.threat.around(self.x)
        width = ((region.high - region.low) / region.radius.clamp_min(1e-30)).expand(self.x.shape)[0].double()
        width = torch.where((region.radius > 0).expand(self.x.shape)[0] & width.isfinite(), width, 2 * CURVE[-1])
        return (*CURVE, max(float(self.threat.norm.length(width.flatten())), CURVE[-1]))

    @cached_property
    def broken_at(self) -> Tensor:
        """Which inputs a quick APGD breaks within each of the ``factors`` times ε, (F, b) bool."""
        return torch.stack([self.apgd(factor, _CURVE_STEPS) for factor in self.factors])

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """Points of robust accuracy against ε: "factor", "eps" in units of the input, "robust" (a fraction), "n"."""
        if self.has_reject_class:
            return []
        eps = float(torch.as_tensor(self.threat.eps).max())
        robust = 1 - (self.broken_at.cumsum(0) > 0).float().mean(1)
        points = zip(self.factors, robust.tolist(), strict=True)
        return [{"factor": factor, "eps": eps * factor, "robust": rest, "n": len(self.x)} for factor, rest in points]


def zero_gradients(sample: Sample) -> list[Finding]:
    """For which fraction of the inputs the gradient of the margin is zero."""
    none = _zero(sample.margin_gradient[1])
    return [Finding(none, f"the gradient of the margin is zero for {none:.0%} of the inputs")]


def saturation(sample: Sample) -> list[Finding]:
    """For which fraction of the inputs the gradient of cross-entropy is zero."""
    if not sample.goal.of_classes:
        return []
    none = _zero(sample.queries.value_and_grad(sample.x, ATTACK_LOSSES["ce"], sample.y)[2])
    return [Finding(none, f"the gradient of cross-entropy is zero for {none:.0%} of the inputs")]


def _zero(slope: Tensor) -> float:
    return float((slope.flatten(1).abs().amax(1) == 0).float().mean())


def false_gradients(sample: Sample) -> list[Finding]:
    """How far small steps change the margin otherwise than its gradient foretells, behind layers that round on purpose."""
    x, queries, (value, slope) = sample.x, _in_float32(sample.queries), sample.margin_gradient
    if _zero(slope) > NO_GRADIENT or isinstance(sample.model, BPDA):  # the gradient of a stand-in is another one on purpose
        return []
    if queries is not sample.queries:
        _, value, slope = queries.value_and_grad(x, sample.goal, sample.y)
    region, rng = sample.threat.around(x), sample.rng()
    size = _SMALL_STEP * region.radius / x[0].numel() ** (1 / (sample.threat.norm.p or math.inf))
    missed, moved, still = (torch.zeros_like(value) for _ in range(3))
    with _unrounded(queries.model) as layers:
        for k in range(_DIRECTIONS):
            sign = torch.where(rng.uniform(x, k) < 0.5, -1.0, 1.0).to(x.dtype)
            point = torch.minimum(torch.maximum(x + size * sign, region.lower), region.upper)
            change = sample.goal(queries.logits(point), sample.y) - value
            foretold = (slope * (point - x)).flatten(1).sum(1)
            missed, moved = missed + (change - foretold).abs(), moved + change.abs()
            logits = queries.logits(x)
            still = still + (sample.goal(logits, sample.y) - value).abs()
    # What chance in the model and the rounding of inputs and logits do to these sums without any step.
    floor = still + _DIRECTIONS * torch.finfo(queries.precision or x.dtype).eps * (
        (slope * x).flatten(1).abs().sum(1) + logits.abs().reshape(len(x), -1).amax(1)
    )
    beyond = (missed - _CLEAR * floor).clamp_min(0)
    counted = (moved > 0) | (beyond > 0)
    typical = float((beyond / moved.clamp_min(1e-12))[counted].median()) if bool(counted.any()) else 0.0
    where = f"; behind {', '.join(layers)}, which rounds on purpose" if layers else ""
    measured = f"steps of ε/{1 / _SMALL_STEP:.0f} change the margin otherwise than the gradient foretells, by {typical:.0%}"
    return [Finding(typical, f"{measured} (median{where})")]


def _in_float32(queries: ModelQueries) -> ModelQueries:
    """Return the same function in float32, where the rounding of a lower precision would hide what small steps do."""
    if queries.precision is None:
        return queries
    try:
        return ModelQueries(deepcopy(queries.model).float(), queries.eot_iter)
    except Exception:  # somebody's model may not be copied: much is then left to the rounding
        return queries


@contextmanager
def _unrounded(model: nn.Module) -> Iterator[list[str]]:
    """Let layers that round on purpose (``rounds_on_purpose`` is True) pass everything as it is; yields their names."""
    layers = [module for module in model.modules() if getattr(module, "rounds_on_purpose", None) is True]
    try:
        for layer in layers:
            layer.rounds_on_purpose = False  # type: ignore[assignment]
        yield sorted({type(layer).__name__ for layer in layers})
    finally:
        for layer in layers:
            layer.rounds_on_purpose = True  # type: ignore[assignment]


def large_eps(sample: Sample) -> list[Finding]:
    """Which fraction of the inputs is robust within an ε as large as the box, where one is certainly misclassified."""
    if not sample.curve or sample.goal.criterion is not fooled or not _reaches_all(sample):
        return []
    if len(sample.y.unique()) < 2:  # what is there for certain is an input of another class that is right, too
        return []
    left = sample.curve[-1]["robust"]
    measured = f"with ε as large as the box, {left:.0%} of {len(sample.x)} inputs are robust to APGD-{_CURVE_STEPS}"
    return [Finding(left, measured)]


def _reaches_all(sample: Sample) -> bool:
    """Whether the largest ε of the curve reaches all of a finite box: not where features are frozen, one-way or unbounded."""
    region = sample.threat.scaled(sample.factors[-1]).around(sample.x)
    one_way = sample.threat.monotone is not None and bool((sample.threat.monotone != 0).any())
    return not one_way and bool(((region.upper - region.lower) >= 0.999 * (region.high - region.low)).all())


def larger_eps(sample: Sample) -> list[Finding]:
    """How often an input that was broken within one ε was robust within a larger one, of all inputs and ε."""
    if not sample.curve:
        return []
    broken = sample.broken_at
    jumps = int(((broken.cumsum(0) > 0)[:-1] & ~broken[1:]).sum())
    where = f"(APGD-{_CURVE_STEPS}, {len(sample.x)} inputs, {len(broken)} radii)"
    return [Finding(jumps / broken.numel(), f"{jumps} times an input broken at one ε was robust at a larger one {where}")]


def random_points(sample: Sample) -> list[Finding]:
    """How many inputs random points break that a quick APGD does not."""
    if not sample.curve:
        return []
    how: dict[str, Any] = {"loss": sample.loss(), "criterion": sample.goal.criterion, "seed": sample.rng()}
    found = random_search(sample.model, sample.x, sample.y, sample.threat, steps=_RANDOM_POINTS, **how).success
    missed = int((found & ~sample.broken_at[CURVE.index(1.0)]).sum())
    measured = f"{_RANDOM_POINTS} random points break {missed} of {len(sample.x)} inputs that APGD-{_CURVE_STEPS} does not"
    return [Finding(missed, measured)]


def black_box(sample: Sample) -> list[Finding]:
    """Which fraction of the inputs Square breaks, which asks for no gradient, and APGD on neither loss does."""
    if sample.has_reject_class or not Square().defined_in(sample.threat.norm):
        return []
    how: dict[str, Any] = {"loss": sample.loss(), "criterion": sample.goal.criterion, "seed": sample.rng()}
    found = square(sample.model, sample.x, sample.y, sample.threat, steps=_QUERIES, **how).success
    return [
        _besides(
            found & ~sample.broken & ~sample.broken_by_margin, f"Square with {_QUERIES} queries", f"APGD-{_STEPS} does not"
        )
    ]


def rounded_points(sample: Sample) -> list[Finding]:
    """Which fraction of images of whole grey values PGD breaks only with its last points rounded to such."""
    x, y = sample.x, sample.y
    if bool(((_GREY * x).round() - _GREY * x).abs().max() > _ALMOST_GREY):
        return []
    some = slice(None, -1) if sample.has_reject_class else slice(None)

    def margin(logits: Tensor, y: Tensor) -> Tensor:
        return cw_loss(logits[:, some], y)  # does not try to hide

    how: dict[str, Any] = {"steps": _CURVE_STEPS, "loss": sample.goal if sample.goal.is_own else margin}
    how |= {"return_last": True, "seed": sample.rng(), "criterion": sample.goal.criterion if sample.goal.is_own else None}
    last = pgd(sample.model, x, y, sample.threat, **how).x_adv
    rounded = x + (_GREY * (last - x)).trunc() / _GREY  # towards the image, which keeps to ball and box
    broken, then = (sample.goal.criterion(sample.queries.logits(point), y) for point in (last, rounded))
    return [_besides(then & ~broken, f"PGD-{_CURVE_STEPS} with its points rounded to 1/{_GREY}", "it does not as they are")]


def _besides(new: Tensor, what: str, than: str) -> Finding:
    count = int(new.sum())
    measured = f"{what} breaks {count} of {len(new)} inputs that {than}"
    return Finding(count / len(new) if count > _FEW else 0.0, measured)


def _broken_besides(sample: Sample, what: str, by: Callable[[Sample], Tensor]) -> list[Finding]:
    """Which fraction of the inputs another APGD breaks besides."""
    if sample.has_reject_class:
        return []
    return [_besides(by(sample) & ~sample.broken, what, f"APGD-{_STEPS} does not")]


more_steps = partial(_broken_besides, what=f"APGD-{2 * _STEPS}", by=lambda sample: sample.apgd(steps=2 * _STEPS))
another_start = partial(_broken_besides, what="another start", by=lambda sample: sample.apgd(stage=2))
another_loss = partial(_broken_besides, what="APGD on the margin", by=lambda sample: sample.broken_by_margin)
