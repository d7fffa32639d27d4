"""APGD, FAB, Square and random search on one batch: the attacks without parameters to tune."""

from torch import Tensor, nn

from hauberk.attacks.apgd import APGD
from hauberk.attacks.apgd_l1 import APGDL1
from hauberk.attacks.fab import Fab
from hauberk.attacks.random_search import RandomSearch
from hauberk.attacks.result import AttackResult
from hauberk.attacks.run import run_attack
from hauberk.attacks.square import Square
from hauberk.core.random import ExampleRng
from hauberk.threat import ThreatModel


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    loss: str = "ce",
    targets: int = 9,
    restarts: int = 1,
    draws: int = 1,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Auto-PGD (Croce and Hein 2020), as in AutoAttack.

    ``z = Π(x^t + η·steepest ∇ℓ)``, ``x^{t+1} = Π(x^t + 0.75 (z - x^t) + 0.25 (x^t - x^{t-1}))``. The step η starts at 2ε; at
    checkpoints an example whose loss has risen too seldom, or not reached a new best, halves it and returns to its best point.
    In L1 (Croce and Hein 2021) steps are sparse, and 3ε, 2ε and ε are taken in turn. An example that is misclassified takes
    no further part.

    Two things differ from the official code: the L2 projection is onto the ball cut with the box exactly, and the first
    checkpoint compares with the loss of the start, where the code compares with 0.

    Args:
        model: classifier from inputs (B, ...) in the box to logits (B, C); unchanged afterwards.
        x: clean inputs, (B, ...), inside the box.
        y: labels, (B,) int64.
        threat: ball and box.
        steps: iterations of each start; AutoAttack has 100.
        loss: "ce"; "dlr"; or "dlr-targeted", which tries each of the ``targets`` most likely wrong classes in turn;
            "ce-targeted" and "cw-targeted" likewise.
        targets: how many; AutoAttack has 9, and 5 in L1. Fewer where there are fewer classes.
        restarts: independent starts (for each target); the examples that still stand go on.
        draws: passes to average over at each step, for random models; AutoAttack's ``rand`` has 20.
        seed: of the random starts; an integer, or noise keyed by example.

    Returns:
        AttackResult, with one forward of the clean inputs counted.

    Raises:
        UserError: for settings that make no sense, and where the loss needs more classes (DLR 3, targeted DLR 4).
    """
    if threat.norm == "L1":
        sparse = APGDL1(steps=steps, loss=loss, targets=targets, restarts=restarts)
        return run_attack(sparse, model, x, y, threat, seed=seed, draws=draws)
    dense = APGD(steps=steps, loss=loss, targets=targets, restarts=restarts)
    return run_attack(dense, model, x, y, threat, seed=seed, draws=draws)


def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    targeted: bool = True,
    targets: int = 9,
    restarts: int = 1,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Fast adaptive boundary attack (Croce and Hein 2020), as in AutoAttack: FAB-T, or FAB where ``targeted`` is False.

    Each step moves to the boundary of the classifier linearised at the current point, drawn a little towards the projection of
    the clean input: ``x' = (1-α)(x + η d) + α(x_0 + η d_0)`` with η = 1.05, and 10 % of the way back to the clean input from a
    point that is misclassified. It knows of ε only in that it stops where an adversarial point inside is found, which the
    official code finds out at the end.

    Args:
        model: as in :func:`apgd`, like x, y, threat and seed.
        x: clean inputs, (B, ...).
        y: labels, (B,).
        threat: ball and box.
        steps: iterations of each run, at two forwards and one backward each.
        targeted: aim at one of the most likely wrong classes in each run; otherwise at the nearest linearised boundary of all,
            at one backward for each class.
        targets: how many classes to aim at.
        restarts: runs (for each target); the first from the clean input.
        seed: of the random starts of the other restarts.

    Returns:
        AttackResult; where nothing was found, ``x_adv`` is the clean input.

    Raises:
        UserError: for settings that make no sense.
    """
    return run_attack(Fab(steps, targeted, targets, restarts), model, x, y, threat, seed=seed)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 5000,
    restarts: int = 1,
    seed: int | ExampleRng = 0,
) -> AttackResult:
    """Square attack (Andriushchenko et al. 2020), as in AutoAttack: random search on the margin, forward passes only.

    Each query changes one random window, ever smaller, and keeps the change if the margin falls. Vectors are taken as images of
    one row, (B, H, W) as one channel. Each example has its own windows (in the official code a batch shares them), which can
    also touch the last row and column (there they cannot). In L∞, proposals that change nothing count as queries but cost
    no pass.

    Args:
        model: as in :func:`apgd`, like x, y, threat and seed.
        x: clean inputs, (B, ...).
        y: labels, (B,).
        threat: ball and box.
        steps: queries; AutoAttack has 5,000.
        restarts: independent runs.
        seed: of the windows.

    Raises:
        UserError: for settings that make no sense.
    """
    return run_attack(Square(steps, restarts), model, x, y, threat, seed=seed)


def random_search(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int = 100, seed: int | ExampleRng = 0
) -> AttackResult:
    """Look at so many random points of the threat model: by turns uniform in the ball and, in L∞, at its corners.

    Arguments and result as in :func:`square`. A model on which this finds more than gradients do hides its gradients.
    """
    return run_attack(RandomSearch(steps), model, x, y, threat, seed=seed)
