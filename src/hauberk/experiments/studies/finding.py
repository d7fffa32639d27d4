"""What a study found, beside what its source claims; written down as text, table, data and picture."""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.core.io import make_folder, write_atomically, write_json
from hauberk.core.text_table import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Finding:
    """What a study found.

    Attributes:
        study: its name.
        about: data, network, sizes.
        claim: what the source says, and which it is.
        found: what was measured, in a sentence or two with its numbers.
        agrees: whether that agrees with the claim; None where it cannot be told.
        rows: the table; all rows have the same keys. None where a number cannot be told.
        series: numbers for the picture, in plain types.
    """

    study: str
    about: str
    claim: str
    found: str
    agrees: bool | None
    rows: list[dict[str, Any]]
    series: dict[str, Any]

    @property
    def verdict(self) -> str:
        """Agreement in a word."""
        return {True: "agrees", False: "does not agree", None: "cannot be told"}[self.agrees]

    @property
    def table(self) -> TextTable:
        """What was measured."""
        return TextTable("", list(self.rows[0]), [list(row.values()) for row in self.rows])

    def as_markdown(self) -> str:
        """Return claim, finding and table."""
        said = [f"# {self.study}", f"{self.about}.", f"Claim: {self.claim}", f"Found ({self.verdict}): {self.found}."]
        return "\n\n".join([*said, self.table.to_markdown()])

    def save(self, folder: Path, draw: "Callable[[Finding], Figure]") -> None:
        """Write NAME.json, .md, .csv, and the picture as .png, .svg and .pdf.

        Raises:
            UserError: if it cannot be written.
        """
        make_folder(folder)
        write_json(folder / f"{self.study}.json", asdict(self))
        write_atomically(folder / f"{self.study}.md", self.as_markdown().encode())
        write_atomically(folder / f"{self.study}.csv", self.table.to_csv().encode())
        figure = draw(self)
        for ending in ("png", "svg", "pdf"):
            picture = io.BytesIO()
            figure.savefig(picture, format=ending, dpi=150)
            write_atomically(folder / f"{self.study}.{ending}", picture.getvalue())
