"""Words of a report for readers who know nothing of attacks: what each check means, and what an attacker may do."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.data.named import TABLE_SUFFIX
from hauberk.evaluation.finding import Diagnostic

_BALL = re.compile(r"(Linf|L2|L1|L0)\(([^,()]+)\)")
_MAY = {
    "Linf": "every number of an input may change by up to {}",
    "L2": "the numbers of an input may change by {} together, as a distance",
    "L1": "the numbers of an input may change by {} in sum",
    "L0": "{} numbers of an input may become anything",
}
_CUTS_BLIND = "The usual attacks cannot see where to push this model, so that they failed for another reason than its strength."
_TOO_SHORT = "The attacks were stopped before they had found all they could: the true number is lower."
_TOO_EASY = "Other attacks break more than the ones that most people use: the number of the usual ones is too good."
# By the name of a diagnostic that is not "ok". No abbreviations, no names of methods.
_PLAIN = {
    "logits": "The model gives probabilities where raw scores are needed, and that makes attacks fail for no good reason.",
    "deterministic": "The model answers by chance, not always alike, and the number under attack is too good.",
    "averaging-is-needed": "The attacks are those for models that answer by chance, as this one does not: others are stronger.",
    "evaluation-mode": "A part of the model still behaves as in training, so that the numbers depend on chance.",
    "side-effects": "The model changes while it is asked, so that its answers depend on the questions before.",
    "no-optimisation-in-forward": "The model computes its answers in a way that the usual attacks cannot follow.",
    "independent-of-the-batch": "The answer to an input depends on which others are asked at the same time.",
    "columns-can-change": "Some columns that should be open to an attacker cannot change: the number says nothing of them.",
    "gradients": _CUTS_BLIND,
    "gradients-of-cross-entropy": "Some of the attacks cannot see where to push this model; only the others count.",
    "gradients-tell-the-truth": "The usual attacks are misled about where to push this model: the true number may be lower.",
    "large-eps-breaks-everything": "Even where the attacker may do everything they fail: they do not find what is there.",
    "larger-eps-breaks-more": "The attacks do worse with more room, so they are misled: the true number may be lower.",
    "gradients-beat-chance": "Blind guessing finds mistakes that the attacks miss: the true number is lower.",
    "gradients-beat-square": "A search by trial and error finds mistakes that the attacks miss: the true number is lower.",
    "rounding-breaks-no-more": "The model seems to know attacks by how their numbers are rounded, which an attacker can avoid.",
    "attacks-find-planted-examples": "Mistakes were hidden as a test, and the attacks missed many: they may miss real ones.",
    "optimisation-is-finished": _TOO_SHORT,
    "one-start-is-enough": "A second try of the same attack finds more mistakes: the true number is lower.",
    "any-loss-will-do": _TOO_EASY,
    "clean-accuracy": "Without any attack the model is hardly better than guessing.",
    "more-than-the-largest-class": "Giving the most frequent answer every time is right as often, and no attack changes that.",
    "unverified": "Some answers change with the last digit of the computation.",
    "finite-logits": "For some inputs the model gives no number at all; these count as mistakes.",
    "attacks-use-gradients": "Only trial and error was used: an attacker who can look inside the model may find much more.",
    "iterative-beats-single-step": "A simple attack finds mistakes that the elaborate ones miss: these are misled.",
    "cross-entropy-to-margin-gap": _TOO_EASY,
    "more-steps-help": _TOO_SHORT,
    "pgd-to-autoattack-gap": _TOO_EASY,
    "robust-rows-stay-apart": "Some rows count as safe that cannot all be: an attacker can make them the same as one another.",
    "square-beats-gradients": "Trial and error finds mistakes that the other attacks miss: the true number may be lower.",
}


def plain_words(diagnostic: Diagnostic) -> str:
    """Say what a diagnostic that is not "ok" means; of one of the caller's own, what it measured and advises."""
    name = diagnostic.name.rsplit(": ", 1)[-1]  # before it, of several threat models, which one
    said = _PLAIN.get(name) or (_PLAIN["square-beats-gradients"] if name.endswith("-beats-gradients") else "")
    return said or f"{diagnostic.measured}. {diagnostic.advice}".removesuffix(" ")


def reach_in_words(found: dict[str, Any]) -> str:
    """Of an evaluation of a table, how many columns can change, and which cannot though they may; otherwise empty."""
    return next((d["measured"] for d in found["diagnostics"] if d["name"] == "columns-can-change"), "")


def allowed_in_words(found: dict[str, Any]) -> str:
    """Say what the attacker may do in an evaluation."""
    if reach := reach_in_words(found):
        return f"each column may change within its own limits ({reach.partition(';')[0]})"
    ball = _BALL.fullmatch(found["threat"])
    return _MAY[ball[1]].format(ball[2]) if ball else f"the attacker may do {found['threat']}"


def percent(share: float) -> str:
    """Return a fraction in percent."""
    return f"{100 * share:.1f} %"


def interval_in_words(ends: Sequence[float]) -> str:
    """Return the ends of an interval in percent."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def data_name(origin: dict[str, Any]) -> str:
    """Return what data are called in captions, of the "provenance" of a result: of a table its file, without the folder."""
    name = str(origin["data"])
    return Path(name).name if name.endswith(TABLE_SUFFIX) else name


def class_name(found: dict[str, Any], label: Any) -> str:
    """Return what a class is called: its name where it has one, otherwise its number."""
    names = found.get("class_names") or []
    return str(names[int(label)]) if 0 <= int(label) < len(names) else str(label)
