"""The report of an evaluation: its page and the sections that it fills."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hauberk.core.intervals import wilson_interval
from hauberk.evaluation.finding import Diagnostic, warning_line, warning_mark, worst_first
from hauberk.report.costs_over_time import costs_over_time
from hauberk.report.figures import add_references, against_eps, bars, histograms
from hauberk.report.html import Alert, Block, Figure, Metric, Page, Section, Table
from hauberk.report.references import published_beside, published_lines
from hauberk.report.rows import row_blocks
from hauberk.report.summary import cost_table, risk_table, subject_of, summarise
from hauberk.report.words import class_name, data_name, interval_in_words, plain_words, reach_in_words

_FEW = 30  # examples of a class below which its bar says little
_MANY = 30  # classes above which bars say little


def evaluation_page(found: dict[str, Any], subject: str, method: str = "") -> Page:
    """Return the report of an evaluation.

    Args:
        found: the JSON that :meth:`hauberk.Evaluation.save` writes.
        subject: the line below the title.
        method: what the network was trained by, where that is known.
    """
    diagnostics, origin = [Diagnostic(**stored) for stored in found["diagnostics"]], found["provenance"]
    interval, clean = (f"95 % interval {interval_in_words(found[name])}" for name in ("interval", "clean_interval"))
    estimate = (found["estimate"] or {}).get("text", "")
    reach = reach_in_words(found)
    allowed = reach.partition(";")[0] or found["threat"]
    notes = [warning_line(diagnostics), estimate, interval, f"worst case over {', '.join(found['by_attack'])}", allowed]
    label = "robust accuracy with rejection, at most" if found["detection"] else "robust accuracy, at most"
    metrics = [
        Metric(label, f"{100 * found['robust_accuracy']:.1f} %{warning_mark(diagnostics)}", "; ".join(filter(None, notes))),
        *_floor(found),
        Metric("clean accuracy", f"{100 * found['clean_accuracy']:.1f} %", clean),
        Metric("examples", f"{found['n']:,}", f"{data_name(origin)}, {origin['subset']}"),
        *([Metric("of the table", *reach.partition("; ")[::2])] if reach else []),
    ]
    alerts = [Alert(d.verdict, plain_words(d), f"{d.name}: {d.measured}. {d.advice}") for d in worst_first(diagnostics)]
    believed = "What was looked for, and found: signs that attacks fail for another reason than robustness"
    advised = any(d.advice for d in diagnostics)
    checks = [[d.name, d.verdict, d.measured, d.advice][: 3 + advised] for d in diagnostics]
    rows = [[key, _plain(value)] for key, value in origin.items() if key != "attacks" and value not in ({}, [])]
    rows = [["threat model", found["threat"]], *rows]
    sections: dict[str, list[Block]] = {
        "What errors cost": [table for table in (risk_table(found), cost_table(found), costs_over_time(found)) if table],
        "Examples": row_blocks(found["attacked_rows"], found["class_names"]) if found.get("attacked_rows") else [],
        "Attacks": [*_attacks(found, method), *filter(None, [published_beside(found, method)])],
        "Robust accuracy against ε": _radii(found),
        "Classes": _classes(found),
        "Margins": _margins(found),
        "Can it be believed?": [
            Table("evaluation-diagnostics", believed, ["check", "verdict", "measured", "what to do"][: 3 + advised], checks)
        ],
        "Where the numbers come from": [
            Table("evaluation-provenance", "Seed, budget, versions, machine", ["", ""], rows),
            Table("evaluation-sources", "Attacks as run", ["attack", "source"], list(origin.get("attacks", {}).items())),
        ],
    }
    filled = [Section(heading, blocks) for heading, blocks in sections.items() if blocks]
    return Page(f"Evaluation, {found['suite']}", subject, metrics, alerts, filled, summarise(found))


def _floor(found: dict[str, Any]) -> list[Metric]:
    """What was proved, where it was asked for."""
    proved = found["certified"]
    if proved is None:
        return []
    by = ", ".join(f"{count} by {name}" for name, count in proved["by"].items()) or "none"
    notes = f"95 % interval {interval_in_words(proved['interval'])}", by, f"undecided {100 * proved['undecided']:.1f} %"
    return [Metric("robust accuracy, at least", f"{100 * proved['accuracy']:.1f} %", "; ".join(notes))]


def _attacks(found: dict[str, Any], method: str) -> list[Block]:
    accuracies = {"clean": found["clean_accuracy"], **found["by_attack"], "worst case": found["robust_accuracy"]}
    accuracies |= {"certified": found["certified"]["accuracy"]} if found["certified"] else {}
    order = "each on what the ones before it left" if found["sequential"] else "each alone on all that is right without it"
    known = dict.fromkeys(("autoattack", "worst case"), tuple(found["interval"])) if found["estimate"] else None
    counts = dict.fromkeys(accuracies, found["n"])
    figure = _accuracies("attacks", "Accuracy under each attack", "attack", accuracies, counts, known)
    caption = f"{figure.caption}, with 95 % intervals. {subject_of(found)}"
    if published := published_lines(found["provenance"]["data"], found["threat"], method):
        assert figure.picture is not None  # drawn just now
        add_references(figure.picture, published)
        caption += ". Lines: published robust accuracies under AutoAttack, as in the table below"
    outcomes = {"clean": "wrong without an attack", None: "robust", "open": "stands, not in the sample"}
    broken_by = ("open" if example.get("weight") == 0 else example["broken_by"] for example in found["examples"])
    broken = Counter(outcomes.get(attack, attack) for attack in broken_by).most_common()
    picture = bars(dict(broken), xlabel="examples")
    return [
        Table(figure.name, f"{figure.caption} ({order})", figure.header, figure.rows),
        replace(figure, caption=caption, rows=()),
        Figure(
            "evaluation-broken", f"What broke how many examples first. {subject_of(found)}", ["", "examples"], broken, picture
        ),
    ]


def _classes(found: dict[str, Any]) -> list[Block]:
    if not found["by_class"]:  # a task without classes
        return []
    known = [example for example in found["examples"] if example.get("weight") != 0]
    sampled = len(known) < found["n"]
    counts = Counter(class_name(found, example["label"]) for example in known)
    shares = {class_name(found, label): share for label, share in found["by_class"].items()}
    caption = f"Robust accuracy of each class. {subject_of(found)}"
    if sampled:  # the interval of the estimate is of all classes together
        rows = [[name, counts[name], f"{100 * share:.1f}"] for name, share in shares.items()]
        picture = bars({name: 100 * share for name, share in shares.items()}, xlabel="accuracy, %", xlim=(0, 100))
        caption += ". Estimates, of a sample that is too small for an interval of each class"
        figure = Figure("evaluation-classes", caption, ["class", "examples whose fate is known", "accuracy, %"], rows, picture)
    else:
        figure = _accuracies("classes", caption, "class", shares, counts)
    blocks: list[Block] = [figure]
    if len(figure.rows) > _MANY:
        blocks = [Table(figure.name, figure.caption, figure.header, sorted(figure.rows, key=lambda row: float(row[2])))]
    if min(counts[name] for name in shares) < _FEW and not sampled:
        blocks.append(f"Some classes have fewer than {_FEW} examples here: read their intervals, not their bars.")
    return blocks


def _accuracies(
    name: str,
    caption: str,
    what: str,
    accuracies: Mapping[str, float],
    counts: Mapping[str, int],
    known: Mapping[str, tuple[float, ...]] | None = None,
) -> Figure:
    """Draw accuracies of so many examples each, with their intervals: those that are ``known``, otherwise Wilson's."""
    ends: dict[str, tuple[float, ...]] = {
        key: wilson_interval(round(share * counts[key]), counts[key] or 1) for key, share in accuracies.items()
    }
    ends |= known or {}
    rows = [[key, counts[key], f"{100 * share:.1f}", interval_in_words(ends[key])] for key, share in accuracies.items()]
    percents = {key: 100 * share for key, share in accuracies.items()}
    picture = bars(percents, [(100 * low, 100 * high) for low, high in ends.values()], xlabel="accuracy, %", xlim=(0, 100))
    return Figure(f"evaluation-{name}", caption, [what, "examples", "accuracy, %", "95 % interval"], rows, picture)


def _radii(found: dict[str, Any]) -> list[Block]:
    curve = found["curve"]
    if not curve:
        return []
    factors, percents = [point["factor"] for point in curve], [100 * point["robust"] for point in curve]
    caption = (
        f"Of {curve[0]['n']} examples that are right without an attack, how many resist a quick attack (APGD-20) as ε grows. "
        f"{subject_of(found)}"
    )
    own = "per feature" in found["threat"] or not all(isinstance(point["eps"], int | float) for point in curve)
    header, rows = (
        ["times ε", "robust, %"],
        [[f"{e:.4g}", f"{percent:.1f}"] for e, percent in zip(factors, percents, strict=True)],
    )
    if not own:
        header, rows = ["ε", *header], [[f"{point['eps']:.4g}", *row] for point, row in zip(curve, rows, strict=True)]
    return [Figure("evaluation-eps", caption, header, rows, against_eps(factors, percents))]


def _margins(found: dict[str, Any]) -> list[Block]:
    titles = {"clean_margin": "without an attack", "margin": "the least that any attack saw"}
    right = [example for example in found["examples"] if example["broken_by"] != "clean"]
    known = {title: [one[key] for one in right if one[key] is not None] for key, title in titles.items()}
    known = {title: values for title, values in known.items() if values}
    if not known:
        return []
    caption = (
        "By how much the score of the right class leads (logit margin), of examples that are right without an attack; below "
        f"0, left of the dashed line, the example is broken. {subject_of(found)}"
    )
    return [Figure("evaluation-margins", caption, picture=histograms(known, xlabel="margin", ylabel="examples"))]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
