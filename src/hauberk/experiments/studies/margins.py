"""Studies of probabilistic margins, beside the least number of PGD steps."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hauberk.attacks import apgd, pgd
from hauberk.core.figures import COLOURS, FAINT, INK, column_figure, put_legend
from hauberk.data.tables.rows import rows_behind
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies, strong_losses
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import NOTHING, difference_of, number_text, only, percent, sentence
from hauberk.training.metrics import BOUNDARY
from hauberk.weighting import mail, probabilistic_margin

LPS_STEPS = 10
SLOPE, BIAS = 10.0, -0.5  # of MAIL-AT (Wang et al. 2021, Section 4.1)
_LEAST_IN_A_GROUP = 10  # examples of an LPS in each seed, before its spread is judged


def lps_vs_pm(context: StudyContext) -> StudyResult:
    """Measure LPS and margins of training examples, and see which of those with the largest LPS stronger attacks break."""
    (x, y), losses = context.examples("train"), strong_losses(context.classes)
    found: dict[str, list[Tensor]] = {name: [] for name in ("lps", "critical", "PM nat", "PM adv")}
    for _, one, model in context.networks({"at": Variant("at")}):
        seen = pgd(model, x, y, context.threat, steps=LPS_STEPS, step_size="eps/4", seed=one.seed)
        with torch.no_grad():
            for name, at in (("PM nat", x), ("PM adv", seen.x_adv)):
                found[name].append(probabilistic_margin(model(at), y).double())
        stronger = [apgd(model, x, y, context.threat, loss=loss, seed=one.seed).success for loss in losses]
        found["lps"].append(seen.lps)
        found["critical"].append((seen.lps == LPS_STEPS) & torch.stack(stronger).any(0))
    lps, critical, nat, adv = (torch.stack(some) for some in found.values())
    last, usual = lps == LPS_STEPS, _group_means(nat, lps)
    variance = nat.var(1, correction=0, keepdim=True).clamp_min(1e-12)
    unexplained = (nat - usual).square() / variance  # of the variance of PM nat, what LPS leaves
    large = (lps > LPS_STEPS // 2) & (lps < LPS_STEPS)
    among = _group_means(nat, large.long())
    differ = only(large, ((nat - usual).square() - (usual - among).square()) / variance)
    said = [
        sentence(f"examples with the largest LPS, {LPS_STEPS}, contain critical ones", only(last, critical)),
        sentence(f"of LPS {LPS_STEPS // 2 + 1} to {LPS_STEPS - 1}, PM nat varies less between than within", differ),
    ]
    for value in range(LPS_STEPS + 1):
        if bool(((lps == value).sum(1) >= _LEAST_IN_A_GROUP).all()):
            spread = only(lps == value, unexplained - 0.5)
            said.append(sentence(f"PM nat spreads widely within LPS {value} (over half its variance over all)", spread))
    return StudyResult(
        f"{percent(last):.0f} % of {len(y):,} training examples have the largest LPS, {LPS_STEPS}; stronger attacks (APGD on "
        f"cross-entropy, and targeted) break {number_text(100 * float(only(last, critical).nanmean()))} % of these. LPS "
        f"explains {100 * (1 - float(unexplained.mean())):.0f} % of the variance of PM nat",
        said,
        [_lps_row(int(value), lps == value, critical, nat, adv) for value in lps.unique()],
        {name: some[0].tolist() for name, some in found.items()},
        about=f"{len(y):,} of them looked at",
        caption="Training examples of the first seed by their LPS. Above: their number, logarithmic; hatched, with the number, "
        "those "
        "that stronger attacks break though PGD does not. Below: PM of the input; box: quartiles and median, whiskers: 5th and "
        "95th "
        f"percentile, dots: examples, where there are fewer than {_LEAST_IN_A_GROUP} in place of a box; n below.",
    )


def _group_means(values: Tensor, group: Tensor) -> Tensor:
    """Return for each of values (S, N) the mean of its group (S, N) in its row."""
    same = torch.nn.functional.one_hot(group).double()
    means = (same * values[:, :, None]).sum(1) / same.sum(1).clamp_min(1)
    return means.gather(1, group)


def _lps_row(value: int, some: Tensor, critical: Tensor, nat: Tensor, adv: Tensor) -> dict[str, Any]:
    low, middle, high = (float(nat[some].quantile(q)) for q in (0.25, 0.5, 0.75))
    return {
        "LPS": value,
        "examples": int(some.sum()),
        "critical": int(critical[some].sum()) if value == LPS_STEPS else "",
        "PM nat, lower quartile": low,
        "median": middle,
        "upper quartile": high,
        "median PM adv": float(adv[some].median()),
    }


def draw_lps_vs_pm(result: StudyResult) -> Figure:
    """How many examples have each LPS, the critical ones marked; and box plots of PM nat for each."""
    lps, margins = torch.tensor(result.series["lps"]), torch.tensor(result.series["PM nat"])
    figure, (bars, boxes) = column_figure((1.9, 2.2), sharex=True)
    counts, critical = lps.bincount(minlength=LPS_STEPS + 1), sum(result.series["critical"])
    bars.bar(range(LPS_STEPS + 1), counts.tolist(), color=COLOURS[5], label="all")
    look: dict[str, Any] = {"color": COLOURS[1], "hatch": "////", "edgecolor": "white"}
    bars.bar([LPS_STEPS], [critical], label="broken by stronger attacks", **look)
    bars.annotate(f"{critical}", (LPS_STEPS, max(critical, 0.8)), ha="center", va="bottom", fontsize=6.5)
    bars.set(ylabel="training examples", yscale="log", ylim=(0.7, 2 * int(counts.max())))
    put_legend(bars)
    for value in lps.unique().tolist():
        some = margins[lps == value].tolist()
        if len(some) < _LEAST_IN_A_GROUP:
            boxes.plot([value] * len(some), some, "o", markersize=2.5, color=COLOURS[0])
        else:
            line: dict[str, Any] = {"medianprops": {"color": COLOURS[1], "linewidth": 1.5}, "flierprops": {"markersize": 2}}
            boxes.boxplot([some], positions=[value], widths=0.6, whis=(5, 95), manage_ticks=False, **line)
        boxes.annotate(f"n={len(some)}", (value, -1.0), ha="center", va="bottom", fontsize=5)
    boxes.axhline(0, color=INK, linewidth=0.6, linestyle="--")
    boxes.set(xlabel="LPS", ylabel="PM nat", ylim=(-1.02, 1.05), xticks=range(LPS_STEPS + 1))
    return figure


def margins(context: StudyContext) -> StudyResult:
    """Place training examples under attack in the plane of two probabilities, and see which of them stronger attacks break."""
    (x, y), losses = context.examples("train"), strong_losses(context.classes)
    found: dict[str, list[Tensor]] = {name: [] for name in ("true", "other", "lps", "critical")}
    named: list[dict[str, Any]] = []
    for _, one, model in context.networks({"at": Variant("at")}):
        seen = pgd(model, x, y, context.threat, steps=LPS_STEPS, step_size="eps/4", seed=one.seed)
        with torch.no_grad():
            p = model(seen.x_adv).softmax(1).double()
        true = p.gather(1, y[:, None]).squeeze(1)
        other, rival = p.scatter(1, y[:, None], -1.0).max(1)
        stronger = [apgd(model, x, y, context.threat, loss=loss, seed=one.seed).success for loss in losses]
        critical = torch.stack(stronger).any(0) & ~seen.success
        for name, values in zip(found, (true, other, seen.lps, critical), strict=True):
            found[name].append(values)
        if one.seed == context.seed:
            weights = mail(true - other, slope=SLOPE, bias=BIAS)
            columns = (y, rival, true, other, seen.lps, weights, critical)
            named = _name_examples(context, x, *(column.tolist() for column in columns))
    true, other, lps, critical = (torch.stack(some) for some in found.values())
    margin = true - other
    inside = {"safe": margin >= BOUNDARY, "boundary": (margin >= 0) & (margin < BOUNDARY), "wrong": margin < 0}
    last = lps == LPS_STEPS
    safe, near = only(inside["safe"] & last, critical), only(inside["boundary"] & last, critical)
    kept, lost = (only(last & some, margin) for some in (~critical, critical))
    return StudyResult(
        f"of {len(y):,} training examples under PGD-{LPS_STEPS} "
        + ", ".join(f"{percent(mask):.1f} % are {name}" for name, mask in inside.items())
        + f"; stronger attacks break {number_text(100 * float(near.nanmean()))} % of those that PGD leaves at the boundary and "
        f"{number_text(100 * float(safe.nanmean()))} % of those that it leaves in the safe area",
        [
            sentence(
                f"of examples with the largest LPS, {LPS_STEPS}, critical ones have a smaller PM", difference_of(kept, lost), ""
            ),
            sentence("those at the boundary are more often critical than safe ones", difference_of(near, safe)),
            sentence(f"the safe area holds almost no critical ones (less than {NOTHING:g} %)", NOTHING / 100 - safe),
        ],
        [
            {
                "area": name,
                "examples": int(mask.sum()),
                **accuracies({"share, %": mask, "critical, %": only(mask & last, critical)}),
                f"LPS {LPS_STEPS}": int((mask & last).sum()),
            }
            for name, mask in inside.items()
        ],
        {"counts": {name: int(mask[0].sum()) for name, mask in inside.items()}},
        about=f"{len(y):,} of them looked at",
        caption=f"Training examples under PGD-{LPS_STEPS} (first seed); colour: the weight that MAIL gives them (slope "
        f"{SLOPE:g}, bias "
        f"{BIAS:g}, mean 1); rings: critical, broken by stronger attacks though PGD does not. Safe: PM of {BOUNDARY:g} or "
        "more; boundary: "
        "0 to that; wrong: below 0 (the papers draw no line; this one is ours). margins-examples.csv names them all.",
        examples=named,
    )


def _name_examples(context: StudyContext, x: Tensor, *found: list[Any]) -> list[dict[str, Any]]:
    """Return what was found of each training example, by name of a column; of rows of a table with their classes and values."""
    table = rows_behind(context.base.load_data("train"))
    classes = range(context.classes) if table is None else table.class_names
    values = {} if table is None else {f"row.{name}": column for name, column in table.values(x).items()}
    return [
        {"example": k, "label": classes[label], "nearest other class": classes[near], "p of the label": p_y,
         "largest other p": p_j, "PM adv": p_y - p_j, "area": area_of(p_y - p_j), "LPS": steps, "weight": weight,
         "critical": missed, **{name: column[k] for name, column in values.items()}}
        for k, (label, near, p_y, p_j, steps, weight, missed) in enumerate(zip(*found, strict=True))
    ]  # fmt: skip


def area_of(margin: float) -> str:
    """Return in which area of the MAIL paper an example with a margin lies: safe, boundary or wrong."""
    return "wrong" if margin < 0 else "boundary" if margin < BOUNDARY else "safe"


def draw_margins(result: StudyResult) -> Figure:
    """Training examples in the plane of the probabilities of the true class and the largest other, coloured by weight."""
    figure, (axes,) = column_figure((3.2,))
    rows = result.examples
    x, y = ([row[name] for row in rows] for name in ("largest other p", "p of the label"))
    shown = axes.scatter(x, y, c=[row["weight"] for row in rows], s=9, cmap="cividis", norm="log", linewidths=0)
    missed = [row for row in rows if row["critical"]]
    rings: dict[str, Any] = {"s": 30, "facecolor": "none", "edgecolor": COLOURS[1], "linewidths": 1.0}
    axes.scatter([row["largest other p"] for row in missed], [row["p of the label"] for row in missed], **rings)
    axes.plot([0, 0.5], [0, 0.5], color=INK, linewidth=0.8, label="PM = 0")
    edge = (1 - BOUNDARY) / 2
    axes.plot([0, edge], [BOUNDARY, edge + BOUNDARY], color=INK, linewidth=0.8, linestyle="--", label=f"PM = {BOUNDARY:g}")
    axes.plot([0, 1], [1, 0], color=FAINT, linewidth=0.8)
    total = max(1, sum(result.series["counts"].values()))
    told = {name: f"{name}: {count} ({100 * count / total:.0f} %)" for name, count in result.series["counts"].items()}
    axes.text(0.98, 0.98, "\n".join(told.values()), ha="right", va="top", transform=axes.transAxes, fontsize=6.5)
    axes.set(xlabel="largest probability of another class", ylabel="probability of the true class")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    put_legend(axes)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="MAIL's weight")
    return figure
