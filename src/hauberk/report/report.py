"""From a folder or a JSON file to a report: what is read, and the sections that it fills."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line
from hauberk.core.intervals import wilson_interval
from hauberk.core.io import read_json
from hauberk.data import Table as DataTable
from hauberk.data import find_dataset, reach_of
from hauberk.evaluation.result import Diagnostic, warning_line, warning_mark, worst_first
from hauberk.experiments.comparison import Comparison, column_title
from hauberk.experiments.studies import STUDIES, StudyResult, find_study
from hauberk.report.figures import band, bars, examples, histogram, lines
from hauberk.report.html import Alert, Block, Code, Figure, Metric, Page, Section, Table, write_figures, write_page
from hauberk.report.reproduce import evaluate_command, reproduction_commands
from hauberk.threat import Threat, read_threat, threats_of
from hauberk.training.callbacks import read_metrics

_BY_STRENGTH = "plus", "standard", "fast", "papers", "rand", "custom", "quick"  # suites
_RANKS = {name: k for k, name in enumerate(_BY_STRENGTH)}
_OVERFIT = 0.03  # loss of robust validation accuracy from the best to the last epoch that is worth a word
_FEW = 30  # examples of a class below which its bar says little
_MANY = 30  # classes above which bars say little
# What the curves of a training show, by the key in its metrics.
_ACCURACIES = {
    "val_robust_accuracy": "validation, under attack",
    "val_certified_accuracy": "validation, certified",
    "val_clean_accuracy": "validation, clean",
    "train_robust_accuracy": "training, under attack",
    "train_clean_accuracy": "training, clean",
}
_AREAS = {
    "n_safe": "under attack: safe",
    "n_boundary": "at the boundary",
    "n_wrong": "wrong",
    "n_clean_wrong": "clean: wrong",
}


def make_report(target: Path, out: Path | None = None, figures: Path | None = None) -> Path:
    """Write a report of a run, an evaluation, a comparison or studies.

    Args:
        target: its folder, or the JSON file of an evaluation or a study.
        out: the HTML file; by default ``report.html`` beside or in the target.
        figures: folder for every picture as PNG, SVG and PDF and every table as Markdown, LaTeX and CSV; none by default.

    Returns:
        The HTML file.

    Raises:
        UserError: if the target is nothing that can be reported on or is damaged, or a file cannot be written.
    """
    written = out or (target if target.is_dir() else target.parent) / "report.html"
    try:
        with rc_context({"text.parse_math": False}):  # a "$" in other people's names is no formula
            page = _page(target)
            write_page(page, written)
            if figures is not None:
                write_figures(page, figures)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"{target} is damaged: {in_one_line(error)}") from error
    return written


def _page(target: Path) -> Page:
    if (target / "run.json").exists():
        return _run_page(target)
    if (target / "comparison.json").exists():
        return _comparison_page(read_json(target / "comparison.json"))
    evaluation = target if target.is_file() else target / "evaluation.json"
    if evaluation.exists() and "claim" not in (found := read_json(evaluation)):
        page = evaluation_page(found, str(target))
        return replace(page, sections=[*page.sections, Section("Reproduce", [Code(evaluate_command("MODEL", found))])])
    stored = map(read_json, [target] if target.is_file() else sorted(target.glob("*.json")))
    if studies := [StudyResult(**one) for one in stored if "claim" in one]:
        return _study_page(studies)
    raise UserError(f"{target} holds no run, evaluation, comparison or study to report on")


def _run_page(folder: Path) -> Page:
    card, plan = read_json(folder / "best.json"), read_json(folder / "run.json")
    rows = read_metrics(folder / "metrics.jsonl")
    evaluations = [read_json(path) for path in sorted(folder.glob("evaluations/*/evaluation.json"))]
    evaluations.sort(key=lambda found: (_RANKS.get(found["suite"], len(_RANKS)), -found["n"]))
    threat, data = read_threat(card["threat"]), card["data"]["name"]
    try:
        picture, caption = examples(folder, card)
        shown: Block = Figure("examples", caption, picture=picture)
    except UserError as error:
        shown = f"No pictures: {error}"
    sections = [Section("Examples", [shown]), *_training_sections(rows), reproduction_commands(folder, plan, evaluations)]
    metrics, alerts = _training_metrics(card, rows, threat), _training_alerts(rows, plan["settings"]["epochs"])
    page = Page(f"{plan['method']['name']} on {data}", f"{data}, {card['model']['name']}, {threat}", metrics, alerts, sections)
    if not evaluations:
        return page
    best = evaluation_page(evaluations[0], page.subject)
    return replace(page, metrics=best.metrics, alerts=[*best.alerts, *alerts], sections=[*best.sections, *sections])


def _training_metrics(card: dict[str, Any], rows: list[dict[str, Any]], threat: Threat) -> list[Metric]:
    """Return headline numbers of a run that nobody has evaluated yet."""
    best, data = card["metrics"], card["data"]
    note = f"{data.get('val', 0):,} held-out training examples; no test"
    notes = {"val_robust_accuracy": f"PGD on {note}", "val_clean_accuracy": f"on {note}"}
    notes |= {"val_certified_accuracy": f"intervals on {note}"}
    found = [Metric(_ACCURACIES[key], f"{100 * best[key]:.1f} %", note) for key, note in notes.items() if key in best]
    found.append(Metric("best epoch", f"{card['epoch']} of {len(rows)}", f"{sum(row['seconds'] for row in rows[-1:]):,.0f} s"))
    with suppress(UserError):  # a table that is no longer there
        named = find_dataset(data["name"])
        if isinstance(named, DataTable) and (reach := reach_of(named.train, threats_of(threat)[0])):
            found.append(Metric("of the table", *str(reach).partition("; ")[::2]))
    return found


def _training_alerts(rows: list[dict[str, Any]], epochs: int) -> list[Alert]:
    found = []
    if len(rows) < epochs:
        found.append(Alert("info", f"The run is not finished: {len(rows)} of {epochs} epochs."))
    robust = [row["val_robust_accuracy"] for row in rows if "val_robust_accuracy" in row]
    if robust and (lost := max(robust) - robust[-1]) > _OVERFIT:
        text = f"Robust overfitting: the last epoch's validation accuracy under attack is {100 * lost:.1f} points below the "
        text += "best one's. The best checkpoint is the one that counts; train for fewer epochs."
        found.append(Alert("warning", text))
    return found


def _training_sections(rows: list[dict[str, Any]]) -> list[Section]:
    margins, weights = ({f"{name}_q{q}": f"{q} %" for q in (10, 50, 90)} for name in ("measure", "weight"))
    areas = "Training examples by their margin under attack (the boundary is 0 to 0.1), and those wrong without"
    made_from = "Distribution of what the weights are made from over epochs"
    kish = "On how much of a batch the loss rests (Kish's effective size): 100 % means equal weights"
    sections = {
        "Training": [
            *_curve(rows, "accuracy", "Accuracy over epochs", _ACCURACIES, 100, ylabel="accuracy, %"),
            *_curve(rows, "loss", "Training loss over epochs", {"loss": "loss"}),
            *_curve(rows, "rate", "Learning rate", {"lr": "learning rate"}),
            *_curve(rows, "areas", areas, _AREAS, ylabel="training examples"),
            *_curve(rows, "misclassification", "MART's weight 1 - p_y(x), mean", {"misclassification_weight": "1 - p_y(x)"}),
        ],
        "Weights": [
            *_curve(rows, "margins", made_from, margins, ylabel="margin or steps"),
            *_curve(rows, "weights", "Distribution of the weights over epochs", weights, ylabel="weight"),
            *_curve(rows, "effective", kish, {"effective_size": "effective size, %"}, 100, ylim=(0, 105)),
        ],
    }
    return [Section(heading, blocks) for heading, blocks in sections.items() if blocks]


def _curve(
    rows: list[dict[str, Any]], name: str, caption: str, columns: Mapping[str, str], factor: float = 1.0, **labels: Any
) -> list[Figure]:
    """Draw over epochs those of the columns that every epoch has, three quantiles as a band; nothing if there are none."""
    known = {label: [row[key] for row in rows] for key, label in columns.items() if all(key in row for row in rows)}
    series = {label: [nan if value is None else factor * value for value in values] for label, values in known.items()}
    if not series:
        return []
    epochs = [row["epoch"] for row in rows]
    numbers = list(zip(epochs, *series.values(), strict=True))
    draw = band if len(columns) == 3 else lines
    picture = draw(epochs, series, **{"xlabel": "epoch", "ylabel": next(iter(series)), **labels})
    return [Figure(name, caption, ["epoch", *series], numbers, picture)]


def evaluation_page(found: dict[str, Any], subject: str) -> Page:
    """Return the report of an evaluation (the JSON that :meth:`hauberk.Evaluation.save` writes); ``subject`` is its line."""
    diagnostics, origin = [Diagnostic(**stored) for stored in found["diagnostics"]], found["provenance"]
    interval, clean = (f"95 % interval {_interval(found[name])}" for name in ("interval", "clean_interval"))
    estimate = (found["estimate"] or {}).get("text", "")
    notes = [warning_line(diagnostics), estimate, interval, f"worst case over {', '.join(found['by_attack'])}", found["threat"]]
    label = "robust accuracy with rejection, at most" if found["detection"] else "robust accuracy, at most"
    metrics = [
        Metric(label, f"{100 * found['robust_accuracy']:.1f} %{warning_mark(diagnostics)}", "; ".join(filter(None, notes))),
        *_floor(found),
        Metric("clean accuracy", f"{100 * found['clean_accuracy']:.1f} %", clean),
        Metric("examples", f"{found['n']:,}", f"{origin['data']}, {origin['subset']}"),
        *(Metric("of the table", *d.measured.partition("; ")[::2]) for d in diagnostics if d.name == "columns-can-change"),
    ]
    alerts = [Alert(d.verdict, f"{d.name}: {d.measured}. {d.advice}") for d in worst_first(diagnostics)]
    believed = "What was looked for, and found: signs that attacks fail for another reason than robustness"
    checks = [[d.name, d.verdict, d.measured] for d in diagnostics]
    rows = [[key, _plain(value)] for key, value in origin.items() if key != "attacks" and value not in ({}, [])]
    sections: dict[str, list[Block]] = {
        "Attacks": _attacks(found),
        "Robust accuracy against ε": _radii(found["curve"]),
        "Classes": _classes(found),
        "Margins": _margins(found["examples"]),
        "Can it be believed?": [Table("evaluation-diagnostics", believed, ["check", "verdict", "measured"], checks)],
        "Where the numbers come from": [
            Table("evaluation-provenance", "Seed, budget, versions, machine", ["", ""], rows),
            Table("evaluation-sources", "Attacks as run", ["attack", "source"], list(origin.get("attacks", {}).items())),
        ],
    }
    filled = [Section(heading, blocks) for heading, blocks in sections.items() if blocks]
    return Page(f"Evaluation, {found['suite']}", subject, metrics, alerts, filled)


def _floor(found: dict[str, Any]) -> list[Metric]:
    """What was proved, where it was asked for."""
    proved = found["certified"]
    if proved is None:
        return []
    by = ", ".join(f"{count} by {name}" for name, count in proved["by"].items()) or "none"
    notes = f"95 % interval {_interval(proved['interval'])}", by, f"undecided {100 * proved['undecided']:.1f} %"
    return [Metric("robust accuracy, at least", f"{100 * proved['accuracy']:.1f} %", "; ".join(notes))]


def _attacks(found: dict[str, Any]) -> list[Block]:
    accuracies = {"clean": found["clean_accuracy"], **found["by_attack"], "worst case": found["robust_accuracy"]}
    accuracies |= {"certified": found["certified"]["accuracy"]} if found["certified"] else {}
    order = "each on what the ones before it left" if found["sequential"] else "each alone on all that is right without it"
    known = dict.fromkeys(("autoattack", "worst case"), tuple(found["interval"])) if found["estimate"] else None
    counts = dict.fromkeys(accuracies, found["n"])
    figure = _accuracies("attacks", "Accuracy under each attack", "attack", accuracies, counts, known)
    outcomes = {"clean": "wrong without an attack", None: "robust", "open": "stands, not in the sample"}
    broken_by = ("open" if example.get("weight") == 0 else example["broken_by"] for example in found["examples"])
    broken = Counter(outcomes.get(attack, attack) for attack in broken_by).most_common()
    picture = bars(dict(broken), xlabel="examples")
    return [
        Table(figure.name, f"{figure.caption} ({order})", figure.header, figure.rows),
        replace(figure, caption=f"{figure.caption}, with 95 % intervals", rows=()),
        Figure("evaluation-broken", "What broke how many examples first", ["", "examples"], broken, picture),
    ]


def _classes(found: dict[str, Any]) -> list[Block]:
    if not found["by_class"]:  # a task without classes
        return []
    counts = Counter(str(example["label"]) for example in found["examples"])
    figure = _accuracies("classes", "Robust accuracy of each class", "class", found["by_class"], counts)
    blocks: list[Block] = [figure]
    if len(figure.rows) > _MANY:
        blocks = [Table(figure.name, figure.caption, figure.header, sorted(figure.rows, key=lambda row: float(row[2])))]
    if min(counts.values()) < _FEW:
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
    rows = [[key, counts[key], f"{100 * share:.1f}", _interval(ends[key])] for key, share in accuracies.items()]
    percents = {key: 100 * share for key, share in accuracies.items()}
    picture = bars(percents, [(100 * low, 100 * high) for low, high in ends.values()], xlabel="accuracy, %", xlim=(0, 100))
    return Figure(f"evaluation-{name}", caption, [what, "examples", "accuracy, %", "95 % interval"], rows, picture)


def _radii(curve: Sequence[dict[str, Any]]) -> list[Block]:
    if not curve:
        return []
    plain = all(isinstance(point["eps"], int | float) for point in curve)
    eps, unit = [0.0, *(point["eps" if plain else "factor"] for point in curve)], "ε" if plain else "times ε"
    percents = [100.0, *(100 * point["robust"] for point in curve)]
    caption = f"Of {curve[0]['n']} examples that are right without an attack, how many resist a quick APGD as ε grows"
    rows = [[f"{e:.4g}", f"{percent:.1f}"] for e, percent in zip(eps, percents, strict=True)]
    picture = lines(eps, {"robust": percents}, xlabel=unit, ylabel="robust, %", ylim=(0, 105))
    return [Figure("evaluation-eps", caption, [unit, "robust, %"], rows, picture)]


def _margins(examples: Sequence[dict[str, Any]]) -> list[Block]:
    captions = {
        "clean_margin": "Logit margin of examples that are right, without an attack",
        "margin": "Least margin that any attack saw; below 0 the example is broken",
    }
    right = [example for example in examples if example["broken_by"] != "clean"]
    known = {key: [example[key] for example in right if example[key] is not None] for key in captions}
    pictures = {key: histogram(values, xlabel="margin", ylabel="examples") for key, values in known.items() if values}
    return [Figure(f"evaluation-{key.replace('_', '-')}", captions[key], picture=picture) for key, picture in pictures.items()]


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _comparison_page(stored: dict[str, Any]) -> Page:
    found = Comparison(**stored)
    several, last = len(found.seeds) > 1, found.columns[-1]
    best = max(found.methods, key=lambda method: found.mean(method, last))
    what = f"mean and deviation over {len(found.seeds)} seeds" if several else "one seed"
    metrics = [
        Metric(f"best under {column_title(last)}", best, f"{found.text(best, last)} %, {what}"),
        Metric("methods", str(len(found.methods)), ", ".join(found.methods)),
        Metric("seeds", str(len(found.seeds)), "differences are paired over them" if several else "no deviations"),
    ]
    said = {method: "; ".join(names) for method, names in found.doubts.items() if names}
    alerts = [Alert("warning", f"{name}: {doubt}. Look at its evaluations before its numbers.") for name, doubt in said.items()]
    table = found.table()
    first, *columns, difference = table.columns
    header = [first, *(f"{column}, %" for column in columns), difference]
    caption = " ".join([f"{found.about}.", *table.notes])
    blocks = [Table("comparison", caption, header, table.rows)]
    for column in found.columns:
        means = {method: found.mean(method, column) for method in found.methods}
        spread = {method: found.deviation(method, column) for method in found.methods}
        ends = [(mean - spread[method], mean + spread[method]) for method, mean in means.items()]
        picture = bars(means, ends, points=True, xlabel=f"{column_title(column)}, %")
        blocks.append(Figure(f"compare-{column}", f"{column_title(column)}: {what}", picture=picture))
    runs = [[method, *(f"{value:.2f}" for value in found.values[method][last])] for method in found.methods]
    seeds = Table("seeds", f"{column_title(last)} of every run, %", ["method", *(f"seed {seed}" for seed in found.seeds)], runs)
    sections = [Section("Methods", blocks), Section("Every run", [seeds])]
    return Page("Comparison of methods", found.about, metrics, alerts, sections)


def _study_page(found: Sequence[StudyResult]) -> Page:
    verdicts = Counter(one.verdict for one in found)
    sections = []
    for one in found:
        figures = []
        if one.study in STUDIES:  # nothing else says how it is drawn
            figures = [Figure(one.study, f"{one.study}: {one.about}", picture=find_study(one.study).draw(one))]
        texts = [f"Claim: {one.claim}", f"Found ({one.verdict}): {one.found}."]
        caption = " ".join([f"{one.about}.", *one.table.notes])
        tables = [Table(one.study, caption, one.table.columns, one.table.rows)]
        if one.sentences:
            heading = "The claim, sentence by sentence: by two standard errors over seeds and examples"
            tables.insert(0, Table(f"{one.study}-claim", heading, one.tested.columns, one.tested.rows))
        sections.append(Section(one.study, [*texts, *figures, *tables]))
    title = f"Study {found[0].study}" if len(found) == 1 else f"{len(found)} studies"
    metrics = [Metric(verdict, str(n), "of the studies") for verdict, n in sorted(verdicts.items())]
    return Page(title, found[0].about, metrics, [], sections)
