"""Studies of images: what large perturbations look like, and what input gradients show."""

from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hauberk.attacks import frozen_model, logit_margin, pgd
from hauberk.experiments.figures import image_grid
from hauberk.experiments.studies.base import (
    Measured,
    StudyContext,
    StudyResult,
    larger_by_two_errors,
    paired_difference,
    percent,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (1.0, 2.0, 4.0)  # of ε
EXPLAINED = ("standard", "at", "trades", "mart")  # networks whose gradients are shown


def large_epsilon(context: StudyContext) -> Measured:
    """Attack by PGD-40 at multiples of ε, and ask a judge without gradients which class the result looks like.

    The judge is the vote of the five nearest training examples, in pixels: no network, so nothing transfers to it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = context.examples()
    source = context.base.load_data("train")
    train_x, train_y = source.fetch(torch.arange(min(len(source), 10_000)))
    judge = KNeighborsClassifier(5).fit(train_x.flatten(1).cpu().numpy(), train_y.cpu().numpy())
    rows: list[dict[str, Any]] = []
    images, seen_as = {"clean": x[:4].cpu().tolist()}, {}
    for name in ("standard", "at"):
        model = context.trained(name)
        for factor in FACTORS:
            threat = context.threat.scaled(factor)
            x_adv = pgd(model, x, y, threat, steps=40, step_size="eps/10", return_last=True, seed=context.seed).x_adv
            with torch.no_grad():
                taken_for = model(x_adv).argmax(1)
            looks = torch.as_tensor(judge.predict(x_adv.flatten(1).cpu().numpy()), device=y.device)
            fooled = taken_for != y
            seen_as[name] = looks[fooled] == taken_for[fooled]  # at the largest factor, in the end
            rows.append(
                {
                    "network": name,
                    "times ε": factor,
                    "misclassified, %": percent(fooled),
                    "looks like that class to the judge, %": percent(seen_as[name]) if bool(fooled.any()) else "",
                    "still looks like its own, %": percent(looks == y),
                }
            )
        images[name] = x_adv[:4].cpu().tolist()
    robust, standard = (seen_as[name].double() for name in ("at", "standard"))
    error = sqrt(sum(float(one.var(correction=0)) / max(len(one), 1) for one in (robust, standard)))
    right = 100 * judge.score(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    return Measured(
        f"at {FACTORS[-1]:g} ε, to a judge by nearest neighbours ({right:.0f} % right on clean examples), "
        f"{percent(robust):.0f} % of the robust network's misclassified perturbations look like the class they are taken "
        f"for, and {percent(standard):.0f} % of the standard one's",
        larger_by_two_errors([(float(robust.mean() - standard.mean()), error)]),
        rows,
        {"images": images},
    )


def draw_large_epsilon(result: StudyResult) -> "Figure":
    """Some examples, and what the largest perturbation makes of them on both networks."""
    return image_grid(result.series["images"])


def saliency(context: StudyContext) -> Measured:
    """Take the gradient of the logit margin to the input, and measure how much it resembles the input.

    Alignment (after Etmann et al. 2019) is ``|⟨x - mean, g⟩| / (‖x - mean‖·‖g‖)``, in [0, 1]; roughness is the mean absolute
    difference of neighbouring pixels of g over its mean absolute value.
    """
    x, y = context.examples()
    aligned, rows, images = {}, [], {"input": x[:5].cpu().tolist()}
    centred = (x - x.mean(0)).flatten(1)
    for name in EXPLAINED:
        grad = _input_gradient(context.trained(name, decides=name in ("standard", "at")), x, y)
        flat = grad.flatten(1)
        lengths = (centred.norm(dim=1) * flat.norm(dim=1)).clamp_min(1e-30)
        aligned[name] = (centred * flat).sum(1).abs() / lengths
        row: dict[str, Any] = {
            "network": name,
            "alignment, median": float(aligned[name].median()),
            "roughness, median": float(_roughness(grad).median()),
            "zero gradients": int((flat.abs().amax(1) == 0).sum()),
        }
        rows.append(row)
        images[name] = grad[:5].cpu().tolist()
    points, error = paired_difference(aligned["at"], aligned["standard"])
    standard, robust = rows[:2]
    return Measured(
        f"the gradient's alignment with the input is {robust['alignment, median']:.3f} for adversarial and "
        f"{standard['alignment, median']:.3f} for standard training (medians; mean difference {points / 100:+.3f} ± "
        f"{error / 100:.3f}), its roughness {robust['roughness, median']:.2f} and {standard['roughness, median']:.2f}",
        larger_by_two_errors([(points, error)]),
        rows,
        {"images": images},
    )


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of ``z_y - max_{k≠y} z_k`` to the input, (N, C, H, W)."""
    with frozen_model(model) as view:
        point = x.clone().requires_grad_()
        return torch.autograd.grad(logit_margin(view(point), y).sum(), point)[0]


def _roughness(grad: Tensor) -> Tensor:
    across, down = grad.diff(dim=-1).abs(), grad.diff(dim=-2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2 / grad.abs().flatten(1).mean(1).clamp_min(1e-30)


def draw_saliency(result: StudyResult) -> "Figure":
    """Inputs and gradients side by side."""
    return image_grid(result.series["images"], signed=EXPLAINED)
