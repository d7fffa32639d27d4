"""Sums over an epoch, kept on the device and read seldom; exact sums, never means of means."""

import torch
from torch import Tensor

from hauberk.core.distributed import World
from hauberk.methods import Output


class EpochMetrics:
    """Counts what training saw in passes it made anyway."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}  # of each quantity over examples
        self._counts: dict[str, int] = {}  # how many examples each was seen on

    def add(self, out: Output, y: Tensor, divisor: float) -> None:
        """Add one step. No host synchronisation.

        Args:
            out: what the method returned.
            y: labels, (b,).
            divisor: what the sum of the examples' losses was divided by.
        """
        self._add("loss", out.loss.detach() * divisor, len(y))
        for name, logits in (("train_clean_accuracy", out.logits), ("train_robust_accuracy", out.logits_adv)):
            if logits is not None:
                self._add(name, (logits.argmax(1) == y).sum(), len(y))
        for name, value in out.report.items():
            self._add(name, value * len(y), len(y))

    def total(self, world: World) -> "EpochMetrics":
        """Return the sums over all processes, which all have seen the same quantities."""
        if world.size == 1 or not self._sums:
            return self
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=self._device)
        sums, counts = world.sum(torch.stack([torch.stack(list(self._sums.values())), counts]))
        whole = EpochMetrics(self._device)
        whole._sums = dict(zip(self._sums, sums, strict=True))
        whole._counts = {name: int(count) for name, count in zip(self._sums, counts, strict=True)}
        return whole

    def read(self) -> dict[str, float]:
        """Return means over the epoch so far; accuracies only of what the method looked at. Synchronises."""
        return {"loss": 0.0} | {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, list[float]]:
        """Return sums and counts, for a checkpoint."""
        return {name: [float(total), self._counts[name]] for name, total in self._sums.items()}

    def restore(self, state: dict[str, list[float]], share: int = 1) -> None:
        """Go on from the sums of a checkpoint, times 1 or, where another process has them, 0."""
        self._sums = {name: torch.tensor(share * s, dtype=torch.float64, device=self._device) for name, (s, _) in state.items()}
        self._counts = {name: share * int(count) for name, (_, count) in state.items()}

    def _add(self, name: str, total: Tensor, count: int) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sums[name] = self._sums.get(name, zero) + total.double()
        self._counts[name] = self._counts.get(name, 0) + count
