"""The sections of a report that an evaluation fills."""

from typing import Any

from hauberk.evaluation.result import Diagnostic, warning_line, warning_mark, wilson_interval, worst_first
from hauberk.report import charts
from hauberk.report.blocks import Chart, Fact, Grid, Notice, Section, Text

_SURE = 30  # examples of a class below which its bar says little


def facts(found: dict[str, Any]) -> list[Fact]:
    """Return the headline numbers of an evaluation (the JSON that :meth:`hauberk.Evaluation.save` writes)."""
    diagnostics = _diagnostics_of(found)
    doubted = [said] if (said := warning_line(diagnostics)) else []
    interval = f"95 % interval {_interval(found['interval'])}"
    label = "robust accuracy with rejection" if found["detection"] else "robust accuracy"
    return [
        Fact(
            f"{label}, at most",
            f"{100 * found['robust_accuracy']:.1f} %{warning_mark(diagnostics)}",
            "; ".join([*doubted, interval, f"worst case over {', '.join(found['by_attack'])}", found["threat"]]),
        ),
        Fact("clean accuracy", f"{100 * found['clean_accuracy']:.1f} %", f"95 % interval {_interval(found['clean_interval'])}"),
        Fact("examples", f"{found['n']:,}", f"{found['provenance']['data']}, {found['provenance']['subset']}"),
        *(fact_of_columns(d.measured) for d in diagnostics if d.name == "columns-can-change"),
    ]


def fact_of_columns(said: str) -> Fact:
    """Return as a headline what is said of the columns of a table that can change."""
    number, _, stuck = said.partition("; ")
    return Fact("of the table", number, stuck)


def notices(found: dict[str, Any]) -> list[Notice]:
    """Return what diagnostics doubt, the worst first."""
    return [Notice(d.verdict, f"{d.name}: {d.measured}. {d.advice}") for d in worst_first(_diagnostics_of(found))]


def sections(found: dict[str, Any], name: str) -> list[Section]:
    """Return everything but the headline; ``name`` keeps the files of several evaluations apart."""
    parts = [_attacks(found, name)]
    if found["curve"]:
        parts.append(_curve(found, name))
    parts += [_classes(found, name), _margins(found, name), _diagnostics(found, name), _origin(found, name)]
    return parts


def _diagnostics_of(found: dict[str, Any]) -> list[Diagnostic]:
    return [Diagnostic(**stored) for stored in found["diagnostics"]]


def _attacks(found: dict[str, Any], name: str) -> Section:
    n, by_attack = found["n"], found["by_attack"]
    rows = [["clean", *_shares(found["clean_accuracy"], n)], *([attack, *_shares(s, n)] for attack, s in by_attack.items())]
    rows.append(["worst case", *_shares(found["robust_accuracy"], n)])
    broken: dict[str, int] = {}
    for example in found["examples"]:
        who = {"clean": "wrong without an attack", None: "stands"}.get(example["broken_by"], example["broken_by"])
        broken[who] = broken.get(who, 0) + 1
    counts = {who: float(broken[who]) for who in sorted(broken, key=lambda who: -broken[who])}
    order = "each on what stood before it" if found["sequential"] else "each alone on every example that is right without it"
    figure = charts.bars(
        {row[0]: float(row[1]) for row in rows}, xlabel="accuracy, %", errors=[_percent_interval(s, n) for s in
        (found["clean_accuracy"], *by_attack.values(), found["robust_accuracy"])], limit=100)  # fmt: skip
    header = ["", "accuracy, %", "95 % interval"]
    table = Grid(f"{name}-attacks", f"Accuracy under each attack ({order})", header, rows)
    first = Grid(
        f"{name}-broken", "What broke how many examples first", ["", "examples"], [[w, int(c)] for w, c in counts.items()]
    )
    return Section(
        "Attacks",
        [
            table,
            Chart(f"{name}-attacks", "Accuracy under each attack, with 95 % intervals", figure),
            Chart(f"{name}-broken", "What broke how many examples first", charts.bars(counts, xlabel="examples"), first),
        ],
    )


def _curve(found: dict[str, Any], name: str) -> Section:
    eps = [0.0, *(point["eps"] for point in found["curve"])]
    if any(isinstance(value, list) or value is None for value in eps):
        eps, xlabel = [0.0, *(point["factor"] for point in found["curve"])], "times ε"
    else:
        xlabel = "ε"
    shares = [100.0, *(100 * point["robust"] for point in found["curve"])]
    n = found["curve"][0]["n"]
    caption = f"Of {n} examples that are right without an attack, how many stand a quick APGD as ε grows"
    figure = charts.lines(eps, {"standing": shares}, xlabel=xlabel, ylabel="standing, %", ylim=(0, 105))
    data = Grid(
        f"{name}-eps", caption, [xlabel, "standing, %"], [[f"{e:.4g}", f"{s:.1f}"] for e, s in zip(eps, shares, strict=True)]
    )
    return Section("Robust accuracy against ε", [Chart(f"{name}-eps", caption, figure, data)])


def _classes(found: dict[str, Any], name: str) -> Section:
    count: dict[str, int] = {}
    for example in found["examples"]:
        count[str(example["label"])] = count.get(str(example["label"]), 0) + 1
    shares = found["by_class"]
    rows = [[label, count.get(label, 0), *_shares(share, count.get(label, 1))] for label, share in shares.items()]
    caption = "Robust accuracy of each class"
    header = ["class", "examples", "robust accuracy, %", "95 % interval"]
    blocks: list[Chart | Grid | Text] = []
    if len(shares) <= 30:
        errors = [_percent_interval(share, count.get(label, 1)) for label, share in shares.items()]
        figure = charts.bars(
            {f"class {k}": 100 * v for k, v in shares.items()}, xlabel="robust accuracy, %", errors=errors, limit=100
        )
        blocks.append(Chart(f"{name}-classes", caption, figure, Grid(f"{name}-classes", caption, header, rows)))
    else:
        blocks.append(Grid(f"{name}-classes", caption, header, sorted(rows, key=lambda row: float(row[2]))))
    if min(count.values()) < _SURE:
        blocks.append(Text(f"Some classes have fewer than {_SURE} examples here: read their intervals, not their bars."))
    return Section("Classes", blocks)


def _margins(found: dict[str, Any], name: str) -> Section:
    right = [example for example in found["examples"] if example["broken_by"] != "clean"]
    caption = "Logit margin of examples that are right, without an attack"
    blocks = [
        Chart(
            f"{name}-clean-margin",
            caption,
            charts.histogram([e["clean_margin"] for e in right], xlabel="clean margin", ylabel="examples", mark=0.0),
        )
    ]
    seen = [e["margin"] for e in right if e["margin"] is not None]
    if seen:
        caption = "Least margin that any attack saw; below 0 the example is broken"
        figure = charts.histogram(seen, xlabel="least margin under attack", ylabel="examples", mark=0.0)
        blocks.append(Chart(f"{name}-margin", caption, figure))
    return Section("Margins", blocks)


def _diagnostics(found: dict[str, Any], name: str) -> Section:
    rows = [[d["name"], d["verdict"], d["measured"]] for d in found["diagnostics"]]
    caption = "What was looked for, and found: signs that attacks fail for another reason than robustness"
    return Section("Can it be believed?", [Grid(f"{name}-diagnostics", caption, ["check", "verdict", "measured"], rows)])


def _origin(found: dict[str, Any], name: str) -> Section:
    origin = dict(found["provenance"])
    attacks = [[attack, source] for attack, source in origin.pop("attacks", {}).items()]
    rows = [[key, _plain(value)] for key, value in origin.items() if value not in ({}, [])]
    return Section(
        "Where the numbers come from",
        [
            Grid(f"{name}-provenance", "Seed, budget, versions, machine", ["", ""], rows),
            Grid(f"{name}-sources", "Attacks as run", ["attack", "source"], attacks),
        ],
    )


def _shares(share: float, n: int) -> list[str]:
    return [f"{100 * share:.1f}", _interval(wilson_interval(round(share * n), n))]


def _percent_interval(share: float, n: int) -> tuple[float, float]:
    low, high = wilson_interval(round(share * n), n)
    return 100 * min(low, share), 100 * max(high, share)


def _interval(pair: Any) -> str:
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f} %"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
