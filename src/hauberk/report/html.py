"""What a report is made of, and how it is written: one HTML file, and its pictures and tables as files for papers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure as Picture

from hauberk import __version__
from hauberk.core.figures import FIGURE_FORMATS, figure_file, put_caption
from hauberk.core.io import make_folder, plain_name, write_atomically, write_together
from hauberk.core.text_table import TextTable, plain_text
from hauberk.report.figures import as_markup

# A number with what may stand around it: a sign, a deviation, a unit, an interval, a p-value, a warning; a date; none.
_NUMBER = re.compile(
    r"[-+×]? ?\d[\d.,]*(e[-+]\d+)?( (±|to) (\d[\d.,]*|\?))?( ?%| s| points)?( \((p [^)]*|!|INVALID)\))?|\d{4}-\d\d-\d\d|-"
)


@dataclass(frozen=True)
class Metric:
    """A headline number: what it is, the number as text, and a note such as its interval."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Alert:
    """What has to be read before the numbers, and its details; the kind is "invalid", "warning" or "info"."""

    kind: str
    text: str
    details: str = ""


@dataclass(frozen=True)
class Table:
    """A table as :class:`TextTable` has it; ``name`` is that of its files, ``choose`` lets readers hide rows and columns."""

    name: str
    caption: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    choose: bool = field(default=False, kw_only=True)

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only, perhaps with a unit or a deviation: these are aligned on the right."""
        columns = list(zip(*self.rows, strict=True)) or [() for _ in self.header]
        texts = [[plain_text(cell) for cell in column] for column in columns]
        return [any(column) and all(not text or _NUMBER.fullmatch(text) for text in column) for column in texts]

    @property
    def groups(self) -> list[int]:
        """For each row, the number of the row that it belongs to: a name that begins with two spaces is of the one above."""
        heads = [not plain_text(row[0]).startswith("  ") for row in self.rows]
        return [max(0, sum(heads[: k + 1]) - 1) for k in range(len(heads))]


@dataclass(frozen=True)
class Figure(Table):
    """A picture, and the table of its numbers for readers who cannot see it, where no other table holds them."""

    picture: Picture | None = None


class Marked(str):
    """The text of a cell that stands out."""


class Code(str):
    """Text to copy into a terminal."""


Block: TypeAlias = Table | str  # a plain text is a paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report: title, subject in a line, headline numbers, alerts with the worst first, everything else, and first words."""

    title: str
    subject: str
    metrics: Sequence[Metric]
    alerts: Sequence[Alert]
    sections: Sequence[Section]
    summary: Sequence[str] = ()


def write_page(page: Page, path: Path) -> None:
    """Write one HTML file that needs nothing beside it. Raises UserError if it cannot be written."""
    loader = PackageLoader("hauberk.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": lambda block: type(block).__name__, "markup": as_markup, "text": plain_text}
    make_folder(path.parent)
    write_atomically(path, environment.get_template("page.html.j2").render(page=page, version=__version__).encode())


def write_figures(page: Page, folder: Path) -> None:
    """Write every picture as PNG, SVG and PDF, its caption inside, and every table as Markdown, LaTeX and CSV.

    Their names may be other people's, such as the columns of a comparison: in the folder they are plain, and each its own.
    Raises UserError if they cannot be written.
    """
    contents: dict[str, bytes] = {}
    for block in (block for section in page.sections for block in section.blocks if isinstance(block, Table)):
        files: dict[str, bytes] = {}
        if isinstance(block, Figure) and block.picture is not None:
            if not block.picture.get_supxlabel():  # pictures of studies have it
                put_caption(block.picture, block.caption)
            files = {ending: figure_file(block.picture, ending) for ending in FIGURE_FORMATS}
        if block.rows:
            table = TextTable("", block.header, block.rows)
            texts = {"md": table.to_markdown(), "tex": table.to_latex(), "csv": table.to_csv()}
            files |= {ending: text.encode() for ending, text in texts.items()}
        plain, taken = plain_name(block.name), {name.lower() for name in contents}
        names = (plain if k == 1 else f"{plain}-{k}" for k in count(1))
        name = next(one for one in names if taken.isdisjoint(f"{one}.{ending}".lower() for ending in files))
        contents |= {f"{name}.{ending}": content for ending, content in files.items()}
    make_folder(folder)
    write_together({folder / name: content for name, content in contents.items()})
