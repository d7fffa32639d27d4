"""The tally: from records of single examples to numbers."""

from dataclasses import dataclass
from typing import Any

from hauberk.attacks.suites import Suite
from hauberk.evaluation.records import CLEAN, COST, DETECTION, Record


@dataclass(frozen=True)
class Summary:
    """All records of an evaluation, sorted out.

    Attributes:
        suite: what was run.
        clean: for each example, what was seen without an attack.
        broken: for each attack, the examples it broke.
        fragile: for each attack, the examples for which a claimed success did not hold.
        verdicts: by attack and example.
        unanswered: the examples for which logits that are not finite counted as a success of an attack.
        detection: for each example, whether it was recognised.
        costs: of all sessions of all processes.
    """

    suite: Suite
    clean: dict[int, Record]
    broken: dict[str, set[int]]
    fragile: dict[str, set[int]]
    verdicts: dict[tuple[str, int], Record]
    unanswered: set[int]
    detection: dict[int, bool]
    costs: list[Record]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.clean)

    @property
    def right(self) -> set[int]:
        """Examples classified right without an attack."""
        return {i for i, record in self.clean.items() if record["right"]}

    @property
    def standing(self) -> set[int]:
        """Examples that nothing breaks."""
        return self.right - self.union(self.suite.stages)

    def union(self, attacks: Any) -> set[int]:
        """Examples that any of these attacks breaks."""
        return set().union(*(self.broken[name] for name in attacks if name in self.broken))

    def numbers(self) -> dict[str, Any]:
        """Return accuracies, and what became of each example, as fields of an :class:`Evaluation`."""
        n, right, standing = self.n, self.right, self.standing
        labels = sorted({record["label"] for record in self.clean.values()})
        members = {label: {i for i, record in self.clean.items() if record["label"] == label} for label in labels}
        return {
            "n": n,
            "clean_accuracy": len(right) / n,
            "robust_accuracy": len(standing) / n,
            "by_attack": {name: len(right - self.union(attacks)) / n for name, attacks in self.suite.columns.items()},
            "by_class": {label: len(standing & members[label]) / len(members[label]) for label in labels},
            "examples": [self._example(i) for i in sorted(self.clean)],
        }

    def detected(self, outputs: int) -> dict[str, float]:
        """Return how many adversarial inputs are recognised, and how many clean ones are taken for adversarial."""
        attacked = [seen for i, seen in self.detection.items() if self.clean[i]["right"]]
        alarms = sum(record["predicted"] == outputs - 1 for record in self.clean.values())
        return {"detection_rate": sum(attacked) / max(len(attacked), 1), "false_alarms": alarms / self.n}

    def cost(self) -> dict[str, Any]:
        """Return passes of all processes, and wall-clock seconds, over all sessions."""
        return {
            "passes": {kind: sum(record[kind] for record in self.costs) for kind in ("forwards", "backwards")},
            "seconds": round(sum(record["seconds"] for record in self.costs if record["rank"] == 0), 3),
            "sessions": sum(record["rank"] == 0 for record in self.costs),
        }

    def _example(self, i: int) -> dict[str, Any]:
        record = self.clean[i]
        row = {"i": i, "label": record["label"], "predicted": record["predicted"], "clean_margin": record["margin"]}
        broken_by = next((name for name in self.suite.stages if i in self.broken[name]), None)
        verdict = self.verdicts.get((broken_by, i), {}) if broken_by else {}
        seen = [self.verdicts[name, i]["margin"] for name in self.suite.stages if (name, i) in self.verdicts]
        return {
            **row,
            "broken_by": broken_by if record["right"] else CLEAN,
            "turn": verdict.get("turn"),
            "step": verdict.get("step"),
            "norm": verdict.get("norm"),
            "margin": min((margin for margin in (record["margin"], *seen) if margin is not None), default=None),
            "fragile": [name for name in self.suite.stages if i in self.fragile[name]],
        }


def summarize(records: list[Record], suite: Suite) -> Summary:
    """Sort records out."""
    clean = {record["i"]: record for record in records if record["attack"] == CLEAN}
    verdicts = {(record["attack"], record["i"]): record for record in records if record["attack"] in suite.stages}
    costs = {(record["rank"], record["i"]): record for record in records if record["attack"] == COST}
    return Summary(
        suite,
        clean,
        {name: {i for (attack, i), v in verdicts.items() if attack == name and v["broken"]} for name in suite.stages},
        {name: {i for (attack, i), v in verdicts.items() if attack == name and "fragile" in v} for name in suite.stages},
        verdicts,
        {i for (_, i), v in verdicts.items() if v.get("finite") is False},
        {record["i"]: record["recognised"] for record in records if record["attack"] == DETECTION},
        list(costs.values()),
    )
