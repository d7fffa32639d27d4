"""The result of an evaluation: numbers with their intervals, what broke each example, and where it all comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from hauberk.evaluation.diagnostics import Diagnostic
from hauberk.evaluation.interval import wilson
from hauberk.files import write_json

FORMAT = "hauberk-evaluation/1"
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Robustness of a model, measured: an upper bound, because a stronger attack may find more.

    All accuracies are shares of all examples, in [0, 1]; intervals are Wilson's, 95 %.

    Attributes:
        threat: printable threat model.
        suite: name of the suite, or "custom".
        n: number of examples.
        clean_accuracy: without an attack.
        robust_accuracy: right without an attack and under every attack: the worst case per example.
        by_attack: for each attack, the share that is right without it and under it alone.
        by_class: for each label, robust accuracy of its examples.
        broken_by: for each example, "clean" if wrong without an attack, the name of the cheapest attack that broke it, or
            None if it stands.
        detection: for a model with a class of adversarial inputs, the share of adversarial inputs (PGD-20 on the margin, not
            trying to hide) that it recognises, and the share of clean inputs it takes for adversarial; otherwise None.
        diagnostics: whether the number can be believed.
        provenance: seed, batch size, passes, seconds, versions, machine.
    """

    threat: str
    suite: str
    n: int
    clean_accuracy: float
    robust_accuracy: float
    by_attack: dict[str, float]
    by_class: dict[int, float]
    broken_by: list[str | None]
    detection: dict[str, float] | None
    diagnostics: list[Diagnostic]
    provenance: dict[str, Any]

    @property
    def interval(self) -> Interval:
        """95 % interval of the robust accuracy."""
        return self.interval_of(self.robust_accuracy)

    def interval_of(self, accuracy: float) -> Interval:
        """95 % interval of one of the accuracies over all examples."""
        return wilson(round(accuracy * self.n), self.n)

    @property
    def warnings(self) -> list[Diagnostic]:
        """Diagnostics that are not "ok", the worst first."""
        return sorted((d for d in self.diagnostics if d.verdict != "ok"), key=lambda d: d.verdict != "invalid")

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        return {
            "format": FORMAT,
            "bound": "upper",
            "threat": self.threat,
            "suite": self.suite,
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(self.interval_of(self.clean_accuracy)),
            "robust_accuracy": self.robust_accuracy,
            "interval": list(self.interval),
            "by_attack": self.by_attack,
            "by_class": {str(label): share for label, share in self.by_class.items()},
            "broken_by": self.broken_by,
            "detection": self.detection,
            "diagnostics": [d.to_dict() for d in self.diagnostics],
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Write the result as JSON.

        Raises:
            UserError: if it cannot be written.
        """
        write_json(Path(path), self.to_dict())

    def __str__(self) -> str:
        low, high = self.interval
        found = self.detection
        also = (
            f", recognises {100 * found['detection_rate']:.1f} %, false alarms {100 * found['false_alarms']:.1f} %"
            if found
            else ""
        )
        kind = "robust accuracy with rejection" if found else "robust accuracy"
        return (
            f"{kind} at most {100 * self.robust_accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] under "
            f"{self.threat}, clean {100 * self.clean_accuracy:.1f} %, n = {self.n}, attacks: {', '.join(self.by_attack)}{also}"
        )


def table(results: Mapping[str, Evaluation]) -> Table:
    """Lay out evaluations of the same suite side by side: a row for each attack, a column for each model.

    Args:
        results: by the name of what was evaluated.
    """
    some = next(iter(results.values()))
    shown = Table(
        title=f"Accuracy in % under {some.threat}, n = {some.n}, with 95 % intervals",
        caption="Under attack: upper bounds, a stronger attack may find more.",
    )
    shown.add_column("")
    for name, result in results.items():
        shown.add_column(name + (" (!)" if result.warnings else ""), justify="right")
    shown.add_row("clean", *(_cell(result, result.clean_accuracy) for result in results.values()))
    for attack in some.by_attack:
        shown.add_row(attack, *(_cell(result, result.by_attack[attack]) for result in results.values()))
    shown.add_section()
    shown.add_row("worst case", *(_cell(result, result.robust_accuracy) for result in results.values()))
    return shown


def _cell(result: Evaluation, share: float) -> str:
    low, high = result.interval_of(share)
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
