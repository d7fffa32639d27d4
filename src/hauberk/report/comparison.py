"""The report of a comparison of methods."""

from typing import Any

from hauberk.core.text_table import Ranked
from hauberk.experiments.comparison import Comparison, column_title
from hauberk.report import charts
from hauberk.report.blocks import Block, Chart, Fact, Grid, Notice, Page, Section


def page(stored: dict[str, Any]) -> Page:
    """Return the report of what ``comparison.json`` holds."""
    found = Comparison(**stored)
    last = found.columns[-1]
    order = sorted(found.methods, key=lambda method: -found.mean(method, last))
    best = order[0]
    facts = [
        Fact(f"best under {column_title(last)}", best, f"{found.text(best, last)} %, mean and deviation over seeds"),
        Fact("methods", str(len(found.methods)), ", ".join(found.methods)),
        Fact("seeds", str(len(found.seeds)), "differences are paired over them" if len(found.seeds) > 1 else "no deviations"),
    ]
    doubts = [
        Notice("warning", f"{method}: {'; '.join(said)}. Look at its evaluations before its numbers.")
        for method, said in found.doubts.items()
        if said
    ]
    blocks: list[Block] = [_table(found)]
    for column in found.columns:
        caption = f"{column_title(column)}: mean and deviation over {len(found.seeds)} seeds"
        points = {method: (found.mean(method, column), found.deviation(method, column)) for method in found.methods}
        blocks.append(Chart(f"compare-{column}", caption, charts.intervals(points, xlabel=f"{column_title(column)}, %")))
    seeds = Grid(
        "seeds",
        f"{column_title(last)} of every run, %",
        ["method", *(f"seed {seed}" for seed in found.seeds)],
        [[method, *(f"{value:.2f}" for value in found.values[method][last])] for method in found.methods],
    )
    parts = [Section("Methods", blocks), Section("Every run", [seeds])]
    return Page("Comparison of methods", found.about, facts, doubts, parts)


def _table(found: Comparison) -> Grid:
    shown = found.table()
    texts = [[cell.text if isinstance(cell, Ranked) else cell.replace("`", "") for cell in row] for row in shown.rows]
    first, *columns, last = shown.columns
    header = [first, *(f"{column}, %" for column in columns), last.replace("`", "")]
    caption = f"{found.about}. Under attack: upper bounds. p: paired t-test over seeds, adjusted by Holm's procedure"
    return Grid("comparison", caption, header, texts)
