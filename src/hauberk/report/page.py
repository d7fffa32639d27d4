"""Writing a report: the HTML file, and its pictures and tables as files for papers."""

import base64
import csv
import io
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from jinja2 import Environment, PackageLoader

from hauberk import __version__
from hauberk.core.io import make_folder, plain_name, write_atomically
from hauberk.report.blocks import Chart, Grid, Page
from hauberk.report.charts import as_svg


def write_page(page: Page, path: Path) -> None:
    """Write one HTML file that needs nothing beside it.

    Raises:
        UserError: if it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("hauberk.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg": _picture, "kind": lambda block: type(block).__name__, "anchor": _anchor}
    html = environment.get_template("page.html").render(page=page, version=__version__)
    _write(path, html.encode())


def write_figures(page: Page, folder: Path) -> None:
    """Write every picture as PNG, SVG and PDF, and every table as Markdown, LaTeX and CSV.

    Their names may be other people's, such as the columns of a comparison: in the folder they are plain, and each its own.

    Raises:
        UserError: if they cannot be written.
    """
    taken: set[str] = set()
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Chart):
                pictures = {}
                for ending in ("png", "svg", "pdf"):
                    picture = io.BytesIO()
                    block.figure.savefig(picture, format=ending, dpi=200, facecolor="white")
                    pictures[ending] = picture.getvalue()
                _write_each(folder, block.name, pictures, taken)
            table = block.data if isinstance(block, Chart) else block
            if isinstance(table, Grid):
                texts = {"md": _markdown(table), "tex": _latex(table), "csv": _csv(table)}
                _write_each(folder, table.name, {ending: text.encode() for ending, text in texts.items()}, taken)


def _write_each(folder: Path, name: str, contents: dict[str, bytes], taken: set[str]) -> None:
    """Write what a name stands for, by ending, into files that are not ``taken`` yet."""
    name = _free_name(plain_name(name), list(contents), taken)
    for ending, content in contents.items():
        _write(folder / f"{name}.{ending}", content)


def _free_name(name: str, endings: Sequence[str], taken: set[str]) -> str:
    tries = (name if k == 1 else f"{name}-{k}" for k in count(1))
    free = next(one for one in tries if taken.isdisjoint(f"{one}.{ending}".lower() for ending in endings))
    taken.update(f"{free}.{ending}".lower() for ending in endings)
    return free


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    write_atomically(path, content)


def _picture(chart: Chart) -> str:
    """SVG for the page; a picture made of pixels as PNG inside."""
    if any(axes.images for axes in chart.figure.axes):
        image = io.BytesIO()
        chart.figure.savefig(image, format="png", dpi=150, facecolor="white")
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'
    return as_svg(chart.figure, _anchor(chart.name))


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _markdown(table: Grid) -> str:
    lines = [f"| {' | '.join(table.header)} |", "|" + "---|" * len(table.header)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in table.rows)]) + "\n"


def _latex(table: Grid) -> str:
    def line(cells: list[str]) -> str:
        return " & ".join(re.sub(r"([&%$#_{}])", r"\\\1", cell).replace("±", r"$\pm$") for cell in cells) + r" \\"

    columns = "l" + "r" * (len(table.header) - 1)
    body = [line([str(cell) for cell in row]) for row in table.rows]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(list(table.header)), r"\midrule", *body,
                      r"\bottomrule", r"\end{tabular}"]) + "\n"  # fmt: skip


def _csv(table: Grid) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()
