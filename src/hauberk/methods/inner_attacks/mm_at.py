"""MM-AT: PGD towards each of the most likely wrong classes, of which the least margin is trained on (Gao et al. 2022)."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from hauberk.attacks import PGD, AttackResult, frozen_model
from hauberk.attacks.state import where_rows
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, run_in_step
from hauberk.objectives.functional import gather_class, mask_class


class TargetsInTurn(BatchAttack):
    """PGD to each of the most likely wrong classes of the clean inputs; of the points it ends at, that of the least margin.

    ``x' = argmax_t z_t(x'_t) - z_y(x'_t)`` over the targets t, by the logits z at the last point x'_t of each; all begin at the
    same start. One forward looks at the clean inputs, one more at each last point.

    Args:
        attack: PGD with a loss that has a target, such as "cw-targeted".
        n_targets: how many.
    """

    def __init__(self, attack: PGD, n_targets: int = 3):
        super().__init__(replace(attack, targets=n_targets), evaluate_last=True)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        attack, y = self.attack, context.y
        assert isinstance(attack, PGD)
        with context.attack_model(attack.mode) as model, frozen_model(model, attack.mode) as view, torch.no_grad():
            clean = view(context.x)
        others = clean.shape[1] - attack.attack_loss.extra_outputs
        likely = mask_class(clean[:, :others], y).topk(min(attack.targets, others - 1), dim=1).indices
        results, margins = [], []
        for target in likely.unbind(1):
            found = run_in_step(attack, context, context.threat, target=target, return_clean_logits=False)
            assert found.logits is not None  # it looks at its last point
            results.append(found)
            margins.append(gather_class(found.logits, target) - gather_class(found.logits, y))
        best = best_of(results, margins)
        return replace(best, clean_logits=clean, forwards=best.forwards + 1)


def best_of(results: list[AttackResult], values: list[Tensor]) -> AttackResult:
    """Return of each example what the attack found whose value, (B,), is the largest; the first among equals.

    Passes are those of all; what one has not counted, the result counts not.
    """
    best = values[0].new_full(values[0].shape, -torch.inf)
    chosen: dict[str, Any] = {f.name: getattr(results[0], f.name) for f in fields(AttackResult)}
    for found, value in zip(results, values, strict=True):
        better = value > best
        best = torch.where(better, value, best)
        for name, old in chosen.items():
            new = getattr(found, name)
            if isinstance(old, Tensor) and isinstance(new, Tensor):
                chosen[name] = where_rows(better, new, old)
    passes = {name: sum(getattr(found, name) for found in results) for name in ("forwards", "backwards")}
    return AttackResult(**(chosen | passes))
