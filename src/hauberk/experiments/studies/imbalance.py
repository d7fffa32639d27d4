"""imbalance: robust accuracy of rare classes (note on MART: "particularly effective for datasets with class imbalance")."""

from dataclasses import replace
from typing import TYPE_CHECKING

from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import outputs_match, percent, said, standing
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "MART's weights help most where classes are imbalanced (note on MART, summary)."
RATIO = 10.0
TRAININGS = {
    "at": ("at", "none"),
    "trades": ("trades", "none"),
    "mart": ("mart", "none"),
    "at, balanced": ("at", "balanced"),
    "mart, balanced": ("mart", "balanced"),
}


def run(setting: Setting) -> Finding:
    """Thin the training set out so that classes become ever rarer, train, and attack each class of the whole test set."""
    x, y = setting.examples()
    thin = replace(setting, base=replace(setting.base, subset=replace(setting.base.subset, imbalance=RATIO)))
    classes = int(y.max()) + 1
    rare = y >= classes - classes // 3
    found, shares, rows = {}, {}, []
    for name, (method, weights) in TRAININGS.items():
        settings = {} if weights == "none" else {"class_weights": weights}
        model = thin.trained(method, settings=settings, judged=name in ("at", "mart"))
        one = found[name] = standing(model, x, y, setting.threat, setting.seed)
        shares[name] = [percent(one.strong[y == k]) for k in range(classes)]
        extra = {"strong, rarest third, %": percent(one.strong[rare]), "strong, worst class, %": min(shares[name])}
        rows.append(one.row(training=name, **extra))
    ours, others, weighed = (found[name].strong[rare] for name in ("mart", "at", "at, balanced"))
    text = (
        f"the first class has {RATIO:g} times the examples of the last. In the rarest third, under the stronger attacks and in "
        f"points: MART against adversarial training {said(ours, others)}; class weights in adversarial training "
        f"{said(weighed, others)}"
    )
    about = f"{setting}, thinned out, {len(y):,} test examples"
    return Finding("imbalance", about, CLAIM, text, outputs_match([(ours, others)]), rows, {"by class": shares})


def draw(finding: Finding) -> "Figure":
    """Accuracy under the stronger attacks of each class, the rarest last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, shares in finding.series["by class"].items():
        axes.plot(range(len(shares)), shares, marker="o", label=name)
    axes.set(xlabel="class, from the most frequent to the rarest", ylabel="accuracy under stronger attacks, %")
    axes.legend()
    return figure
