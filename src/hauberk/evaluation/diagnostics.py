"""Diagnostics: whether a robustness number can be believed, as data."""

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
