"""The processes that share one training or evaluation."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from hauberk.core.errors import RemoteUserError, UserError, first_line

T = TypeVar("T")
Items = TypeVar("Items", list[int], Tensor)

_left: list[Any] = []  # see init_distributed
_SYNC_EVERY = 1.0  # seconds
_BEAT, _SILENT = 10.0, 180.0  # seconds between two signs of life, and without one until a process is given up
_STATISTICS = ("running_mean", "running_var")  # of BatchNorm layers
_SIGNS_OF_LOSS = ("gloo", "NCCL", "onnection", "Broken pipe", "Timed out", "DistStore")  # in messages of collectives


@dataclass(frozen=True)
class World:
    """Which process this is, of how many.

    Every method but ``local_shard``, ``shard_sizes`` and ``take_local`` is called by all processes together.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def local_shard(self, items: Items) -> Items:
        """The items that are this process's own: every ``size``-th."""
        return items[self.rank :: self.size]

    def shard_sizes(self, total: int) -> list[int]:
        """How many of ``total`` items each process has by ``local_shard``."""
        return [len(range(rank, total, self.size)) for rank in range(self.size)]

    def all_gather_object(self, mine: Any) -> list[Any]:
        """Collect what each process has, everywhere, through the host."""
        if self.size == 1:
            return [mine]
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, _on_host(mine))
        return everything

    def on_main_process(self, act: Callable[[], T]) -> T:
        """Let the first process do something, and return its result, or raise its UserError, everywhere."""
        if self.size == 1:
            return act()
        said: list[Any] = [None, None]
        if self.is_main:
            try:
                said[0] = _on_host(act())
            except UserError as error:
                said[1] = error
        dist.broadcast_object_list(said, 0)
        if said[1] is not None:
            raise said[1] if self.is_main else RemoteUserError(str(said[1]))
        result: T = said[0]
        return result

    def raise_if_any(self, problem: str) -> None:
        """Raise a UserError in all processes if any has a problem; each says what it has, or ""."""
        if problems := [said for said in self.all_gather_object(problem) if said]:
            raise UserError(problems[0]) if self.is_main else RemoteUserError(problems[0])

    def all_gather_ints(self, *mine: int) -> list[list[int]]:
        """Collect some small numbers of each process, everywhere. Where hosts can talk, no GPU is waited for."""
        if self.size == 1:
            return [list(mine)]
        device = "cpu" if "cpu" in dist.get_backend_config() else "cuda"
        everything = [torch.empty(len(mine), dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(everything, torch.tensor(mine, dtype=torch.int64, device=device))
        return [numbers.tolist() for numbers in everything]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process has it set."""
        return [any(seen) for seen in zip(*self.all_gather_ints(*flags), strict=True)]

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor of the same shape over the processes, on its device."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    @torch.no_grad()
    def average(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; one message for each dtype."""
        if self.size == 1:
            return
        for dtype in sorted({value.dtype for value in values}, key=str):
            some = [value for value in values if value.dtype == dtype]
            flat = torch.cat([value.flatten() for value in some])
            dist.all_reduce(flat)
            for value, mean in zip(some, (flat / self.size).split([value.numel() for value in some]), strict=True):
                value.copy_(mean.view_as(value))

    def all_gather_rows(self, mine: Tensor, sizes: Sequence[int]) -> Tensor:
        """Put the rows of all processes, (b, ...) each, one behind the other; ``sizes`` are the b of each."""
        if self.size == 1:
            return mine
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        everything = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everything, padded)
        return torch.cat([rows[:size] for rows, size in zip(everything, sizes, strict=True)])

    def take_local(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Take this process's rows out of those of all."""
        begin = sum(sizes[: self.rank])
        return rows[begin : begin + sizes[self.rank]]

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        if self.size > 1:
            for value in (*module.parameters(), *module.buffers()):
                if isinstance(value, Tensor):  # a module may keep other things besides
                    dist.broadcast(value, 0)


def _on_host(value: Any) -> Any:
    """Put the tensors in dicts, lists and tuples on the CPU: unpickled elsewhere, those of a GPU would take memory of it."""
    return tree_map_only(Tensor, Tensor.cpu, value)


SINGLE_PROCESS = World()


def get_world() -> World:
    """Return the world of ``torch.distributed`` if a process group has been set up, otherwise a world of one."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return SINGLE_PROCESS


@contextmanager
def init_distributed(timeout: timedelta = timedelta(minutes=30)) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, if it has, for as long as the block lasts.

    Each process takes the GPU of its local rank, where there is one; messages between hosts go through gloo, between GPUs
    through NCCL.

    Args:
        timeout: how long a process waits for one that is at work elsewhere. One that has died is noticed at once; one that
            gives no sign of life, because it is stopped or its machine hangs, after three minutes: it is named, and this
            process ends, as nothing can wake it from its wait.

    Raises:
        UserError: in the block, if another process is lost.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield get_world()
        return
    gpus = torch.cuda.device_count()
    if local_rank() < gpus:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timeout)
    ended = threading.Event()
    try:
        store: Any = dist.distributed_c10d._get_default_store()
        threading.Thread(target=_watch_others, args=(get_world(), store.clone(), ended), daemon=True).start()
        with translate_lost_process("the same command goes on"):
            yield get_world()
            dist.barrier()  # gloo may abort where one process leaves while others still talk
    finally:
        ended.set()
        # A DistributedDataParallel may live on, in somebody's variable or in a traceback. When it is freed, it drops its
        # reference to the group while it holds Python's lock. Were that the last one, the group's destructor would wait for
        # threads that wait for this lock, for ever. Python's own reference lets go of the lock, so it has to be the last.
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def _watch_others(world: World, store: Any, ended: threading.Event) -> None:
    """Give signs of life, and end this process where another gives none. A rank that is only slow gives them."""
    others = {rank: (b"", 0) for rank in range(world.size) if rank != world.rank}  # the last sign, and beats since then
    while not ended.wait(_BEAT):  # beats are counted, not seconds: this process itself may have been stopped
        try:
            store.set(f"alive-{world.rank}", str(time.time_ns()))
            for rank, (sign, silent) in others.items():
                key = f"alive-{rank}"
                now = store.get(key) if store.check([key]) else b""
                others[rank] = (now, 0 if now != sign else silent + 1)
        except RuntimeError:  # the process that keeps the store has ended, which everybody notices
            return
        for rank, (_, silent) in others.items():
            if silent * _BEAT >= _SILENT and not ended.is_set():
                if store.add("silence-told", 1) == 1:
                    what = f"process {rank} of this group gives no sign of life: it is stopped, or its machine hangs"
                    print(f"hauberk: {what}; what was saved before is intact, the same command goes on", file=sys.stderr)
                    sys.stderr.flush()
                os._exit(1)


@contextmanager
def translate_lost_process(advice: str) -> Iterator[None]:
    """Raise a UserError, with advice on what to do, where a collective inside the block fails as another process is lost."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise UserError(f"another process of this group was lost; what was saved before is intact, {advice}") from error
        raise


def local_rank() -> int:
    """Return which process of this machine this is, as ``torchrun`` counts them; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def data_parallel(module: nn.Module, world: World) -> nn.Module:
    """Return the module to call, whose backward pass averages gradients where there are several processes.

    Its forward pass sends the buffers of the first process to all others, but those of BatchNorm layers, which are equal
    everywhere by :func:`running_statistics`. To begin with, all have to be equal.
    """
    if world.size == 1:
        return module
    batchnorm = [name for name, layer in module.named_modules() if isinstance(getattr(layer, "running_mean", None), Tensor)]
    known = [f"{layer}.{name}" for layer in batchnorm for name in (*_STATISTICS, "num_batches_tracked")]
    module._ddp_params_and_buffers_to_ignore = known  # type: ignore[assignment]
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of BatchNorm layers, which each process moves by its own part of a batch.

    Averaged after each step, they are equal everywhere: means are those of the whole batch (for parts of equal size), variances
    the average of those within the parts.
    """
    found = [getattr(module, name, None) for module in model.modules() for name in _STATISTICS]
    return [value for value in found if isinstance(value, Tensor)]


def usable_device(name: str | torch.device) -> torch.device:
    """Return a device that can hold tensors; raise UserError if there is none of that name."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {str(name)!r:.40} cannot be used: {first_line(error)}") from error
    if device.type == "meta":
        raise UserError("device 'meta' cannot be used: its tensors hold nothing")
    return device


class SyncThrottle:
    """Says before which steps to synchronise: all of them where that costs nothing, otherwise about one in a second.

    The processes of ``world`` synchronise before the same steps.
    """

    def __init__(self, world: World, device: torch.device):
        self._world = world
        self._free = world.size == 1 and device.type == "cpu"
        self._begun = time.perf_counter()
        self._skipped = self._left = 0

    def should_sync(self) -> bool:
        """Whether to synchronise now; to be asked before each step."""
        if self._free:
            return True
        if self._left > 0:
            self._left -= 1
            return False
        self._skipped = self._left = self._world.on_main_process(self._next)
        self._begun = time.perf_counter()
        return True

    def _next(self) -> int:
        """How many steps to leave out: as many as take a second, at most twice as many as last time, and one more."""
        pace = (time.perf_counter() - self._begun) / (self._skipped + 1)
        return min(int(_SYNC_EVERY / pace), 2 * self._skipped + 1)
