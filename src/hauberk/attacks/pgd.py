"""Projected gradient attacks under the names the literature uses; all stand on the engine in ``ascent.py``."""

from torch import Tensor, nn

from hauberk.attacks.ascent import ascend
from hauberk.attacks.frozen_model import Mode
from hauberk.attacks.result import AttackResult
from hauberk.attacks.steps import Ascent, Start, StepSize
from hauberk.core.random import ExampleRng
from hauberk.objectives.functional import LossName
from hauberk.threat import ThreatModel


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: StepSize = "eps/4",
    start: Start = "uniform",
    loss: LossName = "ce",
    confidence: float = 0.0,
    restarts: int = 1,
    momentum: float = 0.0,
    mode: Mode = "eval",
    return_last: bool = False,
    target: Tensor | None = None,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Projected gradient descent (Madry et al. 2018).

    ``x^{t+1} = Π_{S(x)}( x^t + α · sign ∇_x ℓ(f(x^t), y) )`` in L∞; in L2 and L1 the steepest step of that norm.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: ball and box, e.g. ``hb.Linf("8/255")``.
        steps: K.
        step_size: α in input units: a number, "2/255", "eps/4", or one value per feature.
        start: "uniform", "normal" (x + 0.001·N(0, 1)), "clean", or a tensor used as given.
        loss: "ce", "kl", "cw" or "dlr".
        confidence: κ of "cw".
        restarts: independent starts; the best point of all is returned.
        momentum: μ of Dong et al. 2018; 0 for none.
        mode: "eval", "train-frozen" or "train"; see ``frozen_model``.
        return_last: return the last iterate instead of the best point visited.
        target: (B,) int64, classes to aim at: ℓ is then ``-CE(f(x), t)``. With loss "ce" only: margins and DLR ask for no
            more than that the label be lost. ``success`` still says whether it is; ``logits`` say whether t was reached.
        seed: of the random start; an integer, or noise keyed by example.

    Returns:
        AttackResult with ``x_adv`` (B, ...) inside the threat model, after K + 1 forwards and K backwards a start.

    Raises:
        UserError: if the settings make no sense or do not fit the inputs.
    """
    if target is not None and loss == "ce":
        loss = "ce-targeted"
    settings = Ascent(steps, step_size, start, loss, confidence, restarts, momentum, mode)
    return ascend(model, x, y, threat, settings, keep="last" if return_last else "best", seed=seed, target=target)


def fgsm(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, start: Start = "clean", seed: int | ExampleRng = 0
) -> AttackResult:
    """Fast gradient sign method (Goodfellow et al. 2015): ``Π_{S(x)}( x + ε · sign ∇_x CE(f(x), y) )``.

    One step of length ε, from x itself unless another start is asked for, and the point it reaches. Arguments and result as
    in :func:`pgd`.
    """
    return pgd(model, x, y, threat, steps=1, step_size="eps", start=start, return_last=True, seed=seed)


def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 30,
    step_size: StepSize = "eps/4",
    confidence: float = 50.0,
    start: Start = "uniform",
    restarts: int = 1,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """What adversarial-training papers call CW: PGD on the margin loss of Carlini and Wagner (2017).

    ``ℓ = -max(z_y - max_{k≠y} z_k, -κ)``, maximised inside the threat model. Not the minimum-norm optimiser of the original
    paper. The defaults are FAT's (30 steps of ε/4, κ = 50). Arguments and result as in :func:`pgd`.
    """
    return pgd(
        model,
        x,
        y,
        threat,
        steps=steps,
        step_size=step_size,
        start=start,
        loss="cw",
        confidence=confidence,
        restarts=restarts,
        seed=seed,
    )
