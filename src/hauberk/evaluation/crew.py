"""The crew: several processes that share one evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Crew:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    def share(self, examples: list[int]) -> list[int]:
        """The examples that are this process's own."""
        return examples[self.rank :: self.size]

    def meet(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()

    def gather(self, mine: Any) -> list[Any]:
        """Collect what each process has, everywhere."""
        if self.size == 1:
            return [mine]
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine)
        return everybody


def crew() -> Crew:
    """Return the crew of ``torch.distributed`` if a process group has been set up, otherwise a crew of one."""
    if dist.is_available() and dist.is_initialized():
        return Crew(dist.get_rank(), dist.get_world_size())
    return Crew()


@contextmanager
def joined_crew(device: torch.device) -> Iterator[Crew]:
    """Join the processes that ``torchrun`` has started, if it has, for as long as the block lasts."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield crew()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo")  # only verdicts are exchanged, from the host
    try:
        yield crew()
    finally:
        dist.destroy_process_group()
