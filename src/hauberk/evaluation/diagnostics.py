"""Signs that a robustness number cannot be believed, as data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hauberk.attacks.presets import PRESETS
from hauberk.attacks.steps import Ascent

Verdict: TypeAlias = Literal["ok", "warning", "invalid"]

MARGIN_LOSSES = ("cw", "dlr", "dlr-targeted")
MARGIN_GAP = 0.03  # robust models lose one or two points from PGD to CW; GAIRAT loses 15
STEPS_GAP = 0.02
MASKED_SHARE = 0.005


@dataclass(frozen=True)
class Diagnostic:
    """One check of an evaluation.

    Attributes:
        name: of the check.
        measured: what was seen, in words and numbers.
        verdict: "ok", "warning", or "invalid" where the robust accuracy means nothing.
        advice: what to do, where it is not "ok".
    """

    name: str
    measured: str
    verdict: Verdict
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


def diagnose(right: Tensor, broken: dict[str, Tensor], fragile: int, spread: float, classes: int) -> list[Diagnostic]:
    """Look at what the attacks found.

    Args:
        right: (N,) bool, classified right without an attack.
        broken: for each attack, (N,) bool, verified successes.
        fragile: claimed successes that did not hold on the untouched model.
        spread: largest difference of logits between two passes over the same clean inputs.
        classes: number of logits.
    """
    n = len(right)
    clean = right.sum().item() / n
    found = [
        _check(
            "clean-accuracy",
            f"clean accuracy {clean:.1%}, chance {1 / classes:.1%}",
            "invalid" if (clean < 2 / classes and classes > 2) or clean <= 1 / classes else "ok",
            "the model hardly beats chance: check labels, input range and normalisation",
        ),
        _check(
            "deterministic",
            f"two passes over the same inputs differ by up to {spread:.2g}",
            "invalid" if spread > 1e-4 else "ok",
            "the model is random: these attacks do not average over it, so the number is too high",
        ),
        _check(
            "fragile",
            f"{fragile} claimed successes did not hold when checked again",
            "warning" if fragile > 0.01 * n else "ok",
            "predictions flip with rounding; evaluate in float32 on one device",
        ),
    ]
    ce = {name: hits for name, hits in broken.items() if PRESETS[name].settings.loss == "ce" and name != "fgsm"}
    margin = {name: hits for name, hits in broken.items() if PRESETS[name].settings.loss in MARGIN_LOSSES}
    if "fgsm" in broken and ce:
        missed = int((broken["fgsm"] & ~_union(ce)).sum())
        found.append(
            _check(
                "iterative-beats-single-step",
                f"FGSM breaks {missed} examples that no PGD breaks",
                "warning" if missed > MASKED_SHARE * n else "ok",
                "gradients mislead the iterative attack (masking): use more restarts, and attacks without gradients",
            )
        )
    if ce and margin:
        gap = (_union(margin).sum() - _union(ce).sum()).item() / n
        found.append(
            _check(
                "cross-entropy-to-margin-gap",
                f"attacks on the margin break {100 * gap:+.1f} points more than those on cross-entropy",
                "warning" if gap > MARGIN_GAP else "ok",
                "robust to cross-entropy attacks only; do not report the PGD number, run AutoAttack",
            )
        )
    plain = [name for name in ce if isinstance(PRESETS[name].settings, Ascent)]
    if len(plain) > 1:
        by_steps = sorted(plain, key=lambda name: PRESETS[name].settings.steps)
        short, long = by_steps[0], by_steps[-1]
        gain = (ce[long].sum() - ce[short].sum()).item() / n
        found.append(
            _check(
                "more-steps-help",
                f"{long} breaks {100 * gain:+.1f} points more than {short}",
                "warning" if gain > STEPS_GAP else "ok",
                "the attack has not converged: use more steps and restarts",
            )
        )
    return found


def _check(name: str, measured: str, verdict: Verdict, advice: str) -> Diagnostic:
    return Diagnostic(name, measured, verdict, "" if verdict == "ok" else advice)


def _union(hits: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(hits.values())).any(0)
