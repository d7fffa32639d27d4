"""Which test examples networks have right, without and under attack, for every seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import apgd, pgd
from hauberk.attacks.base import GOAL
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.verdict import mean_and_error, number_or_none
from hauberk.objectives.functional import LossLike, loss_for

_BATCH = 250
ACCURACIES = ("clean, %", "PGD-20, %", "strong, %")  # the columns of :class:`RobustMasks`


@dataclass(frozen=True, eq=False)
class RobustMasks:
    """Which examples networks have right, each (S, N) bool, a row for each seed.

    Attributes:
        clean: without an attack.
        pgd: and under PGD-20 (steps of ε/4).
        strong: and under APGD on the two :func:`strong_losses`, the second towards the 3 most likely wrong classes: less than
            AutoAttack, of which the first is one attack and the second a third of another.
    """

    clean: Tensor
    pgd: Tensor
    strong: Tensor

    def row(self, **more: Any) -> dict[str, Any]:
        """Return a row of a table: what it is, and accuracies in percent with their standard errors."""
        return more | accuracies(dict(zip(ACCURACIES, (self.clean, self.pgd, self.strong), strict=True)))


def accuracies(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return cells of a table: for each mask (S, N) its share of True in percent, and the standard error of that."""
    cells: dict[str, Any] = {}
    for name, mask in masks.items():
        cells[name], cells[error_of(name)] = (number_or_none(100 * one) for one in mean_and_error(mask))
    return cells


def strong_losses(classes: int) -> tuple[LossLike, LossLike]:
    """Return the losses of the stronger attacks: cross-entropy, and targeted DLR, or what AutoAttack has for fewer classes."""
    return "ce", loss_for("dlr-targeted", GOAL, classes)[0]


def strong_words(classes: int) -> str:
    """Say what the stronger attacks of :func:`robust_masks` are."""
    margin = f"the logit margin to {'the other class' if classes == 2 else 'each other class'}"
    second = "targeted DLR towards 3 classes" if strong_losses(classes)[1] == "dlr-targeted" else margin
    return f"APGD on cross-entropy, then on {second}"


def robust_masks(context: StudyContext, model: nn.Module) -> RobustMasks:
    """Attack the test examples on a network; the masks have one row."""
    x, y = context.examples()
    parts = []
    for seed, (some_x, some_y) in enumerate(zip(x.split(_BATCH), y.split(_BATCH), strict=True), context.seed):
        with torch.no_grad():
            clean = model(some_x).argmax(1) == some_y
        left = clean & ~pgd(model, some_x, some_y, context.threat, steps=20, step_size="eps/4", seed=seed).success
        strong = left.clone()
        for loss in strong_losses(context.classes):
            places = strong.nonzero().squeeze(1)
            if len(places):
                found = apgd(model, some_x[places], some_y[places], context.threat, loss=loss, targets=3, seed=seed)
                strong[places] = ~found.success
        parts.append((clean, left, strong))
    return RobustMasks(*(torch.cat(masks)[None] for masks in zip(*parts, strict=True)))


def trained_masks(context: StudyContext, variants: Mapping[str, Variant]) -> dict[str, RobustMasks]:
    """Train each network with each seed, and attack the test examples."""
    found: dict[str, list[RobustMasks]] = {name: [] for name in variants}
    for name, one, model in context.networks(variants):
        found[name].append(robust_masks(one, model))
    return {name: join_seeds(masks) for name, masks in found.items()}


def join_seeds(masks: Sequence[RobustMasks]) -> RobustMasks:
    """Put the masks of several seeds together."""
    return RobustMasks(*(torch.cat([getattr(one, kind) for one in masks]) for kind in ("clean", "pgd", "strong")))


def error_of(column: str) -> str:
    """Return the name of the column with the standard errors of a column that :func:`accuracies` makes."""
    return f"{column.removesuffix(', %')} ±"
