"""Studies of probabilistic margins, beside the least number of PGD steps."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hauberk.attacks import apgd, pgd
from hauberk.experiments.figures import COLOURS, new_figure
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import number_text, only, percent, sentence
from hauberk.weighting import probabilistic_margin

LPS_STEPS = 10
_LEAST_IN_A_GROUP = 10  # examples of an LPS in each seed, before its spread is judged


def lps_vs_pm(context: StudyContext) -> StudyResult:
    """Measure LPS and margins of training examples, and see which of those with the largest LPS stronger attacks break."""
    x, y = context.examples("train")
    found: dict[str, list[Tensor]] = {name: [] for name in ("lps", "critical", "PM nat", "PM adv")}
    for _, one, model in context.networks({"at": Variant("at")}):
        seen = pgd(model, x, y, context.threat, steps=LPS_STEPS, step_size="eps/4", seed=one.seed)
        with torch.no_grad():
            for name, at in (("PM nat", x), ("PM adv", seen.x_adv)):
                found[name].append(probabilistic_margin(model(at), y).double())
        stronger = [apgd(model, x, y, context.threat, loss=loss, seed=one.seed).success for loss in ("ce", "dlr-targeted")]
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
    figure, (bars, boxes) = new_figure(2, 9)
    counts = lps.bincount(minlength=LPS_STEPS + 1)
    bars.bar(range(LPS_STEPS + 1), counts.tolist(), color="0.75", label="all")
    bars.bar([LPS_STEPS], [sum(result.series["critical"])], color=COLOURS[1], label="broken by stronger attacks")
    bars.set(xlabel="LPS", ylabel="training examples")
    bars.legend()
    there = lps.unique().tolist()
    groups = [margins[lps == value].tolist() for value in there]
    boxes.boxplot(groups, positions=there, whis=(5, 95), flierprops={"markersize": 2})
    boxes.set(xlabel="LPS", ylabel="PM nat")
    return figure
