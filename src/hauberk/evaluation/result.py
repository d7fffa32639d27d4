"""The result of an evaluation: numbers with their intervals, what broke each example, and where it all comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hauberk.core.io import write_json
from hauberk.evaluation.diagnostics import Diagnostic, doubts, mark, worst_first
from hauberk.evaluation.interval import wilson_interval

FORMAT = "hauberk-evaluation/2"
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
        sequential: each attack ran only on what stood, as AutoAttack does.
        by_attack: for each attack, the share that is right without it and under it alone; where attacks ran in turn, under it
            and all before. "autoattack" stands for its four attacks together.
        by_class: for each label, robust accuracy of its examples.
        examples: for each example, in order: "i", "label", "predicted" and "clean_margin" (``z_y - max_{k≠y} z_k``) without an
            attack; "broken_by"; "turn", "step" and "norm" (of the change, in units of the input) of that success; the least
            "margin" that was seen; and the attacks whose claimed success did not hold, "fragile".
        detection: for a model with a class of adversarial inputs, the share of adversarial inputs (PGD-20 on the margin, not
            trying to hide) that it recognises, and the share of clean inputs it takes for adversarial; otherwise None.
        curve: the share of some clean-right examples that stand ever larger ε: "factor" times ε, "eps", "standing", "n".
        diagnostics: whether the number can be believed.
        provenance: seed, batch size, passes, seconds, versions, machine.
    """

    threat: str
    suite: str
    sequential: bool
    n: int
    clean_accuracy: float
    robust_accuracy: float
    by_attack: dict[str, float]
    by_class: dict[int, float]
    examples: list[dict[str, Any]]
    detection: dict[str, float] | None
    curve: list[dict[str, Any]]
    diagnostics: list[Diagnostic]
    provenance: dict[str, Any]

    @property
    def broken_by(self) -> list[str | None]:
        """For each example, "clean" if wrong without an attack, the first attack that broke it, or None if it stands."""
        return [example["broken_by"] for example in self.examples]

    @property
    def interval(self) -> Interval:
        """95 % interval of the robust accuracy."""
        return self.interval_of(self.robust_accuracy)

    def interval_of(self, accuracy: float) -> Interval:
        """95 % interval of one of the accuracies over all examples."""
        return wilson_interval(round(accuracy * self.n), self.n)

    @property
    def warnings(self) -> list[Diagnostic]:
        """Diagnostics that are not "ok", the worst first."""
        return worst_first(self.diagnostics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        return {
            "format": FORMAT,
            "bound": "upper",
            "threat": self.threat,
            "suite": self.suite,
            "sequential": self.sequential,
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(self.interval_of(self.clean_accuracy)),
            "robust_accuracy": self.robust_accuracy,
            "interval": list(self.interval),
            "by_attack": self.by_attack,
            "by_class": {str(label): share for label, share in self.by_class.items()},
            "examples": self.examples,
            "detection": self.detection,
            "curve": self.curve,
            "diagnostics": [d.to_dict() for d in self.diagnostics],
            "provenance": self.provenance,
        }

    def save(self, path: str | Path) -> None:
        """Write the result as JSON.

        Raises:
            UserError: if it cannot be written.
        """
        write_json(Path(path), self.to_dict())

    def robustbench_card(self, name: str, dataset: str, architecture: str = "") -> dict[str, Any]:
        """Return a card with the fields of RobustBench's model cards; accuracies in percent, as text, as there.

        Args:
            name: of the model.
            dataset: its data set.
            architecture: its network.
        """
        percent = f"{100 * self.robust_accuracy:.2f}"
        whole = self.suite in ("standard", "papers")
        autoattack = self.by_attack["autoattack"] if self.suite == "papers" else self.robust_accuracy
        return {
            "link": None,
            "name": name,
            "authors": None,
            "additional_data": None,
            "number_forward_passes": str(self.provenance["draws"]),
            "dataset": dataset,
            "venue": None,
            "architecture": architecture,
            "eps": self.threat[self.threat.index("(") + 1 : -1].split(",")[0],
            "clean_acc": f"{100 * self.clean_accuracy:.2f}",
            "reported": percent,
            "autoattack_acc": f"{100 * autoattack:.2f}" if whole else None,
            "external": None if whole else percent,
            "unreliable": bool(self.warnings),
            "footnote": "; ".join(
                [
                    doubts(self.diagnostics) or "no warnings",
                    f"{self.threat}, n = {self.n}, suite {self.suite}",
                    *(f"{d.name}: {d.measured}" for d in self.warnings),
                ]
            ),
        }

    def __str__(self) -> str:
        low, high = self.interval
        found = self.detection
        also = (
            f", recognises {100 * found['detection_rate']:.1f} %, false alarms {100 * found['false_alarms']:.1f} %"
            if found
            else ""
        )
        kind = "robust accuracy with rejection" if found else "robust accuracy"
        doubted = doubts(self.diagnostics)
        return (f"{doubted}: " if doubted else "") + (
            f"{kind} at most {100 * self.robust_accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] under "
            f"{self.threat}, clean {100 * self.clean_accuracy:.1f} %, n = {self.n}, attacks: {', '.join(self.by_attack)}{also}"
        )


def table(results: Mapping[str, Evaluation]) -> Table:
    """Lay out evaluations of the same suite side by side: a row for each attack, a column for each model.

    Above the numbers stands, by name, which of them are doubted and why.

    Args:
        results: by the name of what was evaluated.
    """
    some = next(iter(results.values()))
    doubted = {name: said for name, result in results.items() if (said := doubts(result.diagnostics))}
    shown = Table(
        title="\n".join(
            [
                escape(f"Accuracy in % under {some.threat}, n = {some.n}, with 95 % intervals"),
                *(escape(f"{name}: {said}") for name, said in doubted.items()),
            ]
        ),
        caption="Under attack: upper bounds, a stronger attack may find more.",
    )
    shown.add_column("")
    for name, result in results.items():
        shown.add_column(name + mark(result.diagnostics), justify="right")
    shown.add_row("clean", *(_cell(result, result.clean_accuracy) for result in results.values()))
    for k, attack in enumerate(some.by_attack):
        shown.add_row(
            f"+ {attack}" if some.sequential and k else attack,
            *(_cell(result, result.by_attack[attack]) for result in results.values()),
        )
    shown.add_section()
    shown.add_row("worst case", *(_cell(result, result.robust_accuracy) for result in results.values()))
    return shown


def _cell(result: Evaluation, share: float) -> str:
    low, high = result.interval_of(share)
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
