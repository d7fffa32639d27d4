"""The first words of a report of an evaluation: how often right, how often under attack, can it be believed, at what cost."""

from typing import Any

import numpy as np

from hauberk.evaluation.finding import Diagnostic, worst_first
from hauberk.report.html import Table
from hauberk.report.words import (
    allowed_in_words,
    class_name,
    data_name,
    interval_in_words,
    percent,
    plain_words,
    reach_in_words,
)

_STRONG = ("plus", "standard", "fast", "papers", "rand")  # suites that hold AutoAttack
_FEW = 100  # examples below which intervals are wide


def summarise(found: dict[str, Any]) -> list[str]:
    """Say in three sentences, or four of a table, what an evaluation found: the JSON that ``Evaluation.save`` writes.

    Whether it can be believed comes first where it cannot.
    """
    said = [_without_attack(found), _under_attack(found)]
    belief = _belief(found)
    said = [belief, *said] if _verdicts(found) == "invalid" else [*said, belief]
    said += [_costs_of_errors(found)] if found.get("risk") else []
    return [*said, _costs_by_matrix(found["cost"])] if found.get("cost") else said


def _without_attack(found: dict[str, Any]) -> str:
    return (
        f"Without an attack the model is right for {percent(found['clean_accuracy'])} of {found['n']:,} examples "
        f"(95 % interval {interval_in_words(found['clean_interval'])})."
    )


def _under_attack(found: dict[str, Any]) -> str:
    right = "is right, or recognises the attack," if found["detection"] else "stays right"
    about = "about " if found["estimate"] else ""
    most = f"at most {about}{percent(found['robust_accuracy'])} (95 % interval {interval_in_words(found['interval'])})"
    if proved := found["certified"]:
        least = f"at least {percent(proved['accuracy'])}, which is proved, and"
        return f"Under attack, where {allowed_in_words(found)}, it {right} for {least} {most}."
    return (
        f"Under attack, where {allowed_in_words(found)}, it {right} for {most}; nothing is proved from below: a stronger "
        "attack may find more mistakes."
    )


def _verdicts(found: dict[str, Any]) -> str:
    verdicts = {d["verdict"] for d in found["diagnostics"]}
    return next((one for one in ("invalid", "warning") if one in verdicts), "ok")


def _belief(found: dict[str, Any]) -> str:
    checks, doubted = len(found["diagnostics"]), worst_first([Diagnostic(**d) for d in found["diagnostics"]])
    worst = _verdicts(found)
    reasons = " ".join(dict.fromkeys(plain_words(d) for d in doubted if d.verdict == worst))
    proof = " What is proved holds in any case." if found["certified"] else ""
    few = f" {found['n']} examples are few: look at the intervals." if found["n"] < _FEW else ""
    if worst == "invalid":
        return f"Can it be believed? No. {reasons} The number under attack may be far too high.{proof}"
    if worst == "warning":
        return f"Can it be believed? With care. {reasons}{proof}{few}"
    if not checks:
        return f"Can it be believed? Nobody looked: no checks were made.{proof}{few}"
    passed = f"{checks} checks found nothing wrong" if checks > 1 else "the only check found nothing wrong"
    if found["suite"] in _STRONG:
        strength = "the attacks are the strongest that are usual (AutoAttack)"
        return f"Can it be believed? Yes, as an upper limit: {passed}, and {strength}.{proof}{few}"
    weak = "these attacks are weaker than what is usual for a final number (AutoAttack), under which it may well be lower"
    return f"Can it be believed? As a first look only: {passed}, but {weak}.{proof}{few}"


def _costs_of_errors(found: dict[str, Any]) -> str:
    risk = found["risk"]
    return (
        f"Of the cases {found['class_names'][-1]!r} it recognises {percent(risk['recall'])}, under attack "
        f"{percent(risk['recall_attacked'])}; errors cost {risk['cost']:.3g} a case, under attack {risk['cost_attacked']:.3g} "
        f"(a missed case costs {risk['miss']:g}, a false alarm {risk['false_alarm']:g})."
    )


def _costs_by_matrix(cost: dict[str, Any]) -> str:
    clean, attacked = (f"{cost[key]:.3g}" for key in ("cost", "cost_attacked"))
    return f"By the given matrix, mistakes cost {clean} an example, and under attack at least {attacked}."


def cost_table(found: dict[str, Any]) -> Table | None:
    """Lay out which mistakes are made and what each costs, the dearest first; None where no cost matrix was given."""
    if not (cost := found.get("cost")):
        return None
    mistakes = []
    for label, prices in enumerate(cost["costs"]):
        for taken, price in enumerate(prices):
            counts = [cost[key][label][taken] for key in ("confusion", "confusion_attacked")]
            if label != taken and any(counts):
                mistakes.append((price, f"{class_name(found, label)} taken for {class_name(found, taken)}", counts))
    rows = [[what, f"{price:g}", *counts] for price, what, counts in sorted(mistakes, key=lambda one: -one[0])]
    caption = f"Mistakes by what they cost, of {cost['n']:,} examples; under attack the dearest that was found for each example"
    return Table("evaluation-cost", caption, ["mistake", "cost", "without an attack", "under attack"], rows)


def risk_table(found: dict[str, Any]) -> Table | None:
    """Lay out recall, precision, AUC and cost without and under attack; None where they were not measured."""
    if not (risk := found.get("risk")):
        return None
    name = found["class_names"][-1]
    scales = {
        "recall": (f"recall: of the cases {name!r}, recognised", 100, " %"),
        "precision": (f"precision: of those taken for {name!r}, right", 100, " %"),
        "auc": ("AUC: how well scores put the cases in order (0.5: like a coin, 1: perfectly)", 1, ""),
        "cost": (f"cost of a case (missed {risk['miss']:g}, false alarm {risk['false_alarm']:g})", 1, ""),
    }
    rows = []
    for key, (text, scale, unit) in scales.items():
        before, after = (risk[column] for column in (key, f"{key}_attacked"))
        rows.append([text, *("none" if value is None else f"{scale * value:.3g}{unit}" for value in (before, after))])
    caption = (
        f"{risk['n']:,} examples, {percent(risk['positives'])} of them {name!r}. Every case is attacked, towards the error"
    )
    return Table("evaluation-risk", caption, ["", "without an attack", "under attack"], rows)


def compare_with_standard(
    found: dict[str, Any],
    standard: dict[str, Any],
    seconds: tuple[float | None, float | None],
    beside: str = "standard training of the same network",
) -> tuple[str, Table]:
    """Say what robust training gains and costs beside standard training on the same data.

    Args:
        found: the evaluation of the robust model.
        standard: that of the standard one, of the same examples under the same attacks.
        seconds: what training of the two took; None where it is not known.
        beside: what the standard one is, in words.
    """
    rows = []
    differences = []
    for title, key, wrong in (
        ("right without an attack", "clean_accuracy", ("clean",)),
        ("right under attack", "robust_accuracy", ()),
    ):
        gain, spread = _paired(found, standard, wrong) if not found["estimate"] else (found[key] - standard[key], None)
        text = f"{100 * gain:+.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "") + " points"
        differences.append(text)
        at_most = ", at most" if key == "robust_accuracy" else ""
        rows.append([title + at_most, percent(found[key]), percent(standard[key]), text])
    if found["certified"] and standard["certified"]:
        proved = found["certified"]["accuracy"], standard["certified"]["accuracy"]
        rows.append(
            ["right under attack, at least (proved)", *map(percent, proved), f"{100 * (proved[0] - proved[1]):+.1f} points"]
        )
    for key, title in (("recall", "recall"), ("cost", "cost of a case")):
        for suffix, when in (("", "without an attack"), ("_attacked", "under attack")):
            risks = [one.get("risk") for one in (found, standard)]
            if all(risks):
                mine, other = (risk[key + suffix] for risk in risks if risk)
                shown = [percent(mine), percent(other)] if key == "recall" else [f"{mine:.3g}", f"{other:.3g}"]
                points = f"{100 * (mine - other):+.1f} points" if key == "recall" else f"{mine - other:+.3g}"
                rows.append([f"{title}, {when}", *shown, points])
    took = ""
    if seconds[0] is not None and seconds[1] is not None:
        rows.append(
            ["training took", _seconds(seconds[0]), _seconds(seconds[1]), f"× {seconds[0] / max(seconds[1], 1e-9):.1f}"]
        )
        took = f"; training took {_seconds(seconds[0])} instead of {_seconds(seconds[1])}"
    sentence = (
        f"Beside {beside} ({percent(standard['clean_accuracy'])} without an attack, at most "
        f"{percent(standard['robust_accuracy'])} under the same attacks), this is {differences[1]} under attack, and "
        f"{differences[0]} without one{took}."
    )
    if "invalid" in (_verdicts(found), _verdicts(standard)):
        sentence += " But one of the numbers under attack cannot be believed, see the warnings of both."
    caption = (
        f"The same {found['n']:,} examples under the same attacks; ± two standard errors of the difference, example by example"
    )
    return sentence, Table("standard-beside-robust", caption, ["", "this model", "standard", "difference"], rows)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"


def _paired(found: dict[str, Any], standard: dict[str, Any], wrong: tuple[str, ...]) -> tuple[float, float]:
    """Return the mean difference of two evaluations of the same examples, and two standard errors."""
    right = [
        np.array(
            [(one["broken_by"] not in wrong) if wrong else one["broken_by"] is None for one in evaluation["examples"]], float
        )
        for evaluation in (found, standard)
    ]
    difference = right[0] - right[1]
    return float(difference.mean()), 2 * float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else 0.0


def subject_of(found: dict[str, Any]) -> str:
    """Data, what the attacker may do, number of examples and seed: what belongs under every picture of an evaluation."""
    origin = found["provenance"]
    threat = reach_in_words(found).partition(";")[0] or found["threat"]
    n = f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{found['n']:,}"
    return f"{data_name(origin)}, {threat}, {n}, seed {origin['seed']} of the attacks, one network"
