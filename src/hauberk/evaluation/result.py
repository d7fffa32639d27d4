"""The result of an evaluation: numbers with their intervals, whether they can be believed, and where they come from."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from hauberk.core.errors import UserError, printable
from hauberk.core.intervals import Interval, wilson_interval
from hauberk.core.io import write_result
from hauberk.evaluation.attacked_rows import AttackedRows
from hauberk.evaluation.certified import Certified
from hauberk.evaluation.cost import Cost
from hauberk.evaluation.estimate import Sampled
from hauberk.evaluation.finding import Diagnostic, warning_line, warning_mark, worst_first
from hauberk.evaluation.records import CLEAN, Records
from hauberk.evaluation.tabular_risk import Risk

FORMAT = "hauberk-evaluation/6"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Robustness of a model, measured: an upper bound, because a stronger attack may find more.

    All accuracies are fractions of all examples, in [0, 1]; intervals are Wilson's, 95 %, for the population that the examples
    were drawn from.

    Attributes:
        threat: printable threat model.
        suite: name of the suite, or "custom".
        sequential: each attack ran only on what was still robust, as AutoAttack does.
        clean_accuracy: without an attack.
        robust_accuracy: right without an attack and under every attack: the worst case per example.
        by_attack: for each attack, the fraction that is right without it and under it alone; where attacks ran in sequence,
            under it and all before. "autoattack" stands for its four attacks together.
        by_class: for each label, robust accuracy of its examples; estimated where ``robust_accuracy`` is.
        detection: for a model with a class of adversarial inputs, the fraction of adversarial inputs (PGD-20 on the margin, not
            trying to hide) that it recognises, and the fraction of clean inputs it takes for adversarial; otherwise None.
        curve: the fraction of some right examples that are robust to ever larger ε: "factor" times ε, "eps", "robust" and "n".
        diagnostics: whether the number can be believed.
        provenance: seed, batch size, passes, seconds, versions, machine.
        records: the columns that all this is counted from.
        sampled: where the last attacks ran on a sample only (suite "fast"), that sample, and the estimate of what they would
            leave of all examples; ``robust_accuracy`` is then this estimate, and so is what is counted from those attacks.
        certified: what was proved, where ``certify`` was asked for: with its ``accuracy`` and ``interval`` a lower bound.
        results: where there were several threat models, the evaluation of each, by name. All else is then of their union: an
            example is robust if it is so under all, and ``by_attack`` has the robust accuracy under each.
        risk: of rows of a table of two classes, what errors cost with and without an attack; otherwise None.
        cost: by a cost matrix, what mistakes cost, and the highest cost found for each example; None where none was given.
        class_names: of rows of a table, what each class is called; otherwise empty.
        attacked_rows: of a table, some rows before and after an attack, and how far each column can change; otherwise None.
    """

    threat: str
    suite: str
    sequential: bool
    clean_accuracy: float
    robust_accuracy: float
    by_attack: dict[str, float]
    by_class: dict[int, float]
    detection: dict[str, float] | None
    curve: list[dict[str, Any]]
    diagnostics: list[Diagnostic]
    provenance: dict[str, Any]
    records: Records
    sampled: Sampled | None = None
    certified: Certified | None = None
    results: dict[str, "Evaluation"] = field(default_factory=dict)
    risk: Risk | None = None
    cost: Cost | None = None
    class_names: tuple[str, ...] = ()
    attacked_rows: AttackedRows | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.records.n

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """For each example, in order, what was found, as plain types; made when it is first asked for.

        That is "i", "label", "predicted" and "clean_margin" (``z_y - max_{k≠y} z_k``) without an attack; "broken_by"; "run",
        "step" and "norm" (of the change, in units of the input) of that success; the least "margin" that was seen;
        "unverified", the attacks whose claimed success did not hold; and, where the last attacks ran on a sample, the "weight":
        for how many examples it stands, 0 where they have not run on it; and, where certificates were asked for,
        "certified_by", the bound that proved it robust.
        """
        clean, margin, broken_by = self.records[CLEAN], self.records.least_margin(), np.array(self.broken_by)
        seen = {"run": np.full(self.n, -1), "step": np.full(self.n, -1), "norm": np.full(self.n, -1.0)}
        unverified: list[list[str]] = [[] for _ in range(self.n)]
        for name in self.records.attacks:
            table = self.records[name]
            for key, column in seen.items():
                column[broken_by == name] = table[key][broken_by == name]
            for i in np.flatnonzero(table["known"] & table["unverified"]).tolist():
                unverified[i].append(name)
        columns = {
            "i": range(self.n), "label": clean["label"].tolist(), "predicted": clean["predicted"].tolist(),
            "clean_margin": _or_none(clean["margin"], np.isfinite(clean["margin"])), "broken_by": self.broken_by,
            **{key: _or_none(column, column >= 0) for key, column in seen.items()},
            "margin": _or_none(margin, np.isfinite(margin)), "unverified": unverified,
        }  # fmt: skip
        if self.sampled is not None:
            columns["weight"] = self.sampled.weights.tolist()
        if self.certified is not None:
            columns["certified_by"] = self.certified.proved_by
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def broken_by(self) -> list[str | None]:
        """For each example, "clean" if wrong without an attack, the first attack that broke it, or None if it is robust."""
        found = np.full(self.n, None, dtype=object)
        for name in reversed(self.records.attacks):
            found[self.records[name]["broken"]] = name
        found[~self.records.right] = CLEAN
        names: list[str | None] = found.tolist()
        return names

    @property
    def interval(self) -> Interval:
        """95 % interval of the robust accuracy; of an estimate, wider by what the sample leaves open (Zou and Donner 2008)."""
        low, high = self.interval_of(self.robust_accuracy)
        if self.sampled is None:
            return low, high
        here, (least, most) = self.robust_accuracy, self.sampled.interval
        return max(here - math.hypot(here - low, here - least), 0.0), min(here + math.hypot(high - here, most - here), 1.0)

    def interval_of(self, accuracy: float) -> Interval:
        """95 % interval of one of the accuracies over all examples."""
        return wilson_interval(round(accuracy * self.n), self.n)

    @property
    def undecided(self) -> float:
        """Fraction of all examples that is neither certified nor broken; an estimate where robust accuracy is one."""
        return self.robust_accuracy - (0.0 if self.certified is None else self.certified.accuracy)

    @property
    def accuracies(self) -> dict[str, tuple[float, Interval]]:
        """Accuracies with their 95 % intervals: "clean", by attack, "worst case", and "certified" where that was asked for."""
        exact = {
            name: (share, self.interval_of(share)) for name, share in {"clean": self.clean_accuracy, **self.by_attack}.items()
        }
        estimated = {"autoattack": (self.robust_accuracy, self.interval)} if self.sampled else {}
        proved = {} if self.certified is None else {"certified": (self.certified.accuracy, self.certified.interval)}
        return {**exact, **estimated, "worst case": (self.robust_accuracy, self.interval), **proved}

    @property
    def warnings(self) -> list[Diagnostic]:
        """Diagnostics that are not "ok", the worst first."""
        return worst_first(self.diagnostics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: what :meth:`save` writes."""
        plain = "threat suite sequential n clean_accuracy robust_accuracy by_attack examples detection curve provenance"
        return {
            "format": FORMAT,
            "bound": "upper",
            **{name: getattr(self, name) for name in plain.split()},
            "clean_interval": list(self.interval_of(self.clean_accuracy)),
            "interval": list(self.interval),
            "by_class": {str(label): accuracy for label, accuracy in self.by_class.items()},
            "estimate": self._estimate(),
            "certified": self._certified(),
            "risk": None if self.risk is None else asdict(self.risk),
            "cost": None if self.cost is None else self.cost.to_dict(),
            "class_names": list(self.class_names),
            "attacked_rows": None if self.attacked_rows is None else asdict(self.attacked_rows),
            "diagnostics": [asdict(d) for d in self.diagnostics],
        }

    def _estimate(self) -> dict[str, Any] | None:
        """What is known of the estimate, as plain types."""
        if self.sampled is None:
            return None
        found = self.sampled.estimate
        counts = {name: getattr(found, name) for name in ("survivors", "sampled", "looks")}
        return {**counts, "proved": self.sampled.proved, "interval": list(self.sampled.interval), "text": str(self.sampled)}

    def _certified(self) -> dict[str, Any] | None:
        """What was proved, as plain types."""
        if self.certified is None:
            return None
        found = self.certified
        return {
            "accuracy": found.accuracy, "interval": list(found.interval), "undecided": self.undecided,
            "by": dict(Counter(name for name in found.proved_by if name)), "seconds": found.seconds,
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, each example on a line of its own.

        Raises:
            UserError: if it cannot be written.
        """
        write_result(Path(path), self.to_dict())

    def robustbench_card(self, name: str, dataset: str, architecture: str = "") -> dict[str, Any]:
        """Return a card with the fields of RobustBench's model cards; accuracies in percent, as text, as there.

        Args:
            name: of the model.
            dataset: its data set.
            architecture: its network.

        Raises:
            UserError: for several threat models, as such a card is of one.
        """
        if self.results:
            raise UserError(f"a card is of one threat model, and there are {self.threat}: take one of results, and its card")
        percent = f"{100 * self.robust_accuracy:.2f}"
        whole = self.suite in ("standard", "papers", "fast")
        autoattack = self.by_attack["autoattack"] if self.suite == "papers" else self.robust_accuracy
        footnote = [warning_line(self.diagnostics) or "no warnings", f"{self.threat}, n = {self.n}, suite {self.suite}"]
        footnote += [str(self.sampled)] if self.sampled else []
        return {
            **dict.fromkeys(("link", "authors", "additional_data", "venue")),
            "name": name, "dataset": dataset, "architecture": architecture,
            "number_forward_passes": str(self.provenance["draws"]),
            "eps": self.threat[self.threat.index("(") + 1 : -1].split(",")[0],
            "clean_acc": f"{100 * self.clean_accuracy:.2f}", "reported": percent,
            "autoattack_acc": f"{100 * autoattack:.2f}" if whole else None, "external": None if whole else percent,
            "unreliable": bool(self.warnings),
            "footnote": "; ".join([*footnote, *(f"{d.name}: {d.measured}" for d in self.warnings)]),
        }  # fmt: skip

    def __str__(self) -> str:
        kind, also = "robust accuracy", ""
        if self.detection:
            kind += " with rejection"
            rates = (100 * self.detection[key] for key in ("detection_rate", "false_alarms"))
            also = ", recognises {:.1f} %, false alarms {:.1f} %".format(*rates)
        warned = warning_line(self.diagnostics)
        kind = f"{self.sampled}; in the population {kind}" if self.sampled else kind
        what = "attacks: " + ", ".join(self.by_attack)
        if self.results:
            each = (f"{name} {100 * r.robust_accuracy:.1f} % [{_points(r.interval)}]" for name, r in self.results.items())
            what = "of which under " + ", ".join(each)
        bounds = f"{kind} at most {100 * self.robust_accuracy:.1f} % [{_points(self.interval)}]"
        if self.certified is not None:
            floor = f"certified {100 * self.certified.accuracy:.1f} % [{_points(self.certified.interval)}]"
            most = f"{100 * self.robust_accuracy:.1f} % [{_points(self.interval)}] (attacked)"
            bounds = f"{floor} ≤ {kind} ≤ {most}, undecided {100 * self.undecided:.1f} %"
        return (f"{warned}: " if warned else "") + (
            f"{bounds} under {self.threat}, clean {100 * self.clean_accuracy:.1f} %, n = {self.n}, {what}{also}"
        )

    def __repr__(self) -> str:
        return f"<Evaluation: {self}>"


def _points(ends: Interval) -> str:
    return ", ".join(f"{100 * end:.1f}" for end in ends)


def _or_none(column: np.ndarray, there: np.ndarray) -> list[Any]:
    """Return a column as plain types, with None where there is nothing."""
    return [value if known else None for value, known in zip(column.tolist(), there.tolist(), strict=True)]


def table(results: Mapping[str, Evaluation]) -> Table:
    """Lay out evaluations of the same suite side by side: a row for each attack, a column for each model or threat model.

    Above the numbers stands, by name, which of them have warnings and why. Where attacks ran in turn, evaluations share a row
    if the attacks before it were the same, too; "-" is for what an evaluation has not.

    Args:
        results: by the name of what was evaluated.
    """
    some = next(iter(results.values()))
    warned = [f"{name}: {said}" for name, result in results.items() if (said := warning_line(result.diagnostics))]
    under = f" under {some.threat}" if all(result.threat == some.threat for result in results.values()) else ""
    title = [f"Accuracy in %{under}, n = {some.n}, with 95 % intervals", *warned]
    shown = Table(
        title=Text(printable("\n".join(title), keep="\n")),
        caption="Under attack: upper bounds, a stronger attack may find more.",
    )
    shown.add_column("")
    for name, result in results.items():
        shown.add_column(Text(printable(name) + warning_mark(result.diagnostics)), justify="right")

    def add_row(title: str, name: str, among: Collection[str] = results.keys()) -> None:
        cells = []
        for column, result in results.items():
            known = result.accuracies.get(name) if column in among else None
            cells.append(f"{100 * known[0]:.1f} [{_points(known[1])}]" if known else "-")
        shown.add_row(Text(printable(title)), *map(Text, cells))

    add_row("clean", "clean")
    rows: dict[tuple[str, ...], list[str]] = {}  # the attacks up to a row's own where they ran in turn, and whose row it is
    for name, result in results.items():
        attacks = tuple(result.by_attack)
        for k in range(len(attacks)):
            rows.setdefault(attacks[: k + 1] if result.sequential else attacks[k : k + 1], []).append(name)
    for counted, among in rows.items():
        add_row(f"+ {counted[-1]}" if len(counted) > 1 else counted[0], counted[-1], among)
    shown.add_section()
    add_row("worst case", "worst case")
    if any(result.certified for result in results.values()):
        add_row("certified, at least", "certified")
    return shown
