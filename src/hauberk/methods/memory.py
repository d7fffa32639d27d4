"""What a method remembers between batches."""

from typing import Any

import torch
from torch import Tensor

from hauberk.threat import ThreatModel

LEAST_SHARE = 0.1  # MMA's smallest radius; the public code has 0.005 of d_max 12/255 on CIFAR-10


class Memory:
    """MMA's radius of each example, and free training's perturbation."""

    def __init__(self) -> None:
        self._shares = torch.ones(0)
        self._point: Tensor | None = None  # free training's last input, whose gradient the caller's backward fills
        self._clean: Tensor | None = None

    def shares(self, index: Tensor | None, y: Tensor) -> Tensor:
        """Return each example's radius as a part of ε, (B,): 0.1 at first, and always where ``index`` is None."""
        if index is None:
            return torch.full(y.shape, LEAST_SHARE, device=y.device)
        return self._room(index, y.device)[index.to(y.device)]

    def remember(self, index: Tensor, shares: Tensor) -> None:
        """Keep the radii found, (B,), at least 0.1, of the examples ``index``, (B,)."""
        self._room(index, shares.device)[index.to(shares.device)] = shares.clamp(LEAST_SHARE, 1.0).to(torch.float32)

    def carried(self, x: Tensor, threat: ThreatModel) -> Tensor:
        """Free training's next input: the last perturbation, moved by ε along the gradient of the last backward.

        What is not finite in the perturbation, after a batch that was not, begins again at 0.

        Returns:
            (B, ...) inside the threat model; a leaf that takes a gradient.
        """
        region = threat.around(x)
        point = x
        if self._point is not None and self._clean is not None and self._point.shape == x.shape:
            grad = self._point.grad
            last = self._point.detach()
            if grad is not None:
                last = threat.around(self._clean).step(last, grad.nan_to_num(0.0, 0.0, 0.0), threat.eps)
            point = region.project(x + (last - self._clean).nan_to_num(0.0, 0.0, 0.0))
        self._point, self._clean = point.detach().clone().requires_grad_(), x
        return self._point

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {"shares": self._shares, **self.own_state()}

    def own_state(self) -> dict[str, Any]:
        """Return what each of several processes has of its own: the carried perturbation."""
        grad = None if self._point is None else self._point.grad
        return {
            "point": None if self._point is None else self._point.detach(),
            "clean": self._clean,
            "grad": grad,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._shares, self._clean = state["shares"], state.get("clean")
        self._point = None
        if state.get("point") is not None:
            self._point = state["point"].clone().requires_grad_()
            self._point.grad = state["grad"]

    def _room(self, index: Tensor, device: torch.device) -> Tensor:
        """Return all radii, with room for ``index``; the host does not wait if that is on the CPU."""
        needed = int(index.max()) + 1 - len(self._shares)
        self._shares = self._shares.to(device)
        if needed > 0:
            self._shares = torch.cat([self._shares, torch.full((needed,), LEAST_SHARE, device=device)])
        return self._shares
