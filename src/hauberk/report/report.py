"""From a folder or a JSON file to a report: what is read, and the sections that it fills."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line, shell_quoted
from hauberk.core.io import read_json
from hauberk.data import DATASETS, class_overlap, reach_of
from hauberk.data import Table as DataTable
from hauberk.data.named import TABLE_SUFFIX
from hauberk.data.tables import Reach
from hauberk.experiments.studies import STUDIES, StudyResult, find_study
from hauberk.report.comparison import comparison_page
from hauberk.report.curve import curve_of, curve_page
from hauberk.report.evaluation import evaluation_page
from hauberk.report.figures import band, examples, lines
from hauberk.report.html import Alert, Block, Code, Figure, Metric, Page, Section, Table, write_figures, write_page
from hauberk.report.reproduce import evaluate_command, reproduction_commands
from hauberk.report.results import read_evaluations, result_sections
from hauberk.report.rows import rows_of_run, table_behind
from hauberk.report.standard import find_standard, match_given, training_seconds
from hauberk.report.summary import compare_with_standard
from hauberk.report.words import data_name
from hauberk.threat import Threat, read_threat, threats_of
from hauberk.training.callbacks import read_metrics

_FIRST = "What errors cost", "Examples"  # sections of an evaluation that a reader looks for first
_OVERFIT = 0.03  # loss of robust validation accuracy from the best to the last epoch that is worth a word
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


def make_report(target: Path, out: Path | None = None, figures: Path | None = None, standard: Path | None = None) -> Path:
    """Write a report of a run, an evaluation, a robustness curve, a comparison or studies.

    Args:
        target: its folder, or the JSON file of an evaluation or a study.
        out: the HTML file; by default ``report.html`` beside or in the target.
        figures: folder for every picture as PNG, SVG and PDF and every table as Markdown, LaTeX and CSV; none by default.
        standard: of a run or an evaluation, the standard model to show beside it, evaluated alike: the folder of a run, or of
            an evaluation; by default, of a run, one of the same data and network beside it, if there is one.

    Returns:
        The HTML file.

    Raises:
        UserError: if the target is nothing that can be reported on or is damaged, or a file cannot be written.
    """
    written = out or (target if target.is_dir() else target.parent) / "report.html"
    try:
        with rc_context({"text.parse_math": False}):  # a "$" in other people's names is no formula
            page = _page(target, standard)
            write_page(page, written)
            if figures is not None:
                write_figures(page, figures)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"{target} is damaged: {in_one_line(error)}") from error
    return written


def _page(target: Path, standard: Path | None) -> Page:
    if (target / "run.json").exists():
        return _run_page(target, standard)
    comparison, evaluation = target / "comparison.json", target if target.is_file() else target / "evaluation.json"
    if not comparison.exists() and evaluation.exists() and "claim" not in (found := read_json(evaluation)):
        return _lone_page(found, target, standard)
    if standard is not None:
        raise UserError(f"a standard model stands beside a run or an evaluation, and {target} is neither")
    if comparison.exists():
        return comparison_page(read_json(comparison))
    if (target / "curve.json").exists():
        return curve_page(curve_of(read_json(target / "curve.json")))
    stored = map(read_json, [target] if target.is_file() else sorted(target.glob("*.json")))
    if studies := [StudyResult(**one) for one in stored if "claim" in one]:
        return _study_page(studies)
    raise UserError(f"{target} holds no run, evaluation, curve, comparison or study to report on")


def _lone_page(found: dict[str, Any], target: Path, standard: Path | None) -> Page:
    """Return the report of an evaluation of which no run is known."""
    page, command = evaluation_page(found, str(target)), evaluate_command("MODEL", found)
    data = found["provenance"]["data"]
    command += f" --data {shell_quoted(data)}" if data in DATASETS or data.endswith(TABLE_SUFFIX) else ""
    summary, first = list(page.summary), list[Section]()
    if standard is not None:
        _, other, _ = match_given(standard, [found], str(target))
        sentence, compared = compare_with_standard(found, other, (None, None), "the standard model")
        summary.append(sentence)
        first = [Section("Standard beside robust", [compared])]
    return replace(page, summary=summary, sections=[*first, *page.sections, Section("Reproduce", [Code(command)])])


def _run_page(folder: Path, standard: Path | None) -> Page:
    card, plan = read_json(folder / "best.json"), read_json(folder / "run.json")
    rows = read_metrics(folder / "metrics.jsonl")
    by_name, table = read_evaluations(folder, card), table_behind(card)
    evaluations = list(by_name.values())
    threat, data = read_threat(card["threat"]), card["data"]["name"]
    reach = None if table is None else reach_of(table.train, threats_of(threat)[0])
    any_classifier = _any_classifier(table, threat)
    metrics = [*_training_metrics(card, rows, reach), *any_classifier]
    alerts = _training_alerts(rows, plan["settings"]["epochs"])
    allowed = str(threat) if reach is None else f"{len(reach.moving)} of {reach.columns} columns can change"
    what, seed = f"{data}, {card['model']['name']}, {allowed}, one network", f"seed {plan['method']['seed']} of its training"
    subject = f"{what}, {seed}"
    everything, shown = result_sections(folder, by_name), list[Section]()
    if not evaluations or not evaluations[0].get("attacked_rows"):
        shown = [Section("Examples", _examples(folder, card, table, subject))]
    counts = f"{card['data']['train']:,} training examples, {card['data']['val']:,} held out for validation"
    last = [*_training_sections(rows, f"{what}, {counts}, {seed}"), reproduction_commands(folder, plan, evaluations)]
    page = Page(
        f"{plan['method']['name']} on {data_name({'data': data})}", subject, metrics, alerts, [*everything, *shown, *last]
    )
    if not evaluations:
        return page
    best, took = evaluation_page(evaluations[0], page.subject, plan["method"]["name"]), training_seconds(folder)
    beside = find_standard(folder, plan, evaluations, standard)
    summary, first = list(best.summary), list[Section]()
    if beside is not None:
        place, other, found = beside
        sentence, compared = compare_with_standard(found, other, (took, training_seconds(place)))
        summary.append(sentence)
        first = [Section("Standard beside robust", [compared])]
    elif took is not None:
        summary.append(f"Training took {took:,.0f} s; no standard network that was evaluated alike lies beside this one.")
    order = [section for section in best.sections if section.heading in _FIRST]
    rest = [section for section in best.sections if section not in order]
    if table is not None:  # what a reader of tables looks for first
        order, shown = [*order, *shown], []
    together = [*first, *order, *everything, *rest, *shown, *last]
    metrics, alerts = [*best.metrics, *any_classifier], [*best.alerts, *alerts]
    return replace(page, metrics=metrics, alerts=alerts, sections=together, summary=summary)


def _examples(folder: Path, card: dict[str, Any], table: DataTable | None, subject: str) -> list[Block]:
    """Attack examples of a run, of which no evaluation shows any."""
    try:
        if table is not None:
            return rows_of_run(folder, card, table)
        picture, caption = examples(folder, card)
    except UserError as error:
        return [f"No examples: {error}"]
    return [Figure("examples", f"{caption}. {subject}", picture=picture)]


def _training_metrics(card: dict[str, Any], rows: list[dict[str, Any]], reach: Reach | None) -> list[Metric]:
    """Return headline numbers of a run that nobody has evaluated yet."""
    best, data = card["metrics"], card["data"]
    note = f"{data.get('val', 0):,} held-out training examples; no test"
    notes = {"val_robust_accuracy": f"PGD on {note}", "val_clean_accuracy": f"on {note}"}
    notes |= {"val_certified_accuracy": f"intervals on {note}"}
    found = [Metric(_ACCURACIES[key], f"{100 * best[key]:.1f} %", note) for key, note in notes.items() if key in best]
    found.append(Metric("best epoch", f"{card['epoch']} of {len(rows)}", f"{sum(row['seconds'] for row in rows[-1:]):,.0f} s"))
    if reach is not None:
        found.append(Metric("of the table", *str(reach).partition("; ")[::2]))
    return found


def _any_classifier(table: DataTable | None, threat: Threat) -> list[Metric]:
    """Return what no classifier passes on the training rows, where that is less than all of them."""
    found = None if table is None else class_overlap(table.train, threats_of(threat)[0])
    if found is None or not found.meeting:
        return []
    why = f"{found.meeting:,} of {found.n:,} training rows can be made the same as one of another class"
    return [Metric("any classifier, at most", f"{100 * found.at_most:.1f} %", why)]


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


def _training_sections(rows: list[dict[str, Any]], subject: str) -> list[Section]:
    """Draw what each epoch showed; ``subject`` ends each caption."""
    margins, weights = ({f"{name}_q{q}": f"{q} %" for q in (10, 50, 90)} for name in ("measure", "weight"))
    areas = "Training examples by their margin under attack (the boundary is 0 to 0.1), and those wrong without"
    made_from = "Distribution of what the weights are made from over epochs"
    kish = "On how much of a batch the loss rests (Kish's effective size): 100 % means equal weights"
    sections = {
        "Training": [
            *_curve(rows, "accuracy", "Accuracy over epochs", _ACCURACIES, 100, ylabel="accuracy, %", ylim=(0, 102)),
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
    return [
        Section(heading, [replace(one, caption=f"{one.caption}. {subject}") for one in blocks])
        for heading, blocks in sections.items()
        if blocks
    ]


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
    picture.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return [Figure(name, caption, ["epoch", *series], numbers, picture)]


def _study_page(found: Sequence[StudyResult]) -> Page:
    verdicts = Counter(one.verdict for one in found)
    sections = []
    if len(found) > 1:
        rows = [[one.study, one.verdict, f"{one.found}."] for one in found]
        heading = "What each study found; a claim agrees if all its sentences do"
        sections.append(Section("In short", [Table("studies", heading, ["study", "verdict", "found"], rows)]))
    for one in found:
        figures = []
        if one.study in STUDIES:  # nothing else says how it is drawn
            figures = [Figure(one.study, STUDIES[one.study][0], picture=find_study(one.study).picture(one))]
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
