"""Diagnostics: whether a robustness number can be believed, as data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "warning", "invalid"]


@dataclass(frozen=True)
class Diagnostic:
    """One check of an evaluation.

    Attributes:
        name: of the check.
        measured: what was seen, in words and numbers.
        verdict: "ok", "warning", or "invalid" where the robust accuracy means nothing.
        advice: what to do, where it is not "ok".
    """

    name: str
    measured: str
    verdict: Verdict
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)


def check(name: str, measured: str, verdict: Verdict, advice: str) -> Diagnostic:
    """Make a diagnostic; the advice is kept where it is needed."""
    return Diagnostic(name, measured, verdict, "" if verdict == "ok" else advice)


def worst_first(diagnostics: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Return those that are not "ok", the invalid ones first."""
    return sorted((d for d in diagnostics if d.verdict != "ok"), key=lambda d: d.verdict != "invalid")


def doubts(diagnostics: Sequence[Diagnostic]) -> str:
    """Name all that are not "ok" in one line, the invalid ones first; empty where there are none."""
    said = {"invalid": "INVALID, not to be believed", "warning": "WARNING"}
    names = {verdict: [d.name for d in diagnostics if d.verdict == verdict] for verdict in said}
    return ", ".join(f"{said[verdict]} ({', '.join(some)})" for verdict, some in names.items() if some)


def mark(diagnostics: Sequence[Diagnostic]) -> str:
    """Return what stands behind a doubted number where there is no room for names."""
    verdicts = {d.verdict for d in diagnostics}
    return " (INVALID)" if "invalid" in verdicts else " (!)" if "warning" in verdicts else ""
