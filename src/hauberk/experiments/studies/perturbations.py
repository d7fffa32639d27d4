"""Studies of perturbations and gradients: on which networks they work, and what they look like."""

from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from hauberk.attacks import frozen_model, logit_margin, pgd
from hauberk.core.errors import UserError
from hauberk.core.figures import COLOURS, COLUMN, column_figure, image_grid
from hauberk.experiments.studies.context import StudyContext, Variant
from hauberk.experiments.studies.masks import accuracies
from hauberk.experiments.studies.result import StudyResult
from hauberk.experiments.studies.verdict import (
    difference_of,
    mean_and_error,
    number_or_none,
    number_text,
    only,
    percent,
    sentence,
)

NETWORKS = ("standard", "at", "trades", "mart", "mail-trades")  # of the matrix of transfers
FACTORS = (1.0, 2.0, 4.0)  # of ε
PICTURES = 4  # examples that are shown
EXPLAINED = ("standard", "at", "trades", "mart")  # networks whose gradients are shown


def transfer(context: StudyContext) -> StudyResult:
    """Craft PGD-20 on each network, and try it on every one of its seed."""
    x, y = context.examples()
    models = {(one.seed, name): model for name, one, model in context.networks({name: Variant(name) for name in NETWORKS})}
    found: dict[tuple[str, str], list[Tensor]] = {(a, b): [] for a in NETWORKS for b in NETWORKS}
    for (seed, source), crafted_on in models.items():
        made = pgd(crafted_on, x, y, context.threat, steps=20, step_size="eps/10", return_last=True, seed=seed)
        with torch.no_grad():
            for target in NETWORKS:
                model = models[seed, target]
                found[source, target].append((model(made.x_adv).argmax(1) == y) & (model(x).argmax(1) == y))
    robust = {pair: torch.stack(some) for pair, some in found.items()}
    trained = NETWORKS[1:]
    worst = {b: min((percent(robust[a, b]), a) for a in NETWORKS if a != b) for b in trained}
    least = "; ".join(
        f"'{b}' keeps {left:.1f} % (from '{a}'; own {percent(robust[b, b]):.1f} %)" for b, (left, a) in worst.items()
    )
    kept = max(percent(robust[a, "standard"]) for a in trained)
    return StudyResult(
        f"under the worst PGD-20 from another network {least}; under those from robust networks 'standard' keeps at most "
        f"{kept:.1f} %",
        [
            sentence(f"'{b}' keeps more under PGD-20 from '{a}' than under its own", difference_of(robust[a, b], robust[b, b]))
            for b, (_, a) in worst.items()
        ],
        [{"crafted on": a, **{f"{b}, %": percent(robust[a, b]) for b in NETWORKS}} for a in NETWORKS],
        caption="Test examples that are still right under PGD-20 made on one network and tried on another, in percent, means "
        "over "
        "seeds; framed: made on the network itself (white box).",
    )


def draw_transfer(result: StudyResult) -> Figure:
    """The matrix of accuracies."""
    figure, (axes,) = column_figure((2.9,))
    matrix = [[row[f"{target}, %"] for target in NETWORKS] for row in result.rows]
    shown = axes.imshow(matrix, vmin=0, vmax=100, cmap="cividis")
    for i, row in enumerate(matrix):
        for j, accuracy in enumerate(row):
            axes.text(j, i, f"{accuracy:.0f}", ha="center", va="center", color="white" if accuracy < 55 else "black")
        axes.add_patch(Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=COLOURS[1], linewidth=1.5))
    axes.set(xticks=range(len(NETWORKS)), yticks=range(len(NETWORKS)), yticklabels=NETWORKS)
    axes.set_xticklabels(["mail-\ntrades" if name == "mail-trades" else name for name in NETWORKS])
    axes.grid(False)
    axes.set(xlabel="tried on", ylabel="made on")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="still right, %")
    return figure


def _require_images(context: StudyContext, study: str) -> None:
    """Refuse data that cannot be drawn, and say so before a network is trained."""
    shape = context.base.load_data("train").input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"study {study} needs images, (1 or 3 channels, height, width), not inputs of shape {shape}")


def large_epsilon(context: StudyContext) -> StudyResult:
    """Attack by PGD-40 at multiples of ε, and ask a judge without gradients which class the result looks like.

    The judge is the vote of the five nearest training examples, in pixels: no network, so nothing transfers to it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    _require_images(context, "large-epsilon")
    x, y = context.examples()
    source = context.base.load_data("train")
    train_x, train_y = source.fetch(torch.arange(min(len(source), 10_000)))
    judge = KNeighborsClassifier(5).fit(train_x.flatten(1).cpu().numpy(), train_y.cpu().numpy())
    variants = {name: Variant(name) for name in ("standard", "at")}
    images = {"clean": x[:PICTURES].cpu().tolist()}
    texts = {"clean": [f"class {label}" for label in y[:PICTURES].tolist()]}
    masks: dict[tuple[str, float], list[tuple[Tensor, ...]]] = {(name, factor): [] for name in variants for factor in FACTORS}
    for name, one, model in context.networks(variants):
        for factor in FACTORS:
            threat = context.threat.scaled(factor)
            x_adv = pgd(model, x, y, threat, steps=40, step_size="eps/10", return_last=True, seed=one.seed).x_adv
            with torch.no_grad():
                probabilities = model(x_adv).softmax(1)
            sure, taken_for = probabilities.max(1)
            if one.seed == context.seed:
                images[f"{name}\n{factor:g} ε"] = x_adv[:PICTURES].cpu().tolist()
                said = zip(taken_for[:PICTURES].tolist(), sure.tolist(), strict=False)
                texts[f"{name}\n{factor:g} ε"] = [f"{label}, p = {p:.2f}" for label, p in said]
            looks = torch.as_tensor(judge.predict(x_adv.flatten(1).cpu().numpy()), device=y.device)
            masks[name, factor].append((taken_for != y, looks == taken_for, looks == y))
    rows: list[dict[str, Any]] = []
    seen_as = {}
    for (name, factor), some in masks.items():
        fooled, alike, own = (torch.stack(parts) for parts in zip(*some, strict=True))
        seen_as[name] = only(fooled, alike)  # at the largest factor, in the end
        shares = {"misclassified, %": fooled, "looks like that class, %": seen_as[name], "still like its own, %": own}
        rows.append({"network": name, "times ε": factor, **accuracies(shares)})
    right = 100 * judge.score(x.flatten(1).cpu().numpy(), y.cpu().numpy())
    robust, standard = (number_text(100 * float(seen_as[name].nanmean())) for name in ("at", "standard"))
    return StudyResult(
        f"at {FACTORS[-1]:g} ε, to a judge by nearest neighbours ({right:.0f} % right on clean examples), {robust} % of the "
        f"robust network's misclassified perturbations look like the class they are taken for, and {standard} % of the "
        "standard one's",
        [
            sentence("most made on a robust network look like the class they are taken for (over half)", seen_as["at"] - 0.5),
            sentence("and more than of those made on a standard network", difference_of(seen_as["at"], seen_as["standard"])),
        ],
        rows,
        {"images": images, "texts": texts},
        caption="First test examples, and what PGD-40 with a multiple of ε makes of them on a standard and on an adversarially "
        "trained network (first seed); below each: what the network takes it for, with its probability.",
    )


def draw_large_epsilon(result: StudyResult) -> Figure:
    """Some examples, and what perturbations make of them on both networks."""
    count = len(result.series["images"]["clean"])
    return image_grid(result.series["images"], texts=result.series["texts"], size=COLUMN / count)


def saliency(context: StudyContext) -> StudyResult:
    """Take the gradient of the logit margin ``z_y - max_{k≠y} z_k`` to the input, and measure how much it resembles the input.

    Alignment (after Etmann et al. 2019) is ``|⟨x - mean, g⟩| / (‖x - mean‖·‖g‖)``, in [0, 1]; roughness is the mean absolute
    difference of neighbouring pixels of g over its mean absolute value.
    """
    _require_images(context, "saliency")
    x, y = context.examples()
    images = {"input": x[:PICTURES].cpu().tolist()}
    centred = (x - x.mean(0)).flatten(1)
    variants = {name: Variant(name, decides=name in ("standard", "at")) for name in EXPLAINED}
    measured: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in variants}
    for name, _, model in context.networks(variants):
        with frozen_model(model) as view:
            point = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(logit_margin(view(point), y).sum(), point)
        flat = grad.flatten(1)
        there = flat.abs().amax(1) > 0  # nothing can be said of a gradient that is 0
        lengths = (centred.norm(dim=1) * flat.norm(dim=1)).clamp_min(1e-30)
        measured[name].append((only(there, (centred * flat).sum(1).abs() / lengths), only(there, _roughness(grad))))
        images.setdefault(name, grad[:PICTURES].cpu().tolist())
    rows, found = [], {}
    for name, some in measured.items():
        aligned, rough = found[name] = [torch.stack(parts) for parts in zip(*some, strict=True)]
        row: dict[str, Any] = {"network": name}
        for what, values in (("alignment", aligned), ("roughness", rough)):
            row[what], row[f"{what} ±"] = (number_or_none(one) for one in mean_and_error(values))
        rows.append(row | {"zero gradients": int(aligned.isnan().sum())})
    (standard, rough_standard), (robust, rough_robust) = found["standard"], found["at"]
    return StudyResult(
        "the gradient's alignment with the input (mean) is "
        + " and its roughness ".join(
            f"{number_text(ours, 3)} for adversarial and {number_text(others, 3)} for standard training"
            for ours, others in ((rows[1][what], rows[0][what]) for what in ("alignment", "roughness"))
        ),
        [
            sentence("gradients of the robust network are more aligned with the input", difference_of(robust, standard), ""),
            sentence("and less rough", difference_of(rough_standard, rough_robust), ""),
        ],
        rows,
        {"images": images},
        caption="First test examples, and gradients of z_y - max z_k to each (first seed), on a scale of their own: what is "
        "blue "
        "would raise the margin if it were brighter, what is red would lower it.",
    )


def _roughness(grad: Tensor) -> Tensor:
    across, down = grad.diff(dim=-1).abs(), grad.diff(dim=-2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2 / grad.abs().flatten(1).mean(1).clamp_min(1e-30)


def draw_saliency(result: StudyResult) -> Figure:
    """Inputs and gradients side by side."""
    count = len(result.series["images"]["input"])
    return image_grid(result.series["images"], signed=EXPLAINED, size=COLUMN / count, key="margin")
