"""SAM and ASAM: the loss at the weights where it is highest nearby (Foret et al. 2021, Kwon et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hauberk.core.arguments import check_fields
from hauberk.core.distributed import SINGLE_PROCESS, World
from hauberk.core.errors import UserError
from hauberk.objectives.functional import at_least_float32

_LEAST = 1e-16  # of a norm that is divided by, as in ASAM's public code


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation: one step of ascent of all parameters w together, of length ρ.

    ``v = ρ·g / ‖g‖₂`` (Foret et al. 2021); adaptive (ASAM, Kwon et al. 2021): ``v = ρ·T²g / ‖T·g‖₂``, where T is abs(w) + η for
    parameters with "weight" in their names, and 1 for the others, as in its public code. g is the gradient of the loss of the
    step, norms are over all parameters. ASAM's paper has ρ 0.5 on CIFAR-10, SAM's 0.05.

    Attributes:
        rho: ρ.
        adaptive: whether the step is in proportion to the weights.
        eta: η, of the adaptive form.
        warmup: epochs without it.
    """

    rho: float = 0.05
    adaptive: bool = False
    eta: float = 0.01
    warmup: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rho < 0 or self.eta < 0 or self.warmup < 0:
            raise UserError(f"rho, eta and warmup must not be negative, got {self.rho}, {self.eta} and {self.warmup}")

    def direction(self, model: nn.Module, loss: Tensor, world: World = SINGLE_PROCESS) -> dict[str, Tensor]:
        """Return the step v by the names of the parameters; arguments as of :meth:`hauberk.AWP.direction`."""
        chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        found = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
        reached = {name: grad for name, grad in zip(chosen, found, strict=True) if grad is not None}
        if not reached:
            return {}
        grads = list(reached.values())
        world.average(grads)
        scales = [self._scale(name, chosen[name]) for name in reached]
        for grad, scale in zip(grads, scales, strict=True):
            if scale is not None:
                grad.mul_(scale)
        length = torch.stack([at_least_float32(norm) for norm in torch._foreach_norm(grads)]).norm() + _LEAST
        for grad, scale in zip(grads, scales, strict=True):
            grad.mul_((self.rho / length).to(grad.dtype)).mul_(1 if scale is None else scale)
        return dict(zip(reached, grads, strict=True))

    def _scale(self, name: str, parameter: Tensor) -> Tensor | None:
        """T of one parameter; None for 1."""
        return parameter.detach().abs() + self.eta if self.adaptive and "weight" in name else None
