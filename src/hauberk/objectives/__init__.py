"""ℓ and r: the objectives, pure functions of logits and labels that return per-example terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hauberk.objectives.adversarial_class import adversarial_class
from hauberk.objectives.cross_entropy import at, standard
from hauberk.objectives.functional import kl_divergence
from hauberk.objectives.logit_pairing import alp, clp
from hauberk.objectives.mart import mart
from hauberk.objectives.mma import mma
from hauberk.objectives.terms import LossTerms, PresetName
from hauberk.objectives.trades import trades


@dataclass(frozen=True)
class Objective:
    """An objective and which logits it needs.

    Attributes:
        terms: the function.
        clean: whether it needs logits of the clean inputs.
        adversarial: whether it needs logits of the adversarial inputs.
        equation: what it computes, in one line.
        settings: names and defaults of its hyperparameters.
        extra_outputs: outputs the model needs besides the classes of the data.
    """

    terms: Callable[..., LossTerms]
    clean: bool
    adversarial: bool
    equation: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra_outputs: int = 0


_PAIRING: Mapping[str, Any] = {"beta": 1.0, "pairing": "probabilities"}

OBJECTIVES = {
    "standard": Objective(standard, clean=True, adversarial=False, equation="ω·CE(f(x), y)"),
    "at": Objective(at, clean=False, adversarial=True, equation="ω·CE(f(x'), y)"),
    "trades": Objective(
        trades,
        clean=True,
        adversarial=True,
        equation="ω·β·KL(p(x)‖p(x')) + CE(f(x), y)",
        settings={"beta": 6.0, "direction": "clean-to-adv"},
    ),
    "mart": Objective(
        mart, clean=True, adversarial=True, equation="ω·BCE(p(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))", settings={"beta": 5.0}
    ),
    "alp": Objective(alp, clean=True, adversarial=True, equation="ω·CE(f(x'), y) + β·‖p(x') - p(x)‖²", settings=_PAIRING),
    "clp": Objective(clp, clean=True, adversarial=True, equation="ω·β·‖p(x') - p(x)‖² + CE(f(x), y)", settings=_PAIRING),
    "mma": Objective(
        mma,
        clean=True,
        adversarial=True,
        equation="ω·⅔·CE(at the nearest adversarial example, if right and within ε; at x, if wrong) + ⅓·CE(f(x), y)",
        settings={"clean_share": 1 / 3},
    ),
    "adversarial-class": Objective(
        adversarial_class,
        clean=True,
        adversarial=True,
        equation="ω·β·CE(f(x'), K) + CE(f(x), y), K the class of adversarial inputs",
        settings={"beta": 1.0},
        extra_outputs=1,
    ),
}

__all__ = [
    "OBJECTIVES",
    "LossTerms",
    "Objective",
    "PresetName",
    "adversarial_class",
    "alp",
    "at",
    "clp",
    "kl_divergence",
    "mart",
    "mma",
    "standard",
    "trades",
]
