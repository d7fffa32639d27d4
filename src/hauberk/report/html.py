"""What a report is made of, and how it is written: one HTML file, and its pictures and tables as files for papers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure as Picture

from hauberk import __version__
from hauberk.core.io import make_folder, plain_name, write_atomically, write_together
from hauberk.core.text_table import TextTable, plain_text
from hauberk.experiments.figures import FIGURE_FORMATS, figure_file
from hauberk.report.figures import as_markup


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
    """A table as :class:`TextTable` has it; ``name`` is that of its files."""

    name: str
    caption: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


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
    """Write every picture as PNG, SVG and PDF, and every table as Markdown, LaTeX and CSV.

    Their names may be other people's, such as the columns of a comparison: in the folder they are plain, and each its own.
    Raises UserError if they cannot be written.
    """
    contents: dict[str, bytes] = {}
    for block in (block for section in page.sections for block in section.blocks if isinstance(block, Table)):
        files: dict[str, bytes] = {}
        if isinstance(block, Figure) and block.picture is not None:
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
