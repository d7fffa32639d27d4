"""Sums over an epoch, kept on the device and read seldom; exact sums, never means of means."""

import torch
from torch import Tensor

from hauberk.methods import Output


class Meter:
    """Counts what training saw in passes it made anyway."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}  # of each quantity over examples
        self._counts: dict[str, int] = {}  # how many examples each was seen on

    def add(self, out: Output, y: Tensor) -> None:
        """Add one step. No host synchronisation."""
        self._add("loss", out.loss.detach() * len(y), len(y))
        for name, logits in (("train_clean_accuracy", out.logits), ("train_robust_accuracy", out.logits_adv)):
            if logits is not None:
                self._add(name, (logits.argmax(1) == y).sum(), len(y))
        for name, value in out.report.items():
            self._add(name, value * len(y), len(y))

    def read(self) -> dict[str, float]:
        """Return means over the epoch so far; accuracies only of what the method looked at. Synchronises."""
        return {"loss": 0.0} | {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, list[float]]:
        """Return sums and counts, for a checkpoint."""
        return {name: [float(total), self._counts[name]] for name, total in self._sums.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Go on from the sums of a checkpoint."""
        self._sums = {name: torch.tensor(s, dtype=torch.float64, device=self._device) for name, (s, _) in state.items()}
        self._counts = {name: int(count) for name, (_, count) in state.items()}

    def _add(self, name: str, total: Tensor, count: int) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums[name] = self._sums.get(name, zero) + total.double()
        self._counts[name] = self._counts.get(name, 0) + count
