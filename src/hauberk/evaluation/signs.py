"""Signs in the verdicts that a robustness number cannot be believed."""

from hauberk.attacks import PGD
from hauberk.evaluation.diagnostics import Diagnostic, check
from hauberk.evaluation.summary import Summary

MARGIN_LOSSES = ("cw", "dlr", "dlr-targeted", "cw-targeted")
MARGIN_GAP = 0.03  # robust models lose one or two points from PGD to CW; GAIRAT loses 15
AUTOATTACK_GAP = 0.10  # and up to five or so to AutoAttack; GAIRAT loses 21
STEPS_GAP = 0.02
MASKED_SHARE = 0.005
BLACK_BOX_SHARE = 0.002  # AutoAttack's own flag
_WITHOUT_GRADIENTS = ("square", "random-100", "random-10000", "transfer-pgd-20")


def signs(found: Summary, classes: int) -> list[Diagnostic]:
    """Look at what the attacks found; attacks that did not run give no sign."""
    ran = list(found.suite.stages)
    apart = [name for name in ran if not found.suite.stages[name]]  # saw every example that is classified right
    ce = [
        name
        for name in apart
        if getattr(found.suite.attacks[name].attack, "loss", "") == "ce" and name != "fgsm" and "transfer" not in name
    ]
    margin = [name for name in apart if getattr(found.suite.attacks[name].attack, "loss", "") in MARGIN_LOSSES]
    white_box = [name for name in ran if name not in _WITHOUT_GRADIENTS]
    signs = [_clean(found, classes), _fragile(found), _finite(found)]
    if "fgsm" in apart and ce:
        signs.append(_single_step(found, ce))
    if ce and margin:
        signs.append(_margin_gap(found, ce, margin))
    plain = sorted(
        (n for n in ce if isinstance(found.suite.attacks[n].attack, PGD)), key=lambda n: found.suite.attacks[n].attack.cost()
    )
    if len(plain) > 1:
        signs.append(_more_steps(found, plain[0], plain[-1]))
    if plain and "autoattack" in found.suite.columns:
        signs.append(_autoattack_gap(found, plain))
    signs += [_without_gradients(found, name, white_box) for name in ran if name in _WITHOUT_GRADIENTS and white_box]
    return signs


def hardly_beats_chance(clean: float, classes: int) -> bool:
    """Whether a clean accuracy, in [0, 1], is less than twice what guessing gives; of two classes, no more than that."""
    return (clean < 2 / classes and classes > 2) or clean <= 1 / classes


def _clean(found: Summary, classes: int) -> Diagnostic:
    clean = len(found.right) / found.n
    return check(
        "clean-accuracy",
        f"clean accuracy {clean:.1%}, chance {1 / classes:.1%}",
        "invalid" if hardly_beats_chance(clean, classes) else "ok",
        "the model hardly beats chance: check labels, input range and normalisation",
    )


def _fragile(found: Summary) -> Diagnostic:
    fragile = set().union(*found.fragile.values())
    return check(
        "fragile",
        f"for {len(fragile)} examples a claimed success did not hold when checked again",
        "warning" if len(fragile) > max(0.01 * found.n, 1) else "ok",
        "predictions flip with rounding, or between attack and check; evaluate in full precision on one device",
    )


def _finite(found: Summary) -> Diagnostic:
    return check(
        "finite-logits",
        f"for {len(found.unanswered)} examples an attack found an input with logits that are NaN or infinite",
        "warning" if found.unanswered else "ok",
        "they count as broken, because that is no answer; find the layer that overflows or divides by 0, "
        "near which gradients mislead attacks, too",
    )


def _single_step(found: Summary, ce: list[str]) -> Diagnostic:
    missed = len(found.broken["fgsm"] - found.union(ce))
    return check(
        "iterative-beats-single-step",
        f"FGSM breaks {missed} examples that no PGD breaks",
        "warning" if missed > MASKED_SHARE * found.n else "ok",
        "gradients mislead the iterative attack (masking): use more restarts, and attacks without gradients",
    )


def _margin_gap(found: Summary, ce: list[str], margin: list[str]) -> Diagnostic:
    gap = (len(found.union(margin)) - len(found.union(ce))) / found.n
    return check(
        "cross-entropy-to-margin-gap",
        f"attacks on the margin break {100 * gap:+.1f} points more than those on cross-entropy",
        "warning" if gap > MARGIN_GAP else "ok",
        "robust to cross-entropy attacks only; do not report the PGD number, run AutoAttack",
    )


def _more_steps(found: Summary, short: str, long: str) -> Diagnostic:
    gain = (len(found.broken[long]) - len(found.broken[short])) / found.n
    return check(
        "more-steps-help",
        f"{long} breaks {100 * gain:+.1f} points more than {short}",
        "warning" if gain > STEPS_GAP else "ok",
        "the attack has not converged: use more steps and restarts",
    )


def _autoattack_gap(found: Summary, plain: list[str]) -> Diagnostic:
    gap = (len(found.union(found.suite.columns["autoattack"])) - len(found.union(plain))) / found.n
    return check(
        "pgd-to-autoattack-gap",
        f"AutoAttack breaks {100 * gap:+.1f} points more than PGD",
        "warning" if gap > AUTOATTACK_GAP else "ok",
        "the PGD number is an illusion; report AutoAttack",
    )


def _without_gradients(found: Summary, name: str, white_box: list[str]) -> Diagnostic:
    more = sorted(found.broken[name] - found.union(white_box))
    share = BLACK_BOX_SHARE if name == "square" else MASKED_SHARE
    shown = f" ({', '.join(map(str, more[:10]))}{', ...' if len(more) > 10 else ''})" if more else ""
    return check(
        f"{name}-beats-gradients",
        f"{name} breaks {len(more)} examples that no attack with gradients breaks{shown}",
        "warning" if len(more) > max(share * found.n, 1) else "ok",
        "gradients are masked in part: an attack made for this model may break more",
    )
