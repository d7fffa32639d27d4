"""RWP and MLCAT-WP: weights perturbed by those examples only whose loss is small (Yu et al. 2022)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hauberk.core.arguments import check_fields
from hauberk.core.errors import UserError
from hauberk.core.step_context import StepContext
from hauberk.methods.weight_perturbation.awp import applied, perturbed_parameters
from hauberk.objectives.functional import at_least_float32

_LEAST = 1e-20  # as in the public code


@dataclass(frozen=True)
class RWP:
    """Robust weight perturbation: several steps of ascent on the losses below a threshold.

    ``g_k = ∇ mean_i 1[ℓ_i < c]·ℓ_i`` at the weights w + v_k, ``v_{k+1} = γ·‖w‖/‖G‖·G`` with ``G = Σ_{j ≤ k} g_j`` and v_0 = 0;
    norms are over all perturbed weights together, ℓ_i is the whole loss of an example (Yu et al. 2022, "Robust Weight
    Perturbation for Adversarial Training": c_min 1.7, 10 steps, γ 0.01). MLCAT-WP (Yu et al. 2022, "Understanding Robust
    Overfitting of Adversarial Training and Beyond") is the same with c = 1.5.

    Attributes:
        c_min: c; only examples with a smaller loss perturb the weights.
        gamma: γ, size of the perturbation relative to the norm of the weights.
        ascent_steps: number of steps.
        warmup: epochs without it.
    """

    c_min: float = 1.7
    gamma: float = 0.01
    ascent_steps: int = 10
    warmup: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.gamma < 1 or self.warmup < 0:
            raise UserError(f"gamma must be at least 0 and below 1, warmup not negative, got {self.gamma} and {self.warmup}")
        if self.ascent_steps < 1:
            raise UserError(f"ascent_steps must be at least 1, got {self.ascent_steps}")

    def search(self, model: nn.Module, losses: Callable[[], Tensor], context: StepContext) -> dict[str, Tensor]:
        """Return v by the names of the parameters.

        Args:
            model: whose weights are perturbed.
            losses: computes the loss of each example of this process, (b,) with a graph, at the weights as they are.
            context: of the step.
        """
        chosen = perturbed_parameters(model)
        total: dict[str, Tensor] = {}
        change: dict[str, Tensor] = {}
        for _ in range(self.ascent_steps):
            with applied(model, dict(change)):
                values = losses()
                small = context.mean(values * (values.detach() < self.c_min))
                grads = torch.autograd.grad(small, list(chosen.values()), allow_unused=True)
            reached = {name: grad for name, grad in zip(chosen, grads, strict=True) if grad is not None}
            context.world.average(list(reached.values()))
            total = {name: grad + total[name] if name in total else grad for name, grad in reached.items()}
            if not total:
                return {}
            weights = _length([chosen[name].detach() for name in total])
            scale = self.gamma * weights / (_length(list(total.values())) + _LEAST)
            change = {name: grad * scale.to(grad.dtype) for name, grad in total.items()}
        return change


def _length(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together."""
    length: Tensor = torch.stack([at_least_float32(norm) for norm in torch._foreach_norm(tensors)]).norm()
    return length
