"""What a comparison of methods found: means and deviations over seeds, and which differences chance would explain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hauberk.core.errors import UserError
from hauberk.core.io import read_json
from hauberk.core.text_table import Ranked, TextTable
from hauberk.experiments.experiment import EVALUATION, LAST_EVALUATION, Experiment
from hauberk.experiments.paper_tables import Printed, find_table

CLEAN, WORST, CERTIFIED = "clean", "worst case", "certified"
# The columns of the MAIL paper's Table 2, by what the suite "papers" calls them.
_PAPER = {CLEAN: "NAT", "pgd-100-last": "PGD", "apgd-ce": "APGD", "cw-20-last": "CW", "autoattack": "AA"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Accuracies in percent of methods trained with the same seeds.

    Attributes:
        about: what was compared, in one line.
        methods: in the order asked for.
        seeds: of the trainings.
        columns: what was measured.
        values: by method, then by column, one number for each seed.
        doubts: what diagnostics say of each method's numbers; empty if nothing.
        published: by method, the paper's numbers in the same columns, where it has this data set and network; None in a
            column that it does not have.
        baselines: by method, the one that its difference is to; a method without one is not in it.
        last: ``values`` of the last checkpoints, where these were evaluated, too.
    """

    about: str
    methods: Sequence[str]
    seeds: Sequence[int]
    columns: Sequence[str]
    values: Mapping[str, Mapping[str, Sequence[float]]]
    doubts: Mapping[str, Sequence[str]]
    published: Mapping[str, Printed]
    baselines: Mapping[str, str]
    last: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def mean(self, method: str, column: str) -> float:
        """Mean over the seeds."""
        return mean(self.values[method][column])

    def deviation(self, method: str, column: str) -> float:
        """Standard deviation over the seeds (n - 1); NaN for one seed."""
        return _deviation(self.values[method][column])

    def rank(self, method: str, column: str) -> int:
        """How many methods have a larger mean."""
        return sum(self.mean(other, column) > self.mean(method, column) for other in self.methods)

    def difference(self, method: str, column: str) -> float:
        """Mean difference to the method's baseline; 0 where it has none."""
        return self.mean(method, column) - self.mean(self.baselines.get(method, method), column)

    def p_values(self, column: str) -> dict[str, float]:
        """How probable such differences to each method's baseline are by chance.

        Paired t-test over the seeds, two-sided, adjusted for the number of differences by Holm's procedure. NaN with one seed,
        or where all differences are equal.
        """
        from scipy.stats import ttest_rel  # half a second to import

        raw = {}
        for method, baseline in self.baselines.items():
            ours, theirs = self.values[method][column], self.values[baseline][column]
            flat = len(ours) < 2 or len({round(a - b, 9) for a, b in zip(ours, theirs, strict=True)}) == 1
            raw[method] = nan if flat else float(ttest_rel(ours, theirs).pvalue)
        return holm(raw)

    def text(self, method: str, column: str) -> str:
        """Mean and, where there are several seeds, standard deviation."""
        return _mean_and_deviation(self.mean(method, column), self.deviation(method, column))

    def table(self) -> TextTable:
        """Means and deviations: a row for each method, below it the paper's where that has any; the best two stand out.

        The last column is the difference to the method's baseline, in the column before it.
        """
        last, several = self.columns[-1], len({self.methods[0], *self.baselines.values()}) > 1
        compared = f"difference in {column_title(last)}" if several else f"{column_title(last)} against `{self.methods[0]}`"
        p_values, rows = self.p_values(last), []
        for method in self.methods:
            means = [Ranked(self.text(method, column), self.rank(method, column)) for column in self.columns]
            difference = ""
            if method in p_values:
                to, p = f" to `{self.baselines[method]}`" if several else "", p_values[method]
                chance = "" if isnan(p) else f" (p {p:.3f})" if p >= 0.001 else " (p < 0.001)"
                difference = f"{self.difference(method, last):+.2f}{to}{chance}"
            rows.append([f"`{method}`", *means, difference])
            if method in self.last:
                ends = [self.last[method][column] for column in self.columns]
                gap = self.mean(method, last) - mean(ends[-1])
                rows.append(
                    ["  last epoch", *(_mean_and_deviation(mean(end), _deviation(end)) for end in ends), f"best {gap:+.2f}"]
                )
            if method in self.published:
                printed = [_mean_and_deviation(*number) if number else "" for number in self.published[method]]
                rows.append(["  paper", *printed, ""])
        notes = ["Mean ± standard deviation over seeds." if len(self.seeds) > 1 else "One seed: no deviation, no test."]
        notes.append("Under attack: upper bounds.")
        if self.last:
            notes.append("Best checkpoint by validation; below it the last one, and by how much the best is above it.")
        if len(self.seeds) > 1:
            notes.append("p: paired t-test over seeds, adjusted for the number of differences (Holm).")
        columns = ["method", *map(column_title, self.columns), compared]
        return TextTable(f"Accuracy in %: {self.about}", columns, rows, notes, self._doubts)

    def runs_table(self) -> TextTable:
        """One row for each method, seed and column."""
        checkpoints = {"": self.values} | ({", last epoch": self.last} if self.last else {})
        rows = [
            [f"`{method}`", seed, column + which, f"{value:.4f}"]
            for method in self.methods
            for which, values in checkpoints.items()
            for column in self.columns
            for seed, value in zip(self.seeds, values[method][column], strict=True)
        ]
        return TextTable("", ["method", "seed", "column", "accuracy"], rows, doubts=self._doubts)

    @property
    def _doubts(self) -> dict[str, str]:
        return {f"`{method}`": ", ".join(doubts) for method, doubts in self.doubts.items()}


def holm(raw: dict[str, float]) -> dict[str, float]:
    """Adjust p-values for being several (Holm 1979); NaN stays."""
    known = sorted((p, name) for name, p in raw.items() if not isnan(p))
    adjusted = dict(raw)
    least = 0.0
    for k, (p, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - k) * p))
        adjusted[name] = least
    return adjusted


def collect(experiments: Sequence[Experiment], out: Path, table: str = "") -> Comparison:
    """Read what finished experiments found.

    Args:
        experiments: those of one comparison; every method has the same seeds.
        out: folder of the comparison.
        table: name of the paper's table that they are, for its numbers and for what it compares with what; empty for none.

    Raises:
        UserError: if one is not finished, or cannot be read.
    """
    paper, one = find_table(table), experiments[0]
    methods, seeds = (tuple(dict.fromkeys(key)) for key in zip(*((e.name, e.seed) for e in experiments), strict=True))
    found = {(each.name, each.seed): read_json(each.folder(out) / EVALUATION) for each in experiments}
    ended = {(each.name, each.seed): read_json(each.folder(out) / LAST_EVALUATION) for each in experiments if each.last}
    first = next(iter(found.values()))

    def accuracies(of: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, dict[str, tuple[float, ...]]]:
        return {
            method: {column: tuple(100 * _accuracy(of[method, seed], column) for seed in seeds) for column in columns}
            for method in methods
        }

    try:
        names = (CLEAN, *first["by_attack"], *([] if "autoattack" in first["by_attack"] else [WORST]))
        columns = tuple(_PAPER) if one.evaluation.suite == "papers" and not one.evaluation.attacks else names
        columns = (*columns[:1], CERTIFIED, *columns[1:]) if first["certified"] else columns
        values, last = accuracies(found), accuracies(ended) if ended else {}
        doubts = {method: _doubts([found[method, seed] for seed in seeds]) for method in methods}
        for method in methods if ended else ():
            doubts[method] += [f"last epoch: {doubt}" for doubt in _doubts([ended[method, seed] for seed in seeds])]
    except (KeyError, TypeError) as error:
        raise UserError(f"an evaluation in {out} is damaged or of another suite: {error}") from error
    size = f"{one.subset.train_size:,} training examples, " if one.subset.train_size else ""
    size += f"{one.settings['epochs']} epochs, " if "epochs" in one.settings else ""
    about = f"{one.data.name}, {one.model.name}, {one.threat_model}, {size}{len(seeds)} seed(s), {first['n']:,} test examples"
    whole = columns == tuple(_PAPER) and not size  # as the paper has it
    printed = paper.printed.get((one.data.name, one.model.name), {}) if whole else {}
    return Comparison(about, methods, seeds, columns, values, doubts, printed, _baselines(methods, paper.baselines), last)


def column_title(column: str) -> str:
    """Return what a column is called in a table."""
    return _PAPER.get(column, column)


def _accuracy(found: dict[str, Any], column: str) -> float:
    if column == CLEAN:
        return float(found["clean_accuracy"])
    if column == CERTIFIED:
        return float(found["certified"]["accuracy"])
    return float(found["robust_accuracy"] if column == WORST else found["by_attack"][column])


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else nan


def _mean_and_deviation(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" + ("" if isnan(deviation) else f" ± {deviation:.2f}")


def _doubts(found: list[dict[str, Any]]) -> list[str]:
    """Return the names of diagnostics that are not "ok", the invalid ones first, with the number of seeds."""
    verdicts = {"invalid": "INVALID: ", "warning": ""}
    names = [verdicts[v] + d["name"] for v in verdicts for one in found for d in one["diagnostics"] if d["verdict"] == v]
    return [f"{name} ({names.count(name)} of {len(found)})" for name in dict.fromkeys(names)]


def _baselines(methods: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return what each method's difference is to: what is wanted, if it is among the methods, otherwise the first method."""
    found = {method: wanted[method] for method in methods if wanted.get(method) in methods}
    others = (method for method in methods[1:] if method not in {*found, *found.values()})
    return found | dict.fromkeys(others, methods[0])
