"""α-CROWN and β-CROWN: what CROWN's bounds leave open is chosen so that they become as good as possible."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.certification.bounds.activations import LeakyReLU
from hauberk.certification.bounds.crown import lower_bound
from hauberk.certification.bounds.graph import Bounds, Graph
from hauberk.certification.bounds.region import Region

_STEP, _BETA_STEP, _DECAY = 0.25, 0.1, 0.9  # of the ascent on slopes and multipliers, and what they shrink by at each step


def optimised_bound(
    graph: Graph,
    bounds: Bounds,
    region: Region,
    c: Tensor,
    steps: int,
    splits: Mapping[int, Tensor] | None = None,
    seen: dict[int, Tensor] | None = None,
) -> Tensor:
    """The best of CROWN's bounds of the output while the lower slopes of ReLUs are moved to raise it.

    Each function of each example has slopes α of its own, which Adam moves; intermediate bounds stay (Xu et al. 2021). Where
    sets are cut by the sign of some inputs of ReLUs, multipliers β of these conditions are moved with them (Wang et al. 2021).
    The bounds hold for all slopes and multipliers, so that it does not matter for them how far the optimisation gets.

    Args:
        graph: of the network.
        bounds: of all its values.
        region: sets of B inputs.
        c: coefficients of S linear functions, (B, S, C).
        steps: of Adam; it ends before where all bounds are positive.
        splits: for the number of a ReLU, 1 where its input is known to be at least 0, -1 where it is at most 0, (B, ...).
        seen: as :func:`lower_bound` takes it.

    Returns:
        (B, S).
    """
    alphas, limits, betas, signs = {}, {}, {}, {}
    for number, node in enumerate(graph.nodes[: graph.output + 1]):
        if not isinstance(node, LeakyReLU):
            continue
        chosen = bounds.of(graph, number)[0][:, None].expand(*c.shape[:2], *node.shape)
        free = node.choice(*bounds.intervals[node.inputs[0]])[:, None]
        alphas[number] = chosen.clone().requires_grad_()
        limits[number] = torch.where(free, node.slope, chosen), torch.where(free, 1.0, chosen)
        if splits and number in splits:
            signs[number] = splits[number][:, None].to(c)
            betas[number] = torch.zeros_like(chosen).requires_grad_()
    best = torch.full_like(c[..., 0], -torch.inf)
    groups = [{"params": list(alphas.values()), "lr": _STEP}, {"params": list(betas.values()), "lr": _BETA_STEP}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]]) if alphas else None
    for step in range(steps + 1 if alphas else 1):
        with torch.enable_grad():
            multipliers = {number: beta * signs[number] for number, beta in betas.items()}
            bound = lower_bound(graph, bounds, region, graph.output, c, alphas, multipliers, seen)
            loss = -bound.sum()
        best = torch.maximum(best, bound.detach())
        if optimizer is None or step == steps or bool((best > 0).all()):
            break
        parameters = [*alphas.values(), *betas.values()]
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad
        optimizer.step()
        with torch.no_grad():
            for number, alpha in alphas.items():
                alpha.copy_(alpha.clamp(*limits[number]))
            for beta in betas.values():
                beta.clamp_(min=0)
        for group in optimizer.param_groups:
            group["lr"] *= _DECAY
    return best
