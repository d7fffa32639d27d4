"""A comparison as a table: on the terminal, in Markdown, in LaTeX, as CSV."""

import csv
import io
from math import isnan

from rich.table import Table

from hauberk.experiments.comparison import Comparison, heading

_MARKS = {0: "**{}**", 1: "_{}_"}  # best and second-best, in Markdown
_STYLES = {0: "bold green", 1: "green"}
_LATEX = {0: r"\textbf{{{}}}", 1: r"\underline{{{}}}"}


def rich_table(found: Comparison) -> Table:
    """Lay out a comparison for the terminal: best in bold, second-best in plain green."""
    shown = Table(title=f"Accuracy in %: {found.about}", caption=_caption(found))
    shown.add_column("method", min_width=max(len(word) for method in found.methods for word in method.split()))
    for column in found.columns:
        shown.add_column(heading(column), justify="right")
    shown.add_column(difference_heading(found), justify="right")
    differences = differences_text(found)
    for method in found.methods:
        cells = []
        for column in found.columns:
            style = _STYLES.get(found.rank(method, column))
            text = _number(found, method, column)
            cells.append(f"[{style}]{text}[/]" if style else text)
        shown.add_row(method + (" (!)" if found.doubts[method] else ""), *cells, differences[method])
        if method in found.published:
            shown.add_row("  paper", *printed_text(found, method), "", style="dim")
    return shown


def as_markdown(found: Comparison) -> str:
    """Return the table, what it is of, and what is doubted."""
    names = [heading(column) for column in found.columns]
    lines = [
        f"Accuracy in %: {found.about}. {_caption(found)}",
        "",
        f"| method | {' | '.join(names)} | {difference_heading(found, '`')} |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    differences = differences_text(found, "`")
    for method in found.methods:
        cells = [
            _MARKS.get(found.rank(method, column), "{}").format(_number(found, method, column)) for column in found.columns
        ]
        lines.append(f"| `{method}`{' !' if found.doubts[method] else ''} | {' | '.join(cells)} | {differences[method]} |")
        if method in found.published:
            lines.append(f"| &nbsp; paper | {' | '.join(printed_text(found, method))} | |")
    lines += ["", *(f"! `{method}`: {', '.join(doubts)}" for method, doubts in found.doubts.items() if doubts)]
    return "\n".join(lines).rstrip() + "\n"


def as_latex(found: Comparison) -> str:
    """Return a ``tabular`` for a paper (needs booktabs): best in bold, second-best underlined."""
    names = [heading(column) for column in found.columns]
    lines = [rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule", " & ".join(["method", *names]) + r" \\", r"\midrule"]
    for method in found.methods:
        cells = []
        for column in found.columns:
            text = f"${found.mean(method, column):.2f}" + (
                "$" if len(found.seeds) < 2 else rf" \pm {found.deviation(method, column):.2f}$"
            )
            cells.append(_LATEX.get(found.rank(method, column), "{}").format(text))
        lines.append(" & ".join([method.replace("_", r"\_"), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def as_csv(found: Comparison) -> str:
    """Return one row for each method, seed and column."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["method", "seed", "column", "accuracy"])
    for method in found.methods:
        for column in found.columns:
            for seed, value in zip(found.seeds, found.values[method, column], strict=True):
                rows.writerow([method, seed, column, f"{value:.4f}"])
    return text.getvalue()


def _number(found: Comparison, method: str, column: str) -> str:
    deviation = found.deviation(method, column)
    return f"{found.mean(method, column):.2f}" + ("" if isnan(deviation) else f" ± {deviation:.2f}")


def printed_text(found: Comparison, method: str) -> list[str]:
    """Return the paper's number in each column, empty where it has none."""
    return [f"{number[0]:.2f} ± {number[1]:.2f}" if number else "" for number in found.published[method]]


def difference_heading(found: Comparison, quote: str = "") -> str:
    """Return the heading over the last column's differences; ``quote`` stands around names."""
    last, baselines = heading(found.columns[-1]), {found.methods[0], *found.against.values()}
    return f"difference in {last}" if len(baselines) > 1 else f"{last} against {quote}{found.methods[0]}{quote}"


def differences_text(found: Comparison, quote: str = "") -> dict[str, str]:
    """Return the last column's difference of each method to its baseline, which is named where it is not the heading's."""
    column, against = found.columns[-1], found.against
    several = len({found.methods[0], *against.values()}) > 1
    texts = dict.fromkeys(found.methods, "")
    for name, p in found.p_values(column).items():
        to = f" to {quote}{against[name]}{quote}" if several else ""
        texts[name] = _difference(found.difference(name, column), p, to)
    return texts


def _difference(points: float, p: float, to: str) -> str:
    return f"{points:+.2f}{to}" + ("" if isnan(p) else f" (p {p:.3f})" if p >= 0.001 else " (p < 0.001)")


def _caption(found: Comparison) -> str:
    spread = "Mean ± standard deviation over seeds. " if len(found.seeds) > 1 else "One seed: no deviation, no test. "
    test = "p: paired t-test over seeds, adjusted for the number of differences (Holm)." if len(found.seeds) > 1 else ""
    return f"{spread}Under attack: upper bounds. {test}".strip()
