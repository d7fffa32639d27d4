"""Sums over an epoch, kept on the device and read seldom; exact sums, never means of means."""

import torch
from torch import Tensor

from hauberk.methods import Output

_FIELDS = ("examples", "loss", "clean", "clean_seen", "robust", "robust_seen")


class Meter:
    """Counts what training saw in passes it made anyway."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(_FIELDS), dtype=torch.float64, device=device)

    def add(self, out: Output, y: Tensor) -> None:
        """Add one step. No host synchronisation."""
        zero = torch.zeros((), device=y.device)
        count = torch.full((), len(y), device=y.device)
        row = [count, out.loss.detach() * len(y)]
        for logits in (out.logits, out.logits_adv):
            row += [zero, zero] if logits is None else [(logits.argmax(1) == y).sum(), count]
        self._sums += torch.stack([value.double() for value in row])

    def read(self) -> dict[str, float]:
        """Return means over the epoch so far; accuracies only of what the method looked at. Synchronises."""
        sums = dict(zip(_FIELDS, self._sums.tolist(), strict=True))
        means = {"loss": sums["loss"] / max(sums["examples"], 1)}
        for name in ("clean", "robust"):
            if sums[f"{name}_seen"]:
                means[f"train_{name}_accuracy"] = sums[name] / sums[f"{name}_seen"]
        return means

    def state(self) -> list[float]:
        """Return the sums, for a checkpoint."""
        return self._sums.tolist()

    def restore(self, state: list[float]) -> None:
        """Go on from the sums of a checkpoint."""
        self._sums = torch.tensor(state, dtype=torch.float64, device=self._sums.device)
