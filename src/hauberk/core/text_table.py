"""Tables as text: one description, shown on the terminal, in Markdown, in LaTeX and as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hauberk.core.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

_MARKDOWN = {0: "**{}**", 1: "_{}_"}
_LATEX = {0: r"\textbf{{{}}}", 1: r"\underline{{{}}}"}
_TERMINAL = {0: "bold green", 1: "green"}
_FEW_COLUMNS = 8  # on the terminal more stand closer together, so that ten of them have room in 80 characters
_IN_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {c: f"${name}$" for c, name in {"±": r"\pm", "×": r"\times", "∞": r"\infty", "→": r"\to", "<": "<", ">": ">"}.items()}
    | {c: rf"$\{name}$" for c, name in {"ε": "epsilon", "λ": "lambda", "β": "beta", "κ": "kappa", "τ": "tau"}.items()}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": ""}
    | {"[": "{[}", "]": "{]}"}  # after the end of a row they would be its spacing
)
_FORMULA = tuple("=+-@\t\n")  # what a spreadsheet takes a text for that begins so


@dataclass(frozen=True)
class Ranked:
    """A cell whose place among its like is shown: the best stands out, the second-best a little.

    Attributes:
        text: what stands in the cell.
        rank: how many others are better; from 2 on, nothing is marked.
    """

    text: str
    rank: int


@dataclass(frozen=True)
class TextTable:
    """A table whose first column names its rows. Names may stand between backticks, which only Markdown shows.

    Attributes:
        title: what the table shows; may be empty.
        columns: the headings.
        rows: the cells of each row: :class:`Ranked`, text, or anything :func:`cell_text` takes. A row whose name begins with
            two spaces belongs to the row above it.
        notes: what has to be read with the numbers.
        doubts: by the name of a row or a column, why its numbers are doubted; empty where they are not. What is doubted is
            marked in every form, and the reasons stand beside the table. CSV has the reasons of rows in a column of their own.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the table in Markdown, below its title and notes and above the doubts."""
        above = _one_line(" ".join([f"{self.title}.", *self.notes] if self.title else self.notes))
        lines = [_markdown_row(map(self._marked, self.columns)), "|" + "---|" * len(self.columns)]
        for name, *cells in self.rows:
            first = f"&nbsp; {name.strip()}" if str(name).startswith("  ") else self._marked(name)
            lines.append(_markdown_row([first, *(_style(cell, _MARKDOWN).format(cell_text(cell)) for cell in cells)]))
        parts = [above, "\n".join(lines), "\n".join(self._reasons())]
        return "\n\n".join(filter(None, parts)) + "\n"

    def to_latex(self) -> str:
        """Return a ``tabular`` for a paper (needs booktabs); title, notes and doubts are comments around it."""
        above, below = ([f"% {_one_line(one)}" for one in some if one] for some in ([self.title, *self.notes], self._reasons()))
        rows = []
        for name, *cells in self.rows:
            first = (r"\quad " if str(name).startswith("  ") else "") + _in_latex(self._marked(name))
            rows.append([first, *(_style(cell, _LATEX).format(_in_latex(cell_text(cell))) for cell in cells)])
        head, *body = (" & ".join(row) + r" \\" for row in ([_in_latex(self._marked(name)) for name in self.columns], *rows))
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}"
        lines = [*above, begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *below]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Return headings and rows; numbers are not rounded, and one that cannot be told is an empty cell.

        A text that a spreadsheet would compute, because of how it begins, has a quotation mark in front, unless it is a number.
        """
        judged = any(plain_text(name) in self._by_name for name, *_ in self.rows)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(_csv_cell(self._marked(name)) for name in self.columns), *(["doubts"] if judged else [])])
        for row in self.rows:
            reason = [_csv_cell(self._by_name.get(plain_text(row[0]), ""))] if judged else []
            writer.writerow([*(_csv_cell(cell) for cell in row), *reason])
        return text.getvalue()

    def to_rich(self, width: int = 0) -> "Table":
        """Return the table for the terminal; doubts stand above the numbers, notes below.

        Words in cells are not broken, and nothing is cut off while these have room: long headings go on in the next line.

        Args:
            width: characters in a line; 0 for those of the terminal.
        """
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        few = len(self.columns) <= _FEW_COLUMNS
        title = "\n".join(plain_text(one) for one in [self.title, *self._reasons()] if one)
        shown = Table(title=Text(printable(title, keep="\n")), show_edge=few)
        shown.caption, shown.padding = Text(_one_line(" ".join(self.notes))), (0, int(few))
        headings = [_shown(self.columns[0]), *(_shown(self._marked(name)) for name in self.columns[1:])]
        names = [_shown(self._marked(name)) for name, *_ in self.rows]
        columns = [names, *([_shown(row[k]) for row in self.rows] for k in range(1, len(headings)))]
        room = (width or Console().width) - (3 * len(headings) + 1 if few else len(headings) - 1)
        for k, (heading, size) in enumerate(zip(headings, _widths(headings, columns, room), strict=True)):
            shown.add_column(Text(heading), justify="right" if k else "left", width=size, overflow="fold")
        for name, row in zip(names, self.rows, strict=True):
            cells = [Text(_shown(cell), _style(cell, _TERMINAL, usual="")) for cell in row[1:]]
            shown.add_row(Text(name), *cells, style="dim" if name.startswith("  ") else None)
        return shown

    @property
    def _by_name(self) -> dict[str, str]:
        return {plain_text(name): reason for name, reason in self.doubts.items()}

    def _marked(self, name: Any) -> str:
        """Return the name of a row or column with what says that its numbers are doubted."""
        return cell_text(name) + _mark(self._by_name.get(plain_text(name), ""))

    def _reasons(self) -> list[str]:
        return [_one_line(f"{_mark(reason).strip()} {name}: {reason}") for name, reason in self.doubts.items() if reason]


def _widths(headings: Sequence[str], columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return how wide columns are: as the longest word of their cells, and wider in turn while there is room and need."""
    words = [[len(word) + 2 * text.startswith("  ") for text in column for word in text.split()] for column in columns]
    widths = [max(some, default=1) for some in words]
    wanted = [max(map(len, (heading, *column))) for heading, column in zip(headings, columns, strict=True)]
    while growing := [k for k, width in enumerate(widths) if width < wanted[k]][: max(0, room - sum(widths))]:
        for k in growing:
            widths[k] += 1
    return widths


def cell_text(value: Any) -> str:
    """Return what stands in a cell: a float with four digits, "-" where a number cannot be told, anything else as it is."""
    if isinstance(value, Ranked):
        return value.text
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mark(reason: str) -> str:
    return " (INVALID)" if reason.startswith("INVALID") else " (!)" if reason else ""


def _style(cell: Any, styles: Mapping[int, str], usual: str = "{}") -> str:
    return styles.get(cell.rank, usual) if isinstance(cell, Ranked) else usual


def plain_text(cell: Any) -> str:
    """Return what stands in a cell or heading, without the backticks."""
    return cell_text(cell).replace("`", "")


def _shown(cell: Any) -> str:
    return printable(plain_text(cell))


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else ""
    if cell is None or isinstance(cell, int):
        return "" if cell is None else cell
    text = printable(plain_text(cell), keep="\t\n")
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _in_latex(text: str) -> str:
    return _one_line(text).translate(_IN_LATEX)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", "&#124;") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
