"""The report of one or more studies."""

from collections.abc import Sequence
from typing import Any

from hauberk.core.text_table import cell_text
from hauberk.experiments.studies import StudyResult, find_study
from hauberk.report.blocks import Block, Chart, Fact, Grid, Page, Section, Text


def page(stored: Sequence[dict[str, Any]]) -> Page:
    """Return the report of what the JSON files of studies hold."""
    found = [StudyResult(**one) for one in stored]
    verdicts = [one.verdict for one in found]
    facts = [Fact(verdict, str(verdicts.count(verdict)), "of the studies") for verdict in dict.fromkeys(sorted(verdicts))]
    parts = []
    for one in found:
        header = list(one.rows[0])
        rows = [[cell_text(row[name]) for name in header] for row in one.rows]
        blocks: list[Block] = [
            Text(f"Claim: {one.claim}"),
            Text(f"Found ({one.verdict}): {one.found}."),
            Chart(one.study, f"{one.study}: {one.about}", find_study(one.study).draw(one)),
            Grid(one.study, one.about, header, rows),
        ]
        parts.append(Section(one.study, blocks))
    title = f"Study {found[0].study}" if len(found) == 1 else f"{len(found)} studies"
    return Page(title, found[0].about, facts, [], parts)
