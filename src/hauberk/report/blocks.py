"""What a report is made of, whatever it is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Fact:
    """A headline number.

    Attributes:
        label: what it is.
        value: as it should be read.
        note: interval, or what it is not.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """What has to be read before the numbers: "invalid", "warning" or "info", and the text."""

    kind: str
    text: str


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the rows.

    Attributes:
        name: for files.
        caption: what it shows.
        header: of the columns.
        rows: texts or numbers.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Chart:
    """A picture with the numbers behind it, for readers who cannot see it.

    Attributes:
        name: for files.
        caption: what it shows.
        figure: of matplotlib.
        data: the numbers.
    """

    name: str
    caption: str
    figure: "Figure"
    data: Grid | None = None

    @property
    def broad(self) -> bool:
        """Whether it takes the whole width of the page."""
        return bool(self.figure.get_figwidth() > 7)


@dataclass(frozen=True)
class Code:
    """Text to copy into a terminal."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


Block: TypeAlias = Grid | Chart | Code | Text


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the page.
        about: what it is about, in a line.
        facts: headline numbers.
        notices: warnings, the worst first.
        sections: everything else.
    """

    title: str
    about: str
    facts: Sequence[Fact]
    notices: Sequence[Notice]
    sections: Sequence[Section]
