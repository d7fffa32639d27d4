"""Inner maximisation against a teacher: away from its prediction at x (RSLAD), at each point (AdaAD), or its tangent (SAAD)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.attacks import PGD, Attack, AttackResult
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, run_in_step
from hauberk.objectives.functional import AttackLoss, at_least_float32, fooled, kl_divergence


class FromTeacher(BatchAttack):
    """RSLAD's attack: ``max KL(p_T(x)‖p(x'))``, away from the teacher's prediction of the clean input.

    Args:
        attack: PGD, whose loss is "kl".
        evaluate_last: as of :class:`BatchAttack`.
    """

    needs_teacher = True

    def __init__(self, attack: Attack[Any], evaluate_last: bool = False):
        super().__init__(attack, evaluate_last=evaluate_last)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        soft = context.ask("teacher", "clean").to(torch.promote_types(context.x.dtype, torch.float32))
        return run_in_step(self.attack, context, context.threat, reference=soft)


class FromTeacherAtPoint(FromTeacher):
    """AdaAD's attack: ``max KL(p_T(x')‖p(x'))``; the gradient goes through both networks.

    Each pass and each gradient of the teacher is counted as one of the network. Arguments as of :class:`FromTeacher`.
    """

    def __init__(self, attack: PGD, evaluate_last: bool = False):
        if attack.loss != "kl":
            raise UserError(f"this attack maximises the divergence from the teacher, 'kl', not {attack.loss!r}")
        super().__init__(replace(attack, loss=_FROM_SECOND_HALF), evaluate_last)

    def references(self, context: StepContext) -> tuple[Callable[[Tensor], Tensor], int]:
        """Return what the network is to differ from at points (b, ...), logits (b, C), and its passes at each."""
        assert context.teacher is not None  # needed
        return context.teacher, 1

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        reference, passes = self.references(context)
        found = run_in_step(self.attack, context, context.threat, around=lambda model: _Pair(model, reference))
        return _of_first_half(found, 1 + passes)


class FromTangentOfTeacher(FromTeacherAtPoint):
    """SAAD's attack: as AdaAD's, with the teacher's logit of the label linear in x' and its others those at x.

    ``T_y(x') ≈ T_y(x) + λ·∇_x T_y(x)·(x' - x)``: one pass and one gradient of the teacher for all steps.

    Args:
        attack: as of :class:`FromTeacher`.
        lambda_inner: λ; the public code has 1.
        evaluate_last: as of :class:`BatchAttack`.
    """

    def __init__(self, attack: PGD, lambda_inner: float = 1.0, evaluate_last: bool = False):
        super().__init__(attack, evaluate_last)
        self.lambda_inner = lambda_inner
        if attack.tau is not None:
            raise UserError("SAAD's attack takes all examples along to its end, so it has no tau")

    def references(self, context: StepContext) -> tuple[Callable[[Tensor], Tensor], int]:
        """Return the tangent of the teacher at x."""
        assert context.teacher is not None  # needed
        x, y = context.x.detach(), context.y
        with torch.inference_mode(False), torch.enable_grad(), context.autocast():
            point = x.clone().requires_grad_()
            logits = at_least_float32(context.teacher(point))
            (slope,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), point)
        at_x = logits.detach()
        context.answers["teacher", "clean"] = at_x
        context.more_forwards += 1

        def tangent(point: Tensor) -> Tensor:
            change = (slope * (point.to(slope.dtype) - x)).flatten(1).sum(1)
            return at_x.scatter_add(1, y[:, None], (self.lambda_inner * change).to(at_x.dtype)[:, None])

        return tangent, 0


class _Pair(nn.Module):
    """A network whose logits are followed by those of something else at the same points: (b, 2C)."""

    def __init__(self, model: nn.Module, other: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self.others = [other]  # no submodule: an attack may not change its mode

    def forward(self, x: Tensor) -> Tensor:
        """Return both."""
        logits, other = at_least_float32(self.model(x)), at_least_float32(self.others[0](x))
        if logits.shape != other.shape:
            raise UserError(f"the teacher has {other.shape[1]} outputs, the network {logits.shape[1]}")
        return torch.cat([logits, other.to(logits.dtype)], 1)


def _of_first_half(found: AttackResult, times: int) -> AttackResult:
    """Return what an attack on a pair says of the network in it, with so many passes for each; counted when it is asked for."""

    def count() -> dict[str, Any]:
        names = ("success", "kappa", "first_success", "steps_taken")
        return {name: getattr(found, name) for name in names} | {"logits_lps": found.logits_lps.chunk(2, 1)[0]}

    clean, last = (None if z is None else z.chunk(2, 1)[0] for z in (found.clean_logits, found.logits))
    passes = {"forwards": times * found.forwards, "backwards": times * found.backwards, "steps": found.steps}
    return AttackResult.counted_later(count, x_adv=found.x_adv, logits=last, clean_logits=clean, **passes)


def _kl_from_second_half(both: Tensor, y: Tensor) -> Tensor:
    logits, reference = both.chunk(2, 1)
    return kl_divergence(reference, logits)


def _first_half_fooled(both: Tensor, y: Tensor) -> Tensor:
    return fooled(both.chunk(2, 1)[0], y)


_FROM_SECOND_HALF = AttackLoss(_kl_from_second_half, criterion=_first_half_fooled)
