"""When to look at what makes processes, or the host and its GPU, wait for each other."""

import time

import torch

from hauberk.core.distributed import World

_EVERY = 1.0  # seconds


class SyncThrottle:
    """Says before which steps to look: all of them where looking costs nothing, otherwise about one in a second.

    Args:
        world: processes that must look before the same steps.
        device: where training runs.
    """

    def __init__(self, world: World, device: torch.device):
        self._world = world
        self._free = world.size == 1 and device.type == "cpu"
        self._begun = time.perf_counter()
        self._steps = self._left = 0

    def due(self) -> bool:
        """Whether to look now; to be asked before each step."""
        if self._free:
            return True
        if self._left > 0:
            self._left -= 1
            return False
        self._steps = self._left = self._world.on_main_process(self._next)
        self._begun = time.perf_counter()
        return True

    def _next(self) -> int:
        """How many steps to leave out: as many as take a second, at most twice as many as last time, and one more."""
        pace = (time.perf_counter() - self._begun) / (self._steps + 1)
        return min(int(_EVERY / pace), 2 * self._steps + 1)
