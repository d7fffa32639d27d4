"""ablation: what each part of MART's loss is worth (MART paper, Section 3.1: removing, replacing, share of the data)."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, percent, said, standing
from hauberk.experiments.studies.setting import Setting
from hauberk.experiments.studies.variants import split, variant
from hauberk.methods import Method, method
from hauberk.objectives import LossTerms, kl_divergence, mart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Without 1 - p, without KL, or without both, MART is less robust; so it is with CE for BCE, and with BCE on clean "
    "inputs; KL as the inner loss gains nothing; the more of the data is regularised, the more robust (Wang et al. 2020, "
    "Section 3.1)."
)
BETA = 5.0
SHARES = (0.25, 0.5, 0.75)  # of the data; 0 is the variant without both, 1 is MART
_BOTH = "without both"


def without_weight(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``BCE(p(x'), y) + β·KL(p(x)‖p(x'))``."""
    return LossTerms(mart(logits, logits_adv, y).robust, BETA * kl_divergence(logits, logits_adv))


def without_kl(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``BCE(p(x'), y) + β·(1 - p_y(x))``."""
    p_true = logits.softmax(1).gather(1, y[:, None]).squeeze(1)
    return LossTerms(mart(logits, logits_adv, y).robust, BETA * (1 - p_true))


def without_both(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``BCE(p(x'), y)``."""
    return mart(logits, logits_adv, y, beta=0.0)


def with_ce(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``CE(f(x'), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))``."""
    return LossTerms(F.cross_entropy(logits_adv, y, reduction="none"), mart(logits, logits_adv, y, beta=BETA).regularizer)


def with_clean_bce(logits: Tensor, logits_adv: Tensor, y: Tensor) -> LossTerms:
    """``BCE(p(x), y) + β·KL(p(x)‖p(x'))·(1 - p_y(x))``."""
    return LossTerms(mart(logits, logits, y).robust, mart(logits, logits_adv, y, beta=BETA).regularizer)


LOSSES = {
    "without 1-p": without_weight,
    "without KL": without_kl,
    _BOTH: without_both,
    "CE for BCE": with_ce,
    "BCE on clean inputs": with_clean_bce,
}


def run(setting: Setting) -> Finding:
    """Train MART and its variants, and attack them."""
    x, y = setting.examples()
    found = {
        name: standing(
            setting.trained(f"mart {name}", how=how, judged=name in ("whole", *LOSSES)), x, y, setting.threat, setting.seed
        )
        for name, how in variants(setting).items()
    }
    whole = found["whole"]
    losses = "; ".join(f"{name} {said(found[name].pgd, whole.pgd)}" for name in (*LOSSES, "KL inner loss"))
    shares = [found[_BOTH], *(found[_share(share)] for share in SHARES), whole]
    rising = ", ".join(f"{percent(one.pgd):.1f}" for one in shares)
    text = f"PGD-20 accuracy against MART's, in points: {losses}; with 0, 25, 50, 75, 100 % of the data regularised {rising} %"
    pairs = [(whole.pgd, found[name].pgd) for name in LOSSES]
    rows = [one.row(loss=name) for name, one in found.items()]
    series = {"share": [0.0, *SHARES, 1.0], "robust": [percent(one.pgd) for one in shares]}
    return Finding("ablation", f"{setting}, {len(y):,} test examples", CLAIM, text, outputs_match(pairs), rows, series)


def draw(finding: Finding) -> "Figure":
    """PGD-20 accuracy of each loss, and over the share of the data that is regularised."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    bars, line = figure.subplots(1, 2)
    rows = [row for row in finding.rows if "%" not in row["loss"]]
    bars.barh([row["loss"] for row in rows], [row["PGD-20, %"] for row in rows], color=["C0", *["0.7"] * (len(rows) - 1)])
    bars.invert_yaxis()
    bars.set(xlabel="PGD-20 accuracy, %")
    line.plot([100 * share for share in finding.series["share"]], finding.series["robust"], marker="o")
    line.set(xlabel="training examples regularised, %", ylabel="PGD-20 accuracy, %")
    return figure


def variants(setting: Setting) -> dict[str, Method]:
    """MART and what is made of it, by what is changed."""
    whole = method("mart", setting.threat, seed=setting.seed, beta=BETA)
    bare = variant("mart " + _BOTH, whole, without_both)
    order = torch.randperm(len(setting.train_part), generator=torch.Generator().manual_seed(setting.seed))
    return {
        "whole": whole,
        **{name: variant(f"mart {name}", whole, terms) for name, terms in LOSSES.items()},
        "KL inner loss": method("mart", setting.threat, seed=setting.seed, beta=BETA, loss="kl", start="normal"),
        **{_share(share): split(f"mart {_share(share)}", whole, bare, order[: round(share * len(order))]) for share in SHARES},
    }


def _share(share: float) -> str:
    return f"{100 * share:.0f} % regularised"
