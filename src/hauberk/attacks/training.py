"""Attacks made for training, or for the questions of the training papers; on the same engine as PGD."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.frozen_model import frozen_model
from hauberk.attacks.result import AttackResult
from hauberk.attacks.steps import Ascent, Start, StepSize
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import LossName, fooled
from hauberk.threat import ThreatModel

LINE_SEARCH = (0.25, 0.5, 1.0, 2.0, 4.0)
NESTEROV = 0.75


def friendly_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: StepSize = "eps/4",
    tau: int = 0,
    start: Start = "uniform",
    loss: LossName = "ce",
    jitter: float = 0.0,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Early-stopped PGD of friendly adversarial training (Zhang et al. 2020, PGD-K-τ).

    Before each step, an example that is misclassified and has been so τ times before stops where it is, which can be its
    start; the others step on, at most K times. The last point is not looked at. Examples keep their places in the batch, and
    those that have stopped take no part in later passes.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: ball and box.
        steps: K.
        step_size: α, as in :func:`hauberk.attacks.pgd`.
        tau: τ ≥ 0.
        start: as in :func:`hauberk.attacks.pgd`.
        loss: "ce" for FAT and FAT-MART, "kl" for FAT-TRADES.
        jitter: ω, standard deviation of the noise that FAT's public code adds to each step (0.001).
        seed: of the random start; an integer, or noise keyed by example.

    Returns:
        AttackResult; ``steps_taken`` says how far each example went, and ``logits`` is None.

    Raises:
        UserError: if the settings make no sense or do not fit the inputs.
    """
    settings = Ascent(steps, step_size, start, loss, tau=tau, jitter=jitter)
    return ascend(model, x, y, threat, settings, keep="last-unseen", seed=seed)


def lm_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 50,
    step_size: StepSize = "eps/4",
    line_search: tuple[float, ...] = LINE_SEARCH,
    nesterov: float = NESTEROV,
    start: Start = "uniform",
    return_last: bool = False,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """LM-PGD: PGD with a line search and Nesterov's momentum. The construction is ours.

    The MAIL paper uses an attack of this name, defined in an appendix that is not public and not in its code. Here

    ``z = Π(x^t + μ (x^t - x^{t-1}))``, ``x^{t+1} = argmax_{c} CE(f(Π(z + c·α·steepest ∇CE(z))), y)`` over the factors c,

    at one forward, one backward and one more forward for each factor a step. Counts of steps refer to the look-ahead points z.

    Args:
        model: as in :func:`hauberk.attacks.pgd`, like x, y, threat, steps, step_size, start, return_last and seed.
        x: clean inputs, (B, ...).
        y: labels, (B,) int64.
        threat: ball and box.
        steps: K.
        step_size: α that the factors multiply.
        line_search: the factors c.
        nesterov: μ.
        start: where to begin.
        return_last: return the last iterate instead of the best point visited.
        seed: of the random start.

    Raises:
        UserError: if the settings make no sense or do not fit the inputs.
    """
    settings = Ascent(steps, step_size, start, nesterov=nesterov, line_search=line_search)
    return ascend(model, x, y, threat, settings, keep="last" if return_last else "best", seed=seed)


def margin_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    share: Tensor,
    steps: int = 10,
    bisections: int = 10,
    seed: int | ExampleRng = 0,
    trusted: bool = False,
) -> tuple[AttackResult, Tensor]:
    """MMA's search for the nearest adversarial example (Ding et al. 2020, AN-PGD), within the threat model.

    PGD on the soft logit margin with each example's own radius finds a direction; bisection along it, up to the threat
    model's ε (the paper's d_max), finds where the prediction flips. The public code searches to 1.05·d_max and then leaves out
    what lies beyond d_max; ours never leaves the threat model.

    Args:
        model: as in :func:`hauberk.attacks.pgd`, like x, y and threat.
        x: clean inputs, (B, ...).
        y: labels, (B,) int64.
        threat: with ε = d_max.
        share: (B,) in (0, 1], each example's radius of the first search as a part of ε.
        steps: K, of 2.5·ε/K.
        bisections: halvings of the bracket, one forward each.
        seed: of the random start.
        trusted: as in :func:`hauberk.attacks.ascend`.

    Returns:
        The result, with ``x_adv`` just beyond the boundary and ``success`` whether one was found; and (B,) the distance to
        it as a part of ε, 1 where there is none.
    """
    settings = Ascent(steps, f"2.5*eps/{steps}", "uniform", "slm")
    found = ascend(model, x, y, threat, settings, keep="last-unseen", seed=seed, share=share, trusted=trusted)
    region = threat.around(x)
    shape = (-1, *[1] * (x.ndim - 1))
    change = (found.x_adv - x) / share.to(x.dtype).view(shape)  # scaled so that length 1 is about ε

    def at(length: Tensor) -> Tensor:
        return region.project(x + change * length.to(x.dtype).view(shape))

    low, high = torch.zeros_like(share), torch.ones_like(share)
    with frozen_model(model) as view, torch.no_grad():
        logits = view(at(high))
        success = fooled(logits, y)
        probe = share.clone()
        for _ in range(bisections):
            wrong = fooled(view(at(probe)), y)
            low, high = torch.where(wrong, low, probe), torch.where(wrong, probe, high)
            probe = (low + high) / 2
    high = torch.where(success, high, torch.ones_like(high))
    x_adv = torch.where(success.view(shape), at(high), x)
    passes = found.forwards + 1 + bisections
    return replace(found, x_adv=x_adv.detach(), success=success, logits=None, forwards=passes), high
