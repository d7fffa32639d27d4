"""saliency: input gradients of a standard and a robust network (lecture notes; Tsipras et al. 2019, Etmann et al. 2019)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hauberk.attacks import frozen_model, logit_margin
from hauberk.experiments.studies.finding import Finding
from hauberk.experiments.studies.measure import difference
from hauberk.experiments.studies.pictures import draw_rows
from hauberk.experiments.studies.setting import Setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "Saliency maps of robust networks are easier to understand for human eyes (lecture notes on adversarial training)."
NETWORKS = ("standard", "at", "trades", "mart")
SHOWN = 5


def run(setting: Setting) -> Finding:
    """Take the gradient of the logit margin to the input, and measure how much it resembles the input.

    Alignment (after Etmann et al. 2019) is ``|⟨x - mean, g⟩| / (‖x - mean‖·‖g‖)``, in [0, 1]; roughness is the mean absolute
    difference of neighbouring pixels of g over its mean absolute value.
    """
    x, y = setting.examples()
    aligned, rows = {}, []
    images = {"input": x[:SHOWN].cpu().tolist()}
    centred = (x - x.mean(0)).flatten(1)
    for name in NETWORKS:
        grad = input_gradient(setting.trained(name, judged=name in ("standard", "at")), x, y)
        flat = grad.flatten(1)
        lengths = (centred.norm(dim=1) * flat.norm(dim=1)).clamp_min(1e-30)
        aligned[name] = (centred * flat).sum(1).abs() / lengths
        rows.append(
            {
                "network": name,
                "alignment, median": float(aligned[name].median()),
                "roughness, median": float(_roughness(grad).median()),
                "zero gradients": int((flat.abs().amax(1) == 0).sum()),
            }
        )
        images[name] = grad[:SHOWN].cpu().tolist()
    points, error = difference(aligned["at"], aligned["standard"])
    text = (
        f"the gradient's alignment with the input is {rows[1]['alignment, median']:.3f} for adversarial and "
        f"{rows[0]['alignment, median']:.3f} for standard training (medians; mean difference {points / 100:+.3f} ± "
        f"{error / 100:.3f}), its roughness {rows[1]['roughness, median']:.2f} and {rows[0]['roughness, median']:.2f}"
    )
    verdict = True if points > 2 * error else False if points < -2 * error else None
    return Finding("saliency", f"{setting}, {len(y):,} test examples", CLAIM, text, verdict, rows, {"images": images})


def draw(finding: Finding) -> "Figure":
    """Inputs and gradients side by side."""
    return draw_rows(finding.series["images"], signed=NETWORKS)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of ``z_y - max_{k≠y} z_k`` to the input, (N, C, H, W)."""
    with frozen_model(model) as view:
        point = x.clone().requires_grad_()
        return torch.autograd.grad(logit_margin(view(point), y).sum(), point)[0]


def _roughness(grad: Tensor) -> Tensor:
    across, down = grad.diff(dim=-1).abs(), grad.diff(dim=-2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2 / grad.abs().flatten(1).mean(1).clamp_min(1e-30)
