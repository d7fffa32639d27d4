"""Would the attack find more with more steps, another start or another loss? Tried on a few examples."""

from torch import Tensor, nn

from hauberk.attacks import apgd
from hauberk.core.random import ExampleRng
from hauberk.evaluation.diagnostics import Diagnostic, check
from hauberk.threat import ThreatModel

STEPS = 50

_SHARE, _FEW = 0.15, 3  # more of the sample newly broken is a sign


def probe_search(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, other: ExampleRng, draws: int
) -> list[Diagnostic]:
    """Compare APGD-50 on cross-entropy with twice the steps, with a second start, and with the margin as its loss.

    Args:
        model: lent by ``frozen_model``.
        x: clean inputs (b, ...) that are classified right.
        y: labels.
        threat: the threat model.
        rng: of the first start, keyed by example.
        other: of the second.
        draws: passes to average over, for a random model.
    """

    def broken(steps: int, loss: str, start: ExampleRng) -> Tensor:
        return apgd(model, x, y, threat, steps=steps, loss=loss, seed=start, eot_iter=draws).success

    first = broken(STEPS, "ce", rng)

    def gain(name: str, what: str, more: Tensor, advice: str) -> Diagnostic:
        new = int((more & ~first).sum())
        measured = f"{what} breaks {new} of {len(x)} inputs that APGD-{STEPS} does not"
        return check(name, measured, "warning" if new > max(_SHARE * len(x), _FEW) else "ok", advice)

    return [
        gain(
            "optimisation-is-finished",
            f"APGD-{2 * STEPS}",
            broken(2 * STEPS, "ce", rng),
            "the search has not converged: attacks of few steps say little here; look at those with the most",
        ),
        gain(
            "one-start-is-enough",
            "another start",
            broken(STEPS, "ce", other),
            "the loss has many bad maxima: use restarts (pgd-plus), targets (apgd-t), and attacks without gradients",
        ),
        gain(
            "any-loss-will-do",
            "APGD on the margin",
            broken(STEPS, "cw", rng),
            "robust to cross-entropy attacks only; believe attacks on the margin and AutoAttack",
        ),
    ]
