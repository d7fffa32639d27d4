"""What a comparison of methods found: means and deviations over seeds, and which differences chance would explain."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from hauberk.core.errors import UserError
from hauberk.core.intervals import wilson_interval
from hauberk.core.io import json_file, make_folder, read_json, write_together
from hauberk.core.text_table import Ranked, TextTable
from hauberk.experiments.experiment import EVALUATION, LAST_EVALUATION, Experiment
from hauberk.experiments.paired_tests import CERTIFIED, CLEAN, WORST, accuracy, count_discordant, holm, mcnemar
from hauberk.experiments.paper_tables import Printed, find_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The columns of the MAIL paper's Table 2, by what the suite "papers" calls them.
_PAPER = {CLEAN: "NAT", "pgd-100-last": "PGD", "apgd-ce": "APGD", "cw-20-last": "CW", "autoattack": "AA"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Accuracies in percent of methods trained with the same seeds. Printed, it is its table in Markdown.

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
        n: number of test examples; 0 where it is not known.
        discordant: with one seed, by column, then by method with a baseline, how many test examples only the method has right,
            and how many only its baseline; nothing where this is not known.
        data: name of the data set; empty where it is not known.
        threat: the threat model, as it is written, likewise.
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
    n: int = 0
    discordant: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    data: str = ""
    threat: str = ""

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
        """How probable differences as large as these to each method's baseline would be, were there none but by chance.

        With several seeds, a paired t-test over them, two-sided; with one, McNemar's exact test over the test examples where
        ``discordant`` has their numbers: it is about these two networks, not about the methods. Adjusted for the number of
        differences by Holm's procedure. NaN where neither can be made, or where all differences between seeds are equal.
        """
        if len(self.seeds) == 1:
            known = self.discordant.get(column, {})
            return holm({method: mcnemar(*known[method]) if method in known else nan for method in self.baselines})
        from scipy.stats import ttest_rel  # half a second to import

        raw = {}
        for method, baseline in self.baselines.items():
            ours, theirs = self.values[method][column], self.values[baseline][column]
            flat = len({round(a - b, 9) for a, b in zip(ours, theirs, strict=True)}) == 1
            raw[method] = nan if flat else float(ttest_rel(ours, theirs).pvalue)
        return holm(raw)

    def text(self, method: str, column: str) -> str:
        """Mean and, where there are several seeds, standard deviation."""
        return _mean_and_deviation(self.mean(method, column), self.deviation(method, column))

    def table(self) -> TextTable:
        """Means and deviations: a row for each method, below it the paper's where that has any; the best two stand out.

        The last column is the difference to the method's baseline, in the column before it.
        """
        last, against = self.columns[-1], [*dict.fromkeys(self.baselines.values())] or [self.methods[0]]
        several = len(against) > 1
        compared = f"difference in {column_title(last)}" if several else f"{column_title(last)} against `{against[0]}`"
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
        columns = ["method", *map(column_title, self.columns), compared]
        return TextTable(f"Accuracy in %: {self.about}", columns, rows, self._notes(p_values), self._doubts)

    def _notes(self, p_values: Mapping[str, float]) -> list[str]:
        """What has to be read with the numbers."""
        tested, notes = not all(map(isnan, p_values.values())), ["Mean ± standard deviation over seeds."]
        if len(self.seeds) == 1:
            notes = ["One seed: no deviation." if tested else "One seed: no deviation, no test."]
        notes.append("Under attack: upper bounds.")
        if self.last:
            notes.append("Best checkpoint by validation; below it the last one, and by how much the best is above it.")
        meaning = "how often chance alone would make a difference as large as this, were the two equally good"
        if len(self.seeds) > 1:
            notes.append(f"p: paired t-test over seeds, adjusted for the number of differences (Holm): {meaning}.")
        elif tested:
            notes.append(
                f"p: McNemar's exact test over the test examples, adjusted for the number of differences (Holm): {meaning}. "
                "It is about these two networks. One seed says nothing about training: another seed may turn the order round."
            )
        return notes

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

    def figure(self) -> "Figure":
        """Draw clean accuracy, and the last column, of each method, for one column of a paper.

        Bars are standard deviations over seeds or, with one seed, 95 % intervals from the number of test examples.
        """
        from hauberk.experiments.comparison_figure import draw_methods  # a second to import

        last, series = self.columns[-1], {}
        for column in (one for one in dict.fromkeys((CLEAN, CERTIFIED, last)) if one in self.columns):
            title = column if column == CLEAN else column_title(column)
            label = f"{title} (upper bound)" if column == last != CLEAN else title
            series[label] = [(self.mean(method, column), self._bar(method, column)) for method in self.methods]
        marks = {method: " (INVALID)" if "INVALID" in "".join(some) else " (!)" for method, some in self.doubts.items() if some}
        bars = "; bars: 95 % interval from the number of test examples" if self.n else ""
        if len(self.seeds) > 1:
            bars = f"; bars: standard deviation over {len(self.seeds)} seeds"
        return draw_methods([method + marks.get(method, "") for method in self.methods], series, self.about + bars)

    def _bar(self, method: str, column: str) -> tuple[float, float]:
        """Return the ends of a bar."""
        mean, spread = self.mean(method, column), self.deviation(method, column)
        if isnan(spread) and self.n:
            low, high = wilson_interval(round(mean / 100 * self.n), self.n)
            return 100 * low, 100 * high
        return (mean, mean) if isnan(spread) else (mean - spread, mean + spread)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``comparison.json``, ``.md``, ``.tex``, ``.csv`` (of every run), ``.png``, ``.svg`` and ``.pdf``.

        Returns:
            The files.

        Raises:
            UserError: if one of them cannot be written.
        """
        from hauberk.core.figures import FIGURE_FORMATS, figure_file

        table, folder = self.table(), Path(folder)
        files = {"json": json_file(asdict(self)), "md": table.to_markdown().encode(), "tex": table.to_latex().encode()}
        files |= {"csv": self.runs_table().to_csv().encode()}
        picture = self.figure()
        files |= {ending: figure_file(picture, ending) for ending in FIGURE_FORMATS}
        written = {folder / f"comparison.{ending}": content for ending, content in files.items()}
        make_folder(folder)
        write_together(written)
        return list(written)

    def __str__(self) -> str:
        return self.table().to_markdown()

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.methods)}, {len(self.seeds)} seeds: {self.about}>"

    def _repr_markdown_(self) -> str:  # what a notebook shows
        return str(self)

    @property
    def _doubts(self) -> dict[str, str]:
        return {f"`{method}`": ", ".join(doubts) for method, doubts in self.doubts.items()}


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
            method: {column: tuple(100 * accuracy(of[method, seed], column) for seed in seeds) for column in columns}
            for method in methods
        }

    try:
        names = (CLEAN, *first["by_attack"], *([] if "autoattack" in first["by_attack"] else [WORST]))
        columns = tuple(_PAPER) if one.evaluation.suite == "papers" and not one.evaluation.attacks else names
        columns = (*columns[:1], CERTIFIED, *columns[1:]) if first["certified"] else columns
        values, last = accuracies(found), accuracies(ended) if ended else {}
        doubts = {method: list_doubts([found[method, seed] for seed in seeds]) for method in methods}
        for method in methods if ended else ():
            doubts[method] += [f"last epoch: {doubt}" for doubt in list_doubts([ended[method, seed] for seed in seeds])]
    except (KeyError, TypeError) as error:
        raise UserError(f"an evaluation in {out} is damaged or of another suite: {error}") from error
    size = f"{one.subset.train_size:,} training examples, " if one.subset.train_size else ""
    size += f"{one.settings['epochs']} epochs, " if "epochs" in one.settings else ""
    trials = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    about = f"{one.data.name}, {one.model.name}, {one.threat_model}, {size}{trials}, {first['n']:,} test examples"
    whole = columns == tuple(_PAPER) and not size  # as the paper has it
    printed = paper.printed.get((one.data.name, one.model.name), {}) if whole else {}
    baselines, discordant = _baselines(methods, paper.baselines), {}
    if len(seeds) == 1:
        files = {method: found[method, seeds[0]] for method in methods}
        discordant = {column: count_discordant(files, baselines, column) for column in (CLEAN, columns[-1])}
    return Comparison(
        about, methods, seeds, columns, values, doubts, printed, baselines, last, n=int(first["n"]), discordant=discordant,
        data=one.data.name, threat=str(one.threat_model),
    )  # fmt: skip


def column_title(column: str) -> str:
    """Return what a column is called in a table."""
    return _PAPER.get(column, column)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else nan


def _mean_and_deviation(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" + ("" if isnan(deviation) else f" ± {deviation:.2f}")


def list_doubts(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of diagnostics that are not "ok", the invalid ones first, with the number of seeds."""
    verdicts = {"invalid": "INVALID: ", "warning": ""}
    names = [verdicts[v] + d["name"] for v in verdicts for one in found for d in one["diagnostics"] if d["verdict"] == v]
    return [f"{name} ({names.count(name)} of {len(found)})" for name in dict.fromkeys(names)]


def _baselines(methods: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return what each method's difference is to: what is wanted, if it is among the methods, otherwise the first method."""
    found = {method: wanted[method] for method in methods if wanted.get(method) in methods}
    others = (method for method in methods[1:] if method not in {*found, *found.values()})
    return found | dict.fromkeys(others, methods[0])
