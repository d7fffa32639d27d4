"""The report of a comparison: which method is best under attack, beyond chance or not, and what everything is compared by."""

from math import ceil, floor, isnan
from typing import Any

from hauberk.experiments.comparison import Comparison, column_title
from hauberk.experiments.paired_tests import CLEAN
from hauberk.report.figures import add_references, bars
from hauberk.report.html import Alert, Figure, Metric, Page, Section, Table
from hauberk.report.references import published_lines

_CHANCE = 0.05  # p-values below are called beyond chance


def comparison_page(stored: dict[str, Any]) -> Page:
    """Return the report of a comparison: the JSON that ``Comparison.save`` writes."""
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
    runs = [[method, *(f"{value:.2f}" for value in found.values[method][last])] for method in found.methods]
    seeds = Table("seeds", f"{column_title(last)} of every run, %", ["method", *(f"seed {seed}" for seed in found.seeds)], runs)
    sections = [
        Section("Methods", [Table("comparison", caption, header, table.rows, choose=True), *_pictures(found, what)]),
        Section("Every run", [seeds]),
    ]
    return Page("Comparison of methods", found.about, metrics, alerts, sections, summarise_comparison(found))


def _pictures(found: Comparison, what: str) -> list[Figure]:
    """Draw each column, all on the same axis, so that a difference looks as large as it is in every one of them.

    The last one, under the strongest attack, has lines at published numbers where the data and the threat model are theirs.
    """
    ends = {
        column: {method: _reach(found.mean(method, column), found.deviation(method, column)) for method in found.methods}
        for column in found.columns
    }
    published = published_lines(found.data, found.threat) if found.columns[-1] != CLEAN else {}
    reached = [*published.values(), *(end for by_method in ends.values() for pair in by_method.values() for end in pair)]
    limits = max(0, 10 * floor(min(reached) / 10)), min(100, 10 * ceil(max(reached) / 10))
    pictures = []
    for column in found.columns:
        title, means = column_title(column), {method: found.mean(method, column) for method in found.methods}
        picture = bars(means, list(ends[column].values()), points=True, xlabel=f"{title}, %", xlim=limits)
        caption = f"{title}: {what}. {found.about}"
        if published and column == found.columns[-1]:
            add_references(picture, published)
            caption += ". Lines: published robust accuracies under AutoAttack, on all test images"
        pictures.append(Figure(f"compare-{column}", caption, picture=picture))
    return pictures


def _reach(mean: float, deviation: float) -> tuple[float, float]:
    return (mean, mean) if isnan(deviation) else (mean - deviation, mean + deviation)


def summarise_comparison(found: Comparison) -> list[str]:
    """Say in a few sentences which method is best, what chance would explain, and what the numbers cannot say."""
    return [_best(found), *_beyond_chance(found), *_late(found), _belief(found)]


def _best(found: Comparison) -> str:
    last = found.columns[-1]
    ranked = sorted(found.methods, key=lambda method: -found.mean(method, last))
    best, worst = ranked[0], ranked[-1]
    clean = f" ({found.mean(best, CLEAN):.1f} % without an attack)" if CLEAN in found.columns and last != CLEAN else ""
    least = f"; the least, {worst}, for {found.mean(worst, last):.1f} %" if len(ranked) > 1 else ""
    of = f"Of {len(ranked)} methods {best}" if len(ranked) > 1 else best
    return f"{of} is right most often under attack ({column_title(last)}): for {found.mean(best, last):.1f} %{clean}{least}."


def _beyond_chance(found: Comparison) -> list[str]:
    last, seeds = found.columns[-1], len(found.seeds)
    known = {method: p for method, p in found.p_values(last).items() if not isnan(p)}
    if not found.baselines:
        return []
    if not known:
        return ["Whether the differences are more than chance cannot be said: this takes several seeds, or the examples."]
    beyond = [
        f"{method} over {found.baselines[method]} by {found.difference(method, last):+.1f} points"
        for method, p in known.items()
        if p < _CHANCE
    ]
    rest = len(known) - len(beyond)
    over = f"over {seeds} seeds" if seeds > 1 else "over the test examples of one training each, not over trainings"
    if not beyond:
        return [f"No difference is more than chance ({len(known)} tested {over}, p adjusted by Holm's procedure)."]
    could = f"; {rest} other{'s' if rest > 1 else ''} could be chance" if rest else ""
    return [f"More than chance ({over}, p below {_CHANCE} after Holm's procedure): {', '.join(beyond)}{could}."]


def _late(found: Comparison) -> list[str]:
    if not found.last:
        return []
    last = found.columns[-1]
    lost = {
        method: found.mean(method, last) - sum(by_column[last]) / len(by_column[last])
        for method, by_column in found.last.items()
    }
    most = max(lost, key=lambda method: lost[method])
    return [f"From the best epoch to the last one {most} loses the most, {lost[most]:.1f} points; the best ones count."]


def _belief(found: Comparison) -> str:
    doubted = [method for method, names in found.doubts.items() if names]
    upper = "Numbers under attack are upper bounds: a stronger attack may find more, and not equally much for each method."
    if not doubted:
        return f"Can it be believed? No evaluation raised a warning. {upper}"
    return f"Can it be believed? With care: there are warnings about {', '.join(doubted)}. {upper}"
