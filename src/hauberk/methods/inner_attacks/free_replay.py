"""The perturbation of free adversarial training, which lives from one batch to the next."""

from typing import Any

from torch import Tensor, nn

from hauberk.attacks import PGD
from hauberk.core.step_context import StepContext
from hauberk.methods.inner_attacks.batch_attack import refuse_radii


class FreeReplay(nn.Module):
    """Free adversarial training (Shafahi et al. 2019): the perturbation of the last batch, moved by its own backward pass.

    Args:
        n_replays: times each batch is to be used in a row.
    """

    attack = PGD(1, "eps")

    def __init__(self, n_replays: int = 8):
        super().__init__()
        self.n_replays = n_replays
        self._point: Tensor | None = None  # the last input, whose gradient the caller's backward fills
        self._clean: Tensor | None = None

    def __call__(self, context: StepContext) -> Tensor:
        """Return the next input, (B, ...) inside the threat model: a leaf that takes a gradient.

        The last perturbation is moved by ε along the gradient of the last backward. What is not finite in it, after a batch
        that was not, begins again at 0.
        """
        refuse_radii(context, "free training carries one perturbation from example to example")
        x, threat = context.x, context.threat
        point = x
        if self._point is not None and self._clean is not None and self._point.shape == x.shape:
            grad, last = self._point.grad, self._point.detach()
            if grad is not None:
                before = threat.around(self._clean)
                last = before.step(last, grad.nan_to_num(0.0, 0.0, 0.0), before.eps)
            point = threat.around(x).project(x + (last - self._clean).nan_to_num(0.0, 0.0, 0.0))
        self._point, self._clean = point.detach().clone().requires_grad_(), x
        return self._point

    def fresh(self) -> "FreeReplay":
        """Return the same with nothing carried over."""
        return FreeReplay(self.n_replays)

    def local_state(self) -> dict[str, Any]:
        """Return what each of several processes has of its own: the carried perturbation."""
        if self._point is None:
            return {}
        return {"point": self._point.detach(), "clean": self._clean, "grad": self._point.grad}

    get_extra_state = local_state

    def load_local_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; {} for a beginning."""
        self._point, self._clean = None, state.get("clean")
        if state:
            self._point = state["point"].clone().requires_grad_()
            self._point.grad = state["grad"]

    set_extra_state = load_local_state
