"""Probes on a few examples: are gradients there, do they tell the truth, and does a large enough ε break everything?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import ModelQueries, apgd, random_search
from hauberk.core.random import ExampleRng
from hauberk.evaluation.diagnostics import Diagnostic, check
from hauberk.objectives.functional import ATTACK_LOSSES, AttackLoss
from hauberk.threat import ThreatModel

SAMPLE = 48  # examples
CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # times ε
STEPS = 20
RANDOM_POINTS = 50

_ZERO_SHARE = 0.1
_SMALL_STEP = 1 / 20  # of ε, of the finite differences
_DIRECTIONS = 4
_DISAGREEMENT = 0.5
_LIE = 0.9  # honest networks stay below 0.25, gradients of another function reach 1
_CLEAR = 2  # times what would be seen without a step
_LEFT = 0.1  # share that may stand an ε as large as the box, before it is a sign
_MISSED = 3  # of the sample


def probe_gradients(
    passes: ModelQueries, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, evading: bool
) -> list[Diagnostic]:
    """Look at gradients of cross-entropy and margin at clean inputs (b, ...) that are classified right.

    Args:
        passes: the model in full precision.
        x: clean inputs.
        y: labels.
        threat: whose ε sets the scale.
        rng: keyed by example.
        evading: whether the last output is a class of adversarial inputs.
    """
    margin = ATTACK_LOSSES["evade" if evading else "cw"]
    _, _, slope_ce = passes.value_and_grad(x, ATTACK_LOSSES["ce"], y)
    _, value, slope = passes.value_and_grad(x, margin, y)
    none, none_ce = (float((g.flatten(1).abs().amax(1) == 0).float().mean()) for g in (slope, slope_ce))
    found = [
        check(
            "gradients",
            f"the gradient is zero for {none:.0%} of the inputs on the margin, for {none_ce:.0%} on cross-entropy",
            "invalid" if none > _ZERO_SHARE else "warning" if none_ce > _ZERO_SHARE else "ok",
            "gradients do not reach the input (rounding, detach, saturation): attacks with gradients prove nothing here; "
            "attack a differentiable stand-in (BPDA), or without gradients",
        )
    ]
    if none <= _ZERO_SHARE:
        found.append(_agreement(passes, x, threat, rng, margin, y, value, slope))
    return found


def _agreement(
    passes: ModelQueries,
    x: Tensor,
    threat: ThreatModel,
    rng: ExampleRng,
    margin: AttackLoss,
    y: Tensor,
    value: Tensor,
    slope: Tensor,
) -> Diagnostic:
    """Compare gradients with what small steps do to the margin, behind layers that round on purpose."""
    region = threat.around(x)
    size = _SMALL_STEP * region.radius / x[0].numel() ** (1 / threat.norm.p)
    missed, moved, still = (torch.zeros_like(value) for _ in range(3))
    with _unrounded(passes.model) as layers:
        for k in range(_DIRECTIONS):
            sign = torch.where(rng.uniform(x, k) < 0.5, -1.0, 1.0).to(x.dtype)
            point = torch.minimum(torch.maximum(x + size * sign, region.lower), region.upper)
            change = margin.function(passes.logits(point), y, None) - value
            foretold = (slope * (point - x)).flatten(1).sum(1)
            missed, moved = missed + (change - foretold).abs(), moved + change.abs()
            logits = passes.logits(x)
            still = still + (margin.function(logits, y, None) - value).abs()
    # What chance in the model and the rounding of inputs and logits do to these sums without any step.
    precision = torch.finfo(passes.precision or x.dtype).eps
    floor = still + _DIRECTIONS * precision * ((slope * x).flatten(1).abs().sum(1) + logits.abs().amax(1))
    counted = (moved > 0) | (missed > _CLEAR * floor)
    share = (missed / moved.clamp_min(1e-12))[counted]
    typical = float(share.median()) if bool(counted.any()) else 0.0
    clear = bool(counted.any()) and float((missed > _CLEAR * floor)[counted].float().mean()) > 0.5
    where = f"; behind {', '.join(layers)}, which rounds on purpose" if layers else ""
    return check(
        "gradients-tell-the-truth",
        f"steps of ε/{1 / _SMALL_STEP:.0f} change the margin otherwise than the gradient foretells, by {typical:.0%} "
        f"(median{where})",
        "invalid" if typical >= _LIE and clear else "warning" if typical > _DISAGREEMENT else "ok",
        "the loss is rough or its gradient is not its own (discontinuous activations, shattered gradients): PGD is misled; "
        "smooth it, or attack without gradients",
    )


@contextmanager
def _unrounded(model: nn.Module) -> Iterator[list[str]]:
    """Let layers that round on purpose (``rounds_on_purpose`` is True) pass everything as it is; yields their names."""
    layers = [module for module in model.modules() if getattr(module, "rounds_on_purpose", None) is True]
    for layer in layers:
        layer.rounds_on_purpose = False  # type: ignore[assignment]
    try:
        yield sorted({type(layer).__name__ for layer in layers})
    finally:
        for layer in layers:
            layer.rounds_on_purpose = True  # type: ignore[assignment]


def eps_curve(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, draws: int
) -> tuple[list[dict[str, Any]], list[Diagnostic]]:
    """Measure the share of clean-right inputs (b, ...) that stand ever larger ε, up to the whole box, by APGD-20.

    Returns:
        Points of the curve: "eps" in units of the input, "factor" times the threat model's ε, "standing" (of those that are
        right without an attack), "n". And what it says about the attack.
    """
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    curve, jumps, at_eps = [], 0, broken
    for factor in (*CURVE, _to_the_box(threat, x)):
        result = apgd(model, x, y, threat.scaled(factor), steps=STEPS, seed=rng, eot_iter=draws)
        jumps += int((broken & ~result.success).sum())
        broken = broken | result.success
        at_eps = result.success if factor == 1.0 else at_eps
        curve.append(
            {"factor": factor, "eps": _size(threat) * factor, "standing": float((~broken).float().mean()), "n": len(x)}
        )
    alone = random_search(model, x, y, threat, steps=RANDOM_POINTS, seed=rng)
    missed = int((alone.success & ~at_eps).sum())
    left = curve[-1]["standing"]
    return curve, [
        check(
            "large-eps-breaks-everything",
            f"with ε as large as the box, {left:.0%} of {len(x)} inputs stand APGD-{STEPS}",
            "warning" if left > _LEFT else "ok",
            "with that ε an adversarial example exists for certain: the attack cannot find it, so gradients are masked",
        ),
        check(
            "larger-eps-breaks-more",
            f"{jumps} times an input broken at one ε stood a larger one (APGD-{STEPS}, {len(x)} inputs, {len(curve)} radii)",
            "warning" if jumps > 0.1 * len(x) * len(curve) else "ok",
            "the attack gets worse with more room: its gradients mislead it",
        ),
        check(
            "gradients-beat-chance",
            f"{RANDOM_POINTS} random points break {missed} of {len(x)} inputs that APGD-{STEPS} does not",
            "warning" if missed >= _MISSED else "ok",
            "random points find more than gradients do: gradients are masked",
        ),
    ]


def _size(threat: ThreatModel) -> float:
    return float(threat.eps.max()) if isinstance(threat.eps, Tensor) else threat.eps


def _to_the_box(threat: ThreatModel, x: Tensor) -> float:
    """How many times ε reaches from one end of the box to the other, at least the last factor of the curve."""
    region = threat.around(x)
    width = ((region.high - region.low) / region.radius.clamp_min(1e-30)).expand(x.shape)[0].double()
    width = torch.where((region.radius > 0).expand(x.shape)[0] & width.isfinite(), width, 2 * CURVE[-1])
    return max(float(threat.norm.length(width.flatten())), CURVE[-1])
