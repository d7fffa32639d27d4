"""ℓ and r: the objectives, pure functions of logits and labels that return per-example terms."""

from collections.abc import Callable
from dataclasses import dataclass

from hauberk.objectives.cross_entropy import at, standard
from hauberk.objectives.kl import kl_divergence
from hauberk.objectives.mart import mart
from hauberk.objectives.terms import PresetName, Terms
from hauberk.objectives.trades import trades


@dataclass(frozen=True)
class Objective:
    """An objective and which logits it needs.

    Attributes:
        terms: the function.
        clean: whether it needs logits of the clean inputs.
        adversarial: whether it needs logits of the adversarial inputs.
        equation: what it computes, in one line.
    """

    terms: Callable[..., Terms]
    clean: bool
    adversarial: bool
    equation: str


OBJECTIVES = {
    "standard": Objective(standard, clean=True, adversarial=False, equation="CE(f(x), y)"),
    "at": Objective(at, clean=False, adversarial=True, equation="CE(f(x'), y)"),
    "trades": Objective(trades, clean=True, adversarial=True, equation="CE(f(x), y) + β·KL(p(x)‖p(x'))"),
    "mart": Objective(mart, clean=True, adversarial=True, equation="BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))"),
}

__all__ = ["OBJECTIVES", "Objective", "PresetName", "Terms", "at", "kl_divergence", "mart", "standard", "trades"]
