"""subsets: how much misclassified training examples matter (MART paper, Figure 1)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hauberk.data import fetch_for
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, percent, said, standing
from hauberk.experiments.studies.setting import Setting
from hauberk.experiments.studies.variants import split, variant
from hauberk.methods import Method
from hauberk.objectives import LossTerms, at, kl_divergence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Robustness drops if misclassified examples (S-) stay unperturbed in adversarial training, and little if as many others "
    "(S+) do; a weak attack on S- costs almost nothing; regularising S- gains more than regularising S+ (Wang et al. 2020, "
    "Section 1, Figure 1)."
)
BETA = 5.0  # ours; the sources give no value for the regulariser of this experiment
TREATMENTS = ("unperturbed", "FGSM", "regularised")


def run(setting: Setting) -> Finding:
    """Train a first network, split the training examples by what it has right, and train again with either part treated."""
    x, y = setting.examples()
    first = setting.trained("at")
    groups = parts(setting, first)
    found = {"at": standing(first, x, y, setting.threat, setting.seed)}
    for kind, how in treatments(setting).items():
        for group, places in groups.items():
            bound = split(f"at {group} {kind}", how, setting.method("at"), places)
            found[f"{group} {kind}"] = standing(setting.trained(bound.name, how=bound), x, y, setting.threat, setting.seed)
    base = found["at"].pgd
    changes = "; ".join(f"{name} {said(one.pgd, base)}" for name, one in found.items() if name != "at")
    share = 100 * len(groups["S-"]) / len(setting.train_part)
    text = f"S- is {share:.1f} % of the training examples. Change of PGD-20 accuracy in points: {changes}"
    pairs = [
        (found["S+ unperturbed"].pgd, found["S- unperturbed"].pgd),
        (found["S- FGSM"].pgd, found["S- unperturbed"].pgd),
        (found["S- regularised"].pgd, found["S+ regularised"].pgd),
        (found["S- regularised"].pgd, base),
    ]
    rows = [one.row(training=name) for name, one in found.items()]
    series = {"base": percent(base)}
    return Finding("subsets", f"{setting}, {len(y):,} test examples", CLAIM, text, outputs_match(pairs), rows, series)


def draw(finding: Finding) -> "Figure":
    """PGD-20 accuracy for each treatment of each part, with that of plain adversarial training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    robust = {row["training"]: row["PGD-20, %"] for row in finding.rows}
    for offset, group in ((-0.2, "S+"), (0.2, "S-")):
        places = [k + offset for k in range(len(TREATMENTS))]
        axes.bar(places, [robust[f"{group} {kind}"] for kind in TREATMENTS], width=0.36, label=group)
    axes.axhline(finding.series["base"], color="0.3", linestyle="--", label="adversarial training")
    axes.set(xticks=range(len(TREATMENTS)), xticklabels=TREATMENTS, ylabel="PGD-20 accuracy, %")
    axes.set_ylim(max(0, min(robust.values()) - 5))
    axes.legend()
    return figure


def parts(setting: Setting, first: nn.Module) -> dict[str, Tensor]:
    """Places of S-, what the first network misclassifies without an attack, and of S+, as many others at random."""
    source = setting.train_part
    right = []
    with torch.no_grad():
        for index in torch.arange(len(source)).split(1000):
            x, y = fetch_for(first, source, index)
            right.append((first(x).argmax(1) == y).cpu())
    correct = torch.cat(right)
    wrong, others = ((correct == value).nonzero().squeeze(1) for value in (False, True))
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(setting.seed))
    return {"S+": others[order[: len(wrong)]], "S-": wrong}


def treatments(setting: Setting) -> dict[str, Method]:
    """How the chosen examples are treated."""
    return {
        "unperturbed": setting.method("standard"),
        "FGSM": setting.method("at", steps=1, step_size="eps", start="clean"),
        "regularised": variant("at with KL", setting.method("at"), regularised),
    }


def regularised(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``CE(f(x'), y) + β·KL(p(x)‖p(x'))``."""
    return LossTerms(at(logits, logits_adv, y).robust, BETA * kl_divergence(logits, logits_adv))
