"""What a study found: its sentences, table and picture, and the files that they are written to."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hauberk.core.figures import FIGURE_FORMATS, figure_file, put_caption, small_text
from hauberk.core.io import json_file, make_folder, write_together
from hauberk.core.text_table import TextTable

# What stands below a table with one of these words in a heading.
_WORDS = {
    "±": "±: standard error over seeds and examples.",
    "PGD-20": "PGD-20: right under 20 steps of ε/4.",
    "LPS": "LPS: least number of PGD steps that break an example.",
    "stuck": "stuck: not broken, though the other attack breaks it.",
    "PM": "PM: probabilistic margin, nat of x, adv of x'.",
    "critical": "critical: broken by stronger attacks though PGD does not.",
    "effective": "effective: (Σ ω)² / Σ ω², in percent of the examples.",
    "alignment": "alignment: of input and gradient, 1 for parallel ones.",
    "roughness": "roughness: difference of neighbouring pixels of the gradient over its mean size.",
}


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What a study found, beside what its source claims.

    Attributes:
        found: what was measured, in a sentence or two with its numbers.
        sentences: those of the claim, each with the difference that it names, as :func:`sentence` tests it.
        rows: the table; all rows have the same keys. None where a number cannot be told.
        series: numbers for the picture, in plain types.
        about: on which examples, if not simply the test examples; :meth:`Study.run` puts data, network and sizes before it.
        study: its name. This, the claim and the verdict are given by :meth:`Study.run`.
        claim: what the source says, and which it is.
        verdict: "agrees" if all sentences do, "does not agree" if one does not, otherwise "cannot be told".
        caption: what lines and marks of the picture are; it stands below the picture, after ``about``.
        examples: rows about single examples, all with the same keys, where the study names them.
        strong: what the stronger attacks are; given by :meth:`Study.run`.
    """

    found: str
    sentences: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    series: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    study: str = ""
    claim: str = ""
    verdict: str = ""
    caption: str = ""
    examples: list[dict[str, Any]] = field(default_factory=list)
    strong: str = ""

    def column(self, name: str) -> list[Any]:
        """Return a column of the rows."""
        return [row[name] for row in self.rows]

    @property
    def table(self) -> TextTable:
        """The rows as a table, with what the words in its headings mean."""
        words = _WORDS | ({"strong": f"strong: right under {self.strong}."} if self.strong else {})
        notes = [what for word, what in words.items() if any(word in name for name in self.rows[0])]
        return TextTable("", list(self.rows[0]), [list(row.values()) for row in self.rows], notes)

    @property
    def tested(self) -> TextTable:
        """The sentences of the claim as a table."""
        rows = [
            [one["sentence"], f"{_signed(one['difference'])} ± {_signed(one['±'], '')} {one['unit']}", one["verdict"]]
            for one in self.sentences
        ]
        return TextTable("", ["the claim says", "difference", "verdict"], rows)

    def to_markdown(self) -> str:
        """Return claim, finding, what was tested, and the table."""
        said = [f"# {self.study}", f"{self.about}.", f"Claim: {self.claim}", f"Found ({self.verdict}): {self.found}."]
        tables = [self.tested, self.table] if self.sentences else [self.table]
        return "\n\n".join([*said, *(table.to_markdown().rstrip() for table in tables)]) + "\n"

    def picture(self, draw: "Callable[[StudyResult], Figure]") -> Figure:
        """Return what ``draw`` makes of it, with letters for one column of a paper, and the caption below."""
        with small_text():
            figure = draw(self)
        put_caption(figure, " ".join(filter(None, [f"{self.study}: {self.about}.", self.caption])))
        return figure

    def save(self, folder: Path, draw: "Callable[[StudyResult], Figure]") -> None:
        """Write NAME.json, .md, .csv, and the picture as .png, .svg and .pdf; NAME-examples.csv where examples are named.

        Raises:
            UserError: if it cannot be written.
        """
        make_folder(folder)
        figure = self.picture(draw)
        files = {"json": json_file(asdict(self)), "md": self.to_markdown().encode(), "csv": self.table.to_csv().encode()}
        files |= {ending: figure_file(figure, ending) for ending in FIGURE_FORMATS}
        contents = {folder / f"{self.study}.{ending}": content for ending, content in files.items()}
        if self.examples:
            listed = TextTable("", list(self.examples[0]), [list(row.values()) for row in self.examples])
            contents[folder / f"{self.study}-examples.csv"] = listed.to_csv().encode()
        write_together(contents)


def _signed(number: float | None, sign: str = "+") -> str:
    """Return a number with as many digits as a reader wants, "?" where it cannot be told."""
    if number is None:
        return "?"
    return f"{number:{sign}.1f}" if abs(number) >= 1 else f"{number:{sign}.2g}"
