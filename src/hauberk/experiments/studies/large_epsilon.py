"""large-epsilon: whether large perturbations look like the class they lead to (lecture notes on adversarial training)."""

from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hauberk.attacks import pgd
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import percent
from hauberk.experiments.studies.pictures import draw_rows
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "A large perturbation made on a robust network tends to show salient characteristics of the class it is then taken for; "
    "one made on a standard network does not (lecture notes on adversarial training)."
)
NETWORKS = ("standard", "at")
FACTORS = (1.0, 2.0, 4.0)
SHOWN = 4


def run(setting: Setting) -> Finding:
    """Attack at multiples of ε, and ask a judge without gradients which class the result looks like.

    The judge is the vote of the five nearest training examples, in pixels: no network, so nothing transfers to it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (train_x, train_y) = setting.examples(), _all_training(setting)
    judge = KNeighborsClassifier(5).fit(train_x.flatten(1).cpu().numpy(), train_y.cpu().numpy())
    rows, seen_as = [], {}
    images: dict[str, list[object]] = {"clean": x[:SHOWN].cpu().tolist()}
    for name in NETWORKS:
        model = setting.trained(name)
        for factor in FACTORS:
            x_adv, taken_for = _perturbed(model, x, y, factor, setting)
            looks = torch.as_tensor(judge.predict(x_adv.flatten(1).cpu().numpy()), device=y.device)
            fooled = taken_for != y
            seen_as[name, factor] = looks[fooled] == taken_for[fooled]
            rows.append(
                {
                    "network": name,
                    "times ε": factor,
                    "misclassified, %": percent(fooled),
                    "looks like that class to the judge, %": percent(seen_as[name, factor]) if bool(fooled.any()) else "",
                    "still looks like its own, %": percent(looks == y),
                }
            )
        images[name] = x_adv[:SHOWN].cpu().tolist()
    robust, standard = (seen_as[name, FACTORS[-1]].double() for name in ("at", "standard"))
    apart = float(robust.mean() - standard.mean())
    error = sqrt(sum(float(one.var(correction=0)) / max(len(one), 1) for one in (robust, standard)))
    right = 100 * judge.score(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    text = (
        f"at {FACTORS[-1]:g} ε, to a judge by nearest neighbours ({right:.0f} % right on clean examples), "
        f"{percent(robust > 0):.0f} % of the robust network's misclassified perturbations look like the class they are taken "
        f"for, and {percent(standard > 0):.0f} % of the standard one's"
    )
    verdict = True if apart > 2 * error else False if apart < -2 * error else None
    return Finding("large-epsilon", f"{setting}, {len(y):,} test examples", CLAIM, text, verdict, rows, {"images": images})


def draw(finding: Finding) -> "Figure":
    """Some examples, and what the largest perturbation makes of them on both networks."""
    return draw_rows(finding.series["images"])


def _perturbed(model: nn.Module, x: Tensor, y: Tensor, factor: float, setting: Setting) -> tuple[Tensor, Tensor]:
    """Attack by PGD-40 at ε times a factor; returns inputs, and what the network takes them for."""
    threat = setting.threat.scaled(factor)
    x_adv = pgd(model, x, y, threat, steps=40, step_size="eps/10", return_last=True, seed=setting.seed).x_adv
    with torch.no_grad():
        return x_adv, model(x_adv).argmax(1)


def _all_training(setting: Setting) -> tuple[Tensor, Tensor]:
    source = setting.base.load_data("train")
    return source.fetch(torch.arange(min(len(source), 10_000)))
