"""What diagnostics find, and how it is said in a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "warning", "invalid"]


@dataclass(frozen=True)
class Finding:
    """What the function of a diagnostic returns.

    Attributes:
        value: what is compared with the thresholds; the larger, the worse.
        measured: what was seen, in words and numbers.
        name: in place of the name of the diagnostic, where it finds several things.
    """

    value: float
    measured: str
    name: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """What one diagnostic of an evaluation found.

    Attributes:
        name: of the diagnostic.
        measured: what was seen, in words and numbers.
        verdict: "ok", "warning", or "invalid" where the robust accuracy means nothing.
        advice: what to do, where it is not "ok".
    """

    name: str
    measured: str
    verdict: Verdict
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.verdict.upper()} {self.name}: {self.measured}" + (f"; {self.advice}" if self.advice else "")


def worst_first(diagnostics: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return those that are not "ok", the invalid ones first."""
    return sorted((d for d in diagnostics if d.verdict != "ok"), key=lambda d: d.verdict != "invalid")


def warning_line(diagnostics: Sequence[Diagnostic]) -> str:
    """Name all that are not "ok" in one line, the invalid ones first; empty where there are none."""
    said = {"invalid": "INVALID, not to be believed", "warning": "WARNING"}
    names = {verdict: [d.name for d in diagnostics if d.verdict == verdict] for verdict in said}
    return ", ".join(f"{said[verdict]} ({', '.join(some)})" for verdict, some in names.items() if some)


def warning_mark(diagnostics: Sequence[Diagnostic]) -> str:
    """Return what stands behind a number with warnings where there is no room for their names."""
    verdicts = {d.verdict for d in diagnostics}
    return " (INVALID)" if "invalid" in verdicts else " (!)" if "warning" in verdicts else ""
