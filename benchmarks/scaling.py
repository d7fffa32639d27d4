"""How training scales: messages and steps measured on this machine, a simulation of both, and what it says of larger ones.

    torchrun --nproc_per_node 2 benchmarks/scaling.py

Prints the tables of docs/scaling.md. Everything about other machines is an assumption, and an option.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import tyro
from common import where
from networks import ResNet50
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import hauberk as hb
from hauberk.core.distributed import World, data_parallel, running_statistics
from hauberk.models import ModelSpec

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes; DistributedDataParallel's
MESSAGES = (2**10, 2**14, 2**18, 2**20, 2**22, 2**24, 2**25)  # bytes


@dataclass(frozen=True)
class Options:
    """What to measure here, and what to assume of clusters."""

    methods: tuple[str, ...] = ("at", "mail-trades", "at+awp")
    """Methods measured."""
    models: tuple[str, ...] = ("small-cnn", "resnet18")
    """Networks measured, on 3×32×32."""
    batch: int = 32
    """Examples of each process."""
    rounds: int = 5
    """Times each step is made."""
    images_per_second: float = 2500.0
    """Assumed: of one GPU, in ordinary training of ResNet-50 on 224×224."""
    link: float = 200e9
    """Assumed: bytes a second between the GPUs of a node."""
    network: float = 40e9
    """Assumed: bytes a second of each GPU to other nodes."""
    latency: float = 10e-6
    """Assumed: seconds of one hop."""


@dataclass(frozen=True)
class Layers:
    """A network as DDP sees it: in the order in which gradients become ready, with when that is.

    Attributes:
        sizes: bytes of each parameter's gradient.
        ready: share of the backward pass after which each is there.
    """

    sizes: list[int]
    ready: list[float]


def buckets(layers: Layers) -> list[tuple[float, int]]:
    """When each bucket is full, as a share of the backward pass, and its bytes."""
    found: list[tuple[float, int]] = []
    held = 0
    for size, ready in zip(layers.sizes, layers.ready, strict=True):
        held += size
        if held >= (BUCKET if found else FIRST_BUCKET):
            found.append((ready, held))
            held = 0
    return [*found, (1.0, held)] if held else found


def exposed(layers: Layers, backward: float, seconds_of: Callable[[int], float]) -> float:
    """Seconds that a step waits for gradients after its backward pass; messages go one after the other."""
    free = 0.0
    for ready, size in buckets(layers):
        free = max(free, ready * backward) + seconds_of(size)
    return max(0.0, free - backward)


def measured_messages(rounds: int) -> dict[int, float]:
    """Median seconds of one all-reduce, by bytes."""
    found = {}
    for size in MESSAGES:
        flat = torch.zeros(size // 4)
        times = []
        for _ in range(rounds + 1):
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(flat)
            times.append(time.perf_counter() - begun)
        found[size] = median(times[1:])
    return found


def line_through(points: dict[int, float]) -> tuple[float, float]:
    """Latency in seconds, and bytes a second: the quickest message, and the slope from there to the largest."""
    quickest, large = min(points, key=lambda size: points[size]), max(points)
    return points[quickest], (large - quickest) / (points[large] - points[quickest])


def layers_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Layers, float]:
    """Watch one backward pass. Returns also its seconds."""
    stamps: list[tuple[int, float]] = []
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: stamps.append((4 * p.numel(), time.perf_counter())))
        for p in model.parameters()
    ]
    loss = nn.functional.cross_entropy(model(x), y)
    begun = time.perf_counter()
    loss.backward()
    seconds = time.perf_counter() - begun
    for hook in hooks:
        hook.remove()
    return Layers([size for size, _ in stamps], [(at - begun) / seconds for _, at in stamps]), seconds


def measured_step(name: str, net: nn.Module, x: Tensor, y: Tensor, world: World, rounds: int) -> list[float]:
    """Seconds of each of some training steps."""
    settings = {"burn_in": 0} if name.startswith("mail") else {}
    method = hb.method(name, hb.Linf("8/255"), precision="fp32", **settings)
    step = partial(method, net) if world.size == 1 else data_parallel(hb.Step(net, method), world)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    times = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        optimizer.zero_grad()
        step(x, y).loss.backward()
        optimizer.step()
        world.average(running_statistics(net))
        times.append(time.perf_counter() - begun)
    return times[2:]


def here(options: Options, world: World) -> None:
    """Measure messages and steps, and compare with the simulation."""
    points = measured_messages(20)
    latency, speed = line_through(points)
    say(world, f"\nAll-reduce between {world.size} processes (gloo): {1e3 * latency:.2f} ms and {speed / 1e9:.2f} GB/s")
    say(world, "\n| bytes | measured, ms | line, ms |\n|---|---|---|")
    for size, seconds in points.items():
        say(world, f"| {size:,} | {1e3 * seconds:.2f} | {1e3 * (latency + size / speed):.2f} |")
    say(world, "\n| network | method | one, s | slower of two, s | overlapped, s | in turn, s | measured, s |")
    say(world, "|---|---|---|---|---|---|---|")
    for model in options.models:
        x, y = torch.rand(options.batch, 3, 32, 32), torch.arange(options.batch) % 10
        net = ModelSpec(model, (3, 32, 32), 10).build()
        layers, backward = layers_of(net, x, y)
        for name in options.methods:
            # Alone, but while the other process computes, too: what counts is what messages add.
            alone = world.all_gather_object(measured_step(name, net, x, y, World(), options.rounds))
            slower = median(max(times) for times in zip(*alone, strict=True))
            together = median(measured_step(name, net, x, y, world, options.rounds))
            more = latency + sum(layers.sizes) / speed if name.endswith("+awp") else 0.0  # AWP's gradient, before it goes on
            waits = [
                exposed(layers, backward, lambda size: latency + size / speed),
                sum(latency + size / speed for _, size in buckets(layers)),
            ]
            row = [median(chain(*alone)), slower, *(slower + more + wait for wait in waits), together]
            say(world, f"| {model} | `{name}` | {' | '.join(f'{seconds:.3f}' for seconds in row)} |")


class Flops(TorchDispatchMode):
    """Counts floating-point operations; torch's FlopCounterMode cannot watch gradients to inputs alone."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops(name: str, net: nn.Module, x: Tensor, y: Tensor, steps: int) -> float:
    """Floating-point operations of one step of a method."""
    method = hb.method(name, hb.Linf("4/255"), steps=steps, precision="model", **({"burn_in": 0} if "mail" in name else {}))
    method(net, x, y).loss.backward()  # checks of the first call
    with Flops() as counter:
        method(net, x, y).loss.backward()
    return counter.total


def elsewhere(options: Options, world: World) -> None:
    """Simulate ImageNet-size training on clusters that nobody has given us."""
    batch, x, y = 64, torch.rand(2, 3, 224, 224), torch.arange(2)
    net = ResNet50()
    with Flops() as counter:
        nn.functional.cross_entropy(net(x), y).backward()
    training_pass = counter.total
    speed = options.images_per_second * training_pass / 2  # operations a second
    layers, _ = layers_of(net, x, y)
    say(
        world,
        f"\nResNet-50: {training_pass / 2e9:.1f} GFLOP for the training pass of an image, {sum(layers.sizes) / 1e6:.0f} MB",
    )
    say(
        world,
        "\n| method | K | passes | GPUs | step, ms | waiting for messages, ms | efficiency | 90 epochs, hours | GPU hours |",
    )
    say(world, "|---|---|---|---|---|---|---|---|---|")
    for name, steps in (("standard", 0), ("at", 3), ("at", 10), ("mail-trades+awp", 10)):
        work = training_pass if not steps else flops(name, net, x, y, steps)
        compute = batch * work / 2 / speed
        backward = batch * training_pass / 2 / speed * 2 / 3
        for gpus in (1, 8, 64, 512):
            nodes = max(1, gpus // 8)

            def seconds_of(size: int, gpus: int = gpus, nodes: int = nodes) -> float:
                if gpus == 1:
                    return 0.0
                local = 2 * size * 7 / 8 / options.link
                between = 2 * size / 8 * (nodes - 1) / nodes / options.network
                return local + between + 2 * options.latency * math.log2(gpus)

            wait = exposed(layers, backward, seconds_of) + 2 * seconds_of(2**18)  # BatchNorm's statistics, there and back
            wait += seconds_of(4 * batch * gpus) if "mail" in name else 0.0  # margins of the whole batch
            wait += seconds_of(sum(layers.sizes)) if "awp" in name else 0.0
            hours = 90 * 1_281_167 / (batch * gpus) * (compute + wait) / 3600
            say(
                world,
                f"| `{name}` | {steps} | {work / training_pass:.1f} | {gpus} | {1e3 * (compute + wait):.0f} | {1e3 * wait:.2f} "
                f"| {compute / (compute + wait):.1%} | {hours:,.1f} | {hours * gpus:,.0f} |",
            )


def say(world: World, text: str) -> None:
    """Print once."""
    if world.is_main:
        print(text, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with hb.init_distributed() as world:
        chosen = tyro.cli(Options)
        say(world, where())
        here(chosen, world)
        elsewhere(chosen, world)
