"""The report of a comparison of methods."""

from math import isnan
from typing import Any

from hauberk.experiments.comparison import Comparison, heading
from hauberk.experiments.layout import difference_heading, differences_text, printed_text
from hauberk.report import charts
from hauberk.report.blocks import Block, Chart, Fact, Grid, Notice, Page, Section


def page(stored: dict[str, Any]) -> Page:
    """Return the report of what ``comparison.json`` holds."""
    found = Comparison.from_dict(stored)
    last = found.columns[-1]
    order = sorted(found.methods, key=lambda method: -found.mean(method, last))
    best = order[0]
    facts = [
        Fact(f"best under {heading(last)}", best, f"{_text(found, best, last)} %, mean and deviation over seeds"),
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
        caption = f"{heading(column)}: mean and deviation over {len(found.seeds)} seeds"
        points = {method: (found.mean(method, column), found.deviation(method, column)) for method in found.methods}
        blocks.append(Chart(f"compare-{column}", caption, charts.intervals(points, xlabel=f"{heading(column)}, %")))
    seeds = Grid(
        "seeds",
        f"{heading(last)} of every run, %",
        ["method", *(f"seed {seed}" for seed in found.seeds)],
        [[method, *(f"{value:.2f}" for value in found.values[method, last])] for method in found.methods],
    )
    parts = [Section("Methods", blocks), Section("Every run", [seeds])]
    return Page("Comparison of methods", found.about, facts, doubts, parts)


def _table(found: Comparison) -> Grid:
    differences, rows = differences_text(found), []
    for method in found.methods:
        rows.append([method, *(_text(found, method, column) for column in found.columns), differences[method]])
        if method in found.published:
            rows.append(["  paper", *printed_text(found, method), ""])
    header = ["method", *(f"{heading(column)}, %" for column in found.columns), difference_heading(found)]
    caption = f"{found.about}. Under attack: upper bounds. p: paired t-test over seeds, adjusted by Holm's procedure"
    return Grid("comparison", caption, header, rows)


def _text(found: Comparison, method: str, column: str) -> str:
    deviation = found.deviation(method, column)
    return f"{found.mean(method, column):.2f}" + ("" if isnan(deviation) else f" ± {deviation:.2f}")
