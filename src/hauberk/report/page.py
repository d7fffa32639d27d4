"""Writing a report: the HTML file, and its pictures and tables as files for papers."""

import base64
import csv
import io
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader

from hauberk import __version__
from hauberk.errors import UserError
from hauberk.files import write_atomically
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

    Raises:
        UserError: if they cannot be written.
    """
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Chart):
                for ending in ("png", "svg", "pdf"):
                    picture = io.BytesIO()
                    block.figure.savefig(picture, format=ending, dpi=200, facecolor="white")
                    _write(folder / f"{block.name}.{ending}", picture.getvalue())
            table = block.data if isinstance(block, Chart) else block
            if isinstance(table, Grid):
                for ending, text in (("md", _markdown(table)), ("tex", _latex(table)), ("csv", _csv(table))):
                    _write(folder / f"{table.name}.{ending}", text.encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
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
