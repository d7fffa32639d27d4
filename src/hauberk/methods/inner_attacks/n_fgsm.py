"""N-FGSM: a single step from noise that is wider than the ball, without a projection onto it (de Jorge et al. 2022)."""

from dataclasses import replace

import torch
from torch import Tensor

from hauberk.attacks import PGD, AttackResult
from hauberk.attacks.step_size import RelativeStep, parse_step_size
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import BatchAttack, run_in_step
from hauberk.threat import ThreatModel


class NFGSM(BatchAttack):
    """``x' = clip(x + η + α·sign ∇ℓ(f(x + η), y))`` with η uniform in k times the ball, clipped to the box and not to the ball.

    Points lie up to k·ε + α from x: :meth:`reach` says in which ball that is. In other norms than L∞ the noise is uniform in
    k times that norm's ball, and the step its steepest ascent, which is our extension of the paper.

    Args:
        attack: PGD whose steps and step size are taken; one step of ε in the paper.
        noise_magnitude: k, size of the noise in ε.
        evaluate_last: as of :class:`BatchAttack`.

    Raises:
        UserError: if k is negative.
    """

    def __init__(self, attack: PGD, noise_magnitude: float = 2.0, evaluate_last: bool = False):
        super().__init__(attack, evaluate_last=evaluate_last)
        if noise_magnitude < 0:
            raise UserError(f"noise_magnitude must not be negative, got {noise_magnitude}")
        self.pgd, self.noise_magnitude = attack, noise_magnitude

    def reach(self, threat: ThreatModel) -> ThreatModel:
        """Return the threat model with the ball that the points are in: k + α/ε for each step, times as wide."""
        size, eps = parse_step_size(self.pgd.step_size), threat.eps
        if isinstance(size, RelativeStep):
            relative = size.times / size.over
        elif isinstance(eps, Tensor) or isinstance(size, Tensor):
            ratio = torch.as_tensor(size / eps)  # of features that cannot move none counts
            relative = float(ratio[ratio.isfinite()].max()) if bool(ratio.isfinite().any()) else 0.0
        else:
            relative = size / eps if eps else 0.0
        return threat.scaled(self.noise_magnitude + self.pgd.steps * relative)

    def __call__(self, context: StepContext) -> AttackResult:
        """Attack the batch."""
        start = context.threat.scaled(self.noise_magnitude).around(context.x).random(context.rng)
        wide, size = self.reach(context.threat), parse_step_size(self.pgd.step_size)
        if isinstance(size, RelativeStep):  # to ε, and not to the radius of the wide ball
            size = RelativeStep(size.times, size.over * (self.noise_magnitude + self.pgd.steps * size.times / size.over))
        return run_in_step(replace(self.attack, start=start, step_size=size), context, wide)  # type: ignore[type-var]
