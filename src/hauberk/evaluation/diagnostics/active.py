"""The active test: adversarial examples that exist by construction, which the attacks of an evaluation have to find.

After Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations", whose binary classifier behind the
features of a network is trained for each example. Here it is behind the outputs, and found in closed form, so that any model
will do.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hauberk.attacks import AttackLoss, ModelQueries, run_attack
from hauberk.attacks.base import MaximizingAttack
from hauberk.evaluation.diagnostics.gradients import Sample
from hauberk.evaluation.finding import Finding
from hauberk.objectives.functional import ATTACK_LOSSES, find_attack_loss, logit_margin
from hauberk.threat import FeasibleSet

EXAMPLES = 16
_POINTS = 128  # random ones around each example
_WIDEST = 64  # outputs; more are projected to so many
_RIDGE = 1e-2  # of the mean variance of the outputs
_LEAST_GAP = 0.05  # of the planted point's value, to the next
_THRESHOLD = 0.75  # of the way from the next point to the planted one
_FEWEST = 4  # planted examples that say anything
_TAG = 7_000


@dataclass(frozen=True)
class Heads:
    """A linear binary classifier of the outputs (C numbers) around each of b examples.

    ``d(z) = s ((z P - μ)·w - t)`` is negative at the clean input and at all random points but one, the planted example.

    Attributes:
        projection: P, (C, c).
        centre: μ, (b, c).
        weight: s w, (b, c).
        threshold: s t, (b,).
    """

    projection: Tensor
    centre: Tensor
    weight: Tensor
    threshold: Tensor

    def __call__(self, outputs: Tensor, example: Tensor) -> Tensor:
        """Logits of the two classes, (B, 2), of outputs (B, ...) around the examples (B,)."""
        z = outputs.reshape(len(outputs), -1) @ self.projection.to(outputs) - self.centre.to(outputs)[example]
        d = (z * self.weight.to(outputs)[example]).sum(1) - self.threshold.to(outputs)[example]
        return torch.stack([-d / 2, d / 2], 1)

    def found(self, outputs: Tensor, example: Tensor) -> Tensor:
        """Whether outputs (B, ...) are of the class of the planted example, (B,) bool."""
        logits = self(outputs, example)
        return logits[:, 1] > logits[:, 0]


def planted_examples(sample: Sample) -> list[Finding]:
    """Which fraction of the planted examples none of the evaluation's attacks with gradients finds.

    Of these, the ones of several steps on losses by name, PGD and APGD; where all are of one step, those. What one finds is not
    shown to the next. What was found is looked at again without a gradient.
    """
    attacks = _attacks(sample)
    if not attacks or sample.draws > 1:
        return []
    x, queries = sample.x[:EXAMPLES], ModelQueries(sample.model)
    region = sample.threat.around(x)
    points = _random_points(region, sample)
    heads, which, planted = plant(
        torch.stack([_flat(queries.logits(point)) for point in points], 1), _flat(queries.logits(x)), _margin(sample, queries)
    )
    example = torch.arange(len(x), device=x.device)
    point = torch.stack(points, 1)[example, which]
    left = planted & heads.found(queries.logits(point), example)
    count = int(left.sum())
    if count < _FEWEST:
        return []
    rng = sample.rng(stage=4).index_select(example)
    for attack in attacks:
        rows = left.nonzero().squeeze(1)
        if not len(rows):
            break
        aimed = replace(attack, loss=_behind(heads, attack))  # type: ignore[type-var]
        how: dict[str, Any] = {"seed": rng.index_select(rows), "criterion": heads.found}
        found = run_attack(aimed, sample.model, x[rows], example[rows], sample.threat, **how).x_adv
        left[rows] = ~heads.found(queries.logits(found), rows)
    missed = int(left.sum())
    names = ", ".join(str(attack) for attack in attacks)
    return [Finding(missed / count, f"{names} miss {missed} of {count} adversarial examples that were planted")]


def _attacks(sample: Sample) -> list[MaximizingAttack[Any]]:
    some = [a for a in sample.attacks if isinstance(a, MaximizingAttack) and isinstance(a.loss, str)]
    several = [attack for attack in some if attack.steps > 1]
    forms = {str(attack): attack.for_threat(sample.threat) for attack in several or some}
    return sorted((a for a in forms.values() if isinstance(a, MaximizingAttack)), key=lambda attack: attack.cost(2))


def _margin(sample: Sample, queries: ModelQueries) -> Tensor:
    """How sure the model is of the examples, (b,): so is the planted classifier, which then saturates where the model does."""
    logits, y = queries.logits(sample.x[:EXAMPLES]), sample.y[:EXAMPLES]
    return logit_margin(logits, y) if sample.goal.of_classes else torch.ones(len(logits), device=logits.device)


def _flat(outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs), -1).double()


def _random_points(region: FeasibleSet, sample: Sample) -> list[Tensor]:
    """Points (b, ...) by turns uniform in the ball and as far out as it goes: in L∞ at a corner."""
    rng, points = sample.rng(stage=3).index_select(torch.arange(len(region.x), device=region.x.device)), []
    for k in range(_POINTS):
        if k % 2 == 0:
            points.append(region.random(rng, _TAG + 4 * k))
        elif region.norm.is_box:
            points.append(region.random_corner(rng, _TAG + 4 * k))
        else:
            points.append(region.random_far(rng, _TAG + 4 * k))
    return points


def plant(outputs: Tensor, clean: Tensor, margin: Tensor) -> tuple[Heads, Tensor, Tensor]:
    """Find classifiers that tell one of the points around each example from all others, and from the clean input.

    The weights are those of Fisher's discriminant, ``w = (Σ + λI)⁻¹ (z - μ)`` with μ and Σ of the points, for the point z
    that it tells best; the scale s gives the clean input the margin.

    Args:
        outputs: at M points around each example, (b, M, C).
        clean: at the examples, (b, C).
        margin: of the model at the examples, (b,).

    Returns:
        The classifiers; which of the points was planted, (b,) int64; and whether one could be told from the others, (b,) bool.
    """
    width = outputs.shape[2]
    projection = torch.eye(width, dtype=outputs.dtype, device=outputs.device)
    if width > _WIDEST:
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(width, _WIDEST, generator=generator, dtype=outputs.dtype).to(outputs.device) / width**0.5
    outputs, clean = outputs @ projection, clean @ projection
    centre = outputs.mean(1)
    offsets, own = outputs - centre[:, None], clean - centre
    spread = offsets.mT @ offsets / outputs.shape[1]
    variance = spread.diagonal(dim1=1, dim2=2).mean(1)
    noise = torch.finfo(torch.float32).eps * clean.abs().amax(1)  # of outputs in float32, which is no difference
    ridge = _RIDGE * variance + noise**2 + torch.finfo(outputs.dtype).tiny
    weights = torch.linalg.solve(spread + torch.diag_embed(ridge[:, None].expand_as(centre)), offsets.mT)  # one for each point
    values = offsets @ weights  # (b, M, M): of the point of the row to the classifier of the column
    highest = values.diagonal(dim1=1, dim2=2)
    others = values - torch.diag_embed(torch.full_like(highest, torch.inf))
    following = torch.maximum(others.amax(1), (own[:, None] @ weights).squeeze(1))
    gap = (highest - following) / highest.clamp_min(torch.finfo(outputs.dtype).tiny)
    best, which = gap.max(1)
    column = which[:, None]
    weight = weights.gather(2, which[:, None, None].expand(-1, weights.shape[1], 1)).squeeze(2)
    top, after = highest.gather(1, column).squeeze(1), following.gather(1, column).squeeze(1)
    threshold = after + _THRESHOLD * (top - after)
    scale = margin.double().abs().clamp_min(1e-6) / (threshold - (own * weight).sum(1)).clamp_min(1e-12)
    moved = variance.sqrt() > 10 * noise
    heads = Heads(projection, centre, scale[:, None] * weight, scale * threshold)
    return heads, which, (best > _LEAST_GAP) & moved


def _behind(heads: Heads, attack: MaximizingAttack[Any]) -> AttackLoss:
    """The loss of an attack, of the two classes behind the outputs; where it needs more of them the margin is its stand-in."""
    known = find_attack_loss(attack.loss, attack.confidence)
    if known.reference == "clean" or known.extra_outputs:
        known = ATTACK_LOSSES["ce" if known.reference == "clean" else "cw"]
    if known.min_classes > 2:
        known = ATTACK_LOSSES["cw-targeted" if known.reference == "target" else "cw"]
    function: Callable[..., Tensor] = known.function

    def loss(outputs: Tensor, example: Tensor) -> Tensor:
        logits, clean = heads(outputs, example), torch.zeros_like(example)
        return function(logits, clean, clean + 1) if known.reference == "target" else function(logits, clean)

    return AttackLoss(loss, criterion=heads.found, of_classes=False)
