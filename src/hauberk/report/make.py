"""From a folder to a report."""

from pathlib import Path
from typing import Any

from hauberk.core.errors import UserError, in_one_line
from hauberk.core.io import SCHEMA_ERRORS, read_json
from hauberk.data import load_data
from hauberk.report import comparison, evaluation, run, study
from hauberk.report.blocks import Code, Fact, Page, Section
from hauberk.report.page import write_figures, write_page
from hauberk.report.pictures import pictures
from hauberk.report.reproduce import evaluate_command, run_again
from hauberk.tables import reach_of
from hauberk.threat import ThreatModel, threat_from_dict
from hauberk.training.callbacks import read_metrics

_STRENGTH = ("plus", "standard", "papers", "rand", "custom", "quick")  # suites, the strongest first


def make_report(target: Path, out: Path | None = None, figures: Path | None = None) -> Path:
    """Write a report of a run, an evaluation, a comparison or a study.

    Args:
        target: its folder, or the JSON file of an evaluation or a study.
        out: the HTML file; by default ``report.html`` beside or in the target.
        figures: folder for every picture as PNG, SVG and PDF and every table as Markdown, LaTeX and CSV; none by default.

    Returns:
        The HTML file.

    Raises:
        UserError: if the target is nothing that can be reported on or is damaged, or a file cannot be written.
    """
    try:
        page = _page(target)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"{target} is damaged: {in_one_line(error)}") from error
    written = out or (target if target.is_dir() else target.parent) / "report.html"
    write_page(page, written)
    if figures is not None:
        write_figures(page, figures)
    return written


def _page(target: Path) -> Page:
    if target.is_file():
        found = read_json(target)
        return study.page([found]) if "claim" in found else _of_evaluation(found, target)
    if (target / "run.json").exists():
        return _of_run(target)
    if (target / "comparison.json").exists():
        return comparison.page(read_json(target / "comparison.json"))
    if (target / "evaluation.json").exists():
        return _of_evaluation(read_json(target / "evaluation.json"), target)
    if studies := [found for path in sorted(target.glob("*.json")) if "claim" in (found := read_json(path))]:
        return study.page(studies)
    raise UserError(f"{target} holds no run, evaluation, comparison or study to report on")


def _of_evaluation(found: dict[str, Any], where: Path) -> Page:
    again = Section("Do it again", [Code(evaluate_command("MODEL", found))])
    parts = [*evaluation.sections(found, "evaluation"), again]
    return Page(f"Evaluation, {found['suite']}", str(where), evaluation.facts(found), evaluation.notices(found), parts)


def _of_run(folder: Path) -> Page:
    card, plan = read_json(folder / "best.json"), read_json(folder / "run.json")
    rows = read_metrics(folder / "metrics.jsonl")
    paths = sorted(folder.glob("evaluations/*/evaluation.json"))
    evaluations = sorted((read_json(path) for path in paths), key=_strength)
    threat = threat_from_dict(card["threat"])
    about = f"{card['data']['name']}, {card['model']['name']}, {threat}"
    headline = evaluation.facts(evaluations[0]) if evaluations else [*run.facts(card, rows), *_columns(card, threat)]
    warnings = [notice for found in evaluations[:1] for notice in evaluation.notices(found)]
    warnings += run.notices(rows, plan["settings"]["epochs"])
    parts: list[Section] = []
    if evaluations:
        parts += evaluation.sections(evaluations[0], "evaluation")
    parts += [pictures(folder, card), *run.sections(rows), run_again(folder, plan, evaluations)]
    return Page(f"{plan['method']['name']} on {card['data']['name']}", about, headline, warnings, parts)


def _columns(card: dict[str, Any], threat: ThreatModel) -> list[Fact]:
    """Of a table that is still there: which columns can change."""
    name = card["data"]["name"]
    try:
        source = load_data(name, "train") if name.endswith(".toml") else None
    except UserError:
        return []
    if source is None:
        return []
    reach = reach_of(source, threat)
    return [evaluation.fact_of_columns(str(reach))] if reach else []


def _strength(found: dict[str, Any]) -> tuple[int, int]:
    suite = found["suite"]
    return (_STRENGTH.index(suite) if suite in _STRENGTH else len(_STRENGTH), -found["n"])
