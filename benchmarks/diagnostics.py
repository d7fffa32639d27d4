"""What each diagnostic measures on honest networks and on defences that only hide: where its thresholds come from.

    python benchmarks/diagnostics.py --checkpoints FOLDER --data-dir FOLDER --out runs/diagnostics

Trains small honest networks of several kinds, evaluates them and what hides one of them, and keeps what it has. Prints a row
for each network, and for each diagnostic its values on the honest and on the broken.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from broken_defences import BROKEN, Defence
from common import Options, first, parse, print_head, print_row, trained, when
from networks import TradesNet, VisionTransformer, cnn, resnet, small_net
from torch import nn

import hauberk as hb
from hauberk.core.io import as_json, read_json, write_atomically
from hauberk.evaluation import DIAGNOSTICS, Finding


@dataclass(frozen=True)
class Diagnosed(Options):
    """What is diagnosed."""

    data: str = "mnist"
    """Name of the data set of the networks that are trained here."""
    checkpoints: Path | None = None
    """Folder of published networks."""
    out: Path = Path("runs/diagnostics")
    """Folder of networks and of what was found."""
    train: int = 2_000
    """Training images."""
    test: int = 60
    """Test images."""
    suite: str = "quick"
    """Attacks."""
    only: tuple[str, ...] = ()
    """Names of networks; empty for all."""


@dataclass(frozen=True)
class Honest:
    """A network without a defence but its training."""

    make: Callable[[], nn.Module]
    eps: float
    method: str = ""  # empty: a published checkpoint
    dtype: torch.dtype = torch.float32
    data: str = "mnist"


PUBLISHED = {
    "fast_adversarial_mnist_fgsm.pth": Honest(small_net, 0.3),
    "trades_mnist_smallcnn.pt": Honest(TradesNet, 0.3),
    "convex_adversarial_models_mnist.pth": Honest(small_net, 0.1),
}
HONEST = {
    "cnn": Honest(small_net, 0.15, "standard"),
    "cnn at": Honest(small_net, 0.15, "at"),
    "cnn trades": Honest(small_net, 0.15, "trades"),
    "cnn fgsm-at": Honest(small_net, 0.15, "fgsm-at"),
    "silu at": Honest(partial(cnn, nn.SiLU), 0.15, "at"),
    "softplus at": Honest(partial(cnn, partial(nn.Softplus, beta=10)), 0.15, "at"),
    "leaky relu, average pooling": Honest(partial(cnn, nn.LeakyReLU, pool=nn.AvgPool2d), 0.15, "standard"),
    "elu, max pooling, group norm at": Honest(partial(cnn, nn.ELU, pool=nn.MaxPool2d, groups=4), 0.15, "at"),
    "tanh": Honest(partial(cnn, nn.Tanh), 0.15, "standard"),
    "mlp": Honest(partial(nn.Sequential, nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), 0.15, "standard"),
    "resnet": Honest(partial(resnet, preact=False), 0.15, "standard"),
    "resnet at": Honest(partial(resnet, preact=False), 0.15, "at"),
    "preact resnet trades": Honest(partial(resnet, preact=True), 0.15, "trades"),
    "vit": Honest(VisionTransformer, 0.15, "standard"),
    "vit at": Honest(VisionTransformer, 0.15, "at"),
}
IN_BFLOAT16 = ("cnn at", "resnet at", "vit at", "resnet", "silu at")


def diagnosed(model: nn.Module, path: Path, test_set: Any, eps: float, options: Diagnosed, **how: Any) -> dict[str, Any]:
    """Evaluate with all diagnostics, and keep their values with the result; returns what is kept."""
    if not path.exists():
        values: dict[str, float] = {}

        def recorded(name: str, function: Callable[[Any], list[Finding]], evidence: Any) -> list[Finding]:
            found = function(evidence)
            values.update({one.name or name: one.value for one in found})
            return found

        specs = [replace(spec, function=partial(recorded, spec.name, spec.function)) for spec in DIAGNOSTICS.values()]
        result = hb.evaluate(
            model, test_set, threat=hb.Linf(eps), suite=options.suite, n=options.test, diagnostics=specs, quiet=True, **how
        )
        numbers = {"clean": result.clean_accuracy, "robust": result.robust_accuracy, "by": result.by_attack}
        flags = {d.name: d.verdict for d in result.warnings}
        write_atomically(path, as_json({**numbers, "flags": flags, "values": values, "when": when(options.threads)}).encode())
    return read_json(path)


def honest_network(name: str, options: Diagnosed) -> nn.Module:
    """Train one of ``HONEST``, or load it from where it was kept."""
    one, folder = HONEST[name], options.out / "networks" / name.replace(" ", "-").replace(",", "")
    torch.manual_seed(0)
    train_set = first(options.data, "train", options.data_dir, options.train)
    steps = {} if one.method in ("standard", "fgsm-at") else {"steps": 5, "step_size": "eps/3"}
    how: dict[str, Any] = {"epochs": 6, "lr": 0.05, "batch_size": 32, "val_size": 200}
    threat = hb.Linf(one.eps)
    trained(folder, one.make(), train_set, threat, method=hb.method(one.method, threat, **steps), **how)
    return hb.load(folder, model=one.make(), which="last").eval()


def main() -> None:
    """Diagnose all networks."""
    options = parse(Diagnosed)
    options.out.mkdir(parents=True, exist_ok=True)
    test_set = first("mnist", "test", options.data_dir, options.test)
    networks: dict[str, Callable[[], tuple[nn.Module, float, dict[str, Any]]]] = {}
    if options.checkpoints is not None:
        for file, one in PUBLISHED.items():
            networks[file] = partial(
                lambda one, file: (hb.load(options.checkpoints / file, model=one.make()), one.eps, {}), one, file
            )
    for name, one in HONEST.items():
        networks[name] = partial(lambda name, one: (honest_network(name, options), one.eps, {}), name, one)
    for name in IN_BFLOAT16:
        networks[f"{name} in bfloat16"] = partial(
            lambda name: (honest_network(name, options).to(torch.bfloat16), HONEST[name].eps, {}), name
        )
    for name, (defence, how) in BROKEN.items():
        networks[f"BROKEN {name}"] = partial(
            lambda defence, how: (Defence(honest_network("cnn", options), defence), 0.15, how), defence, how
        )
    found = {}
    for name, make in networks.items():
        if options.only and not any(part in name for part in options.only):
            continue
        path = options.out / f"{name.replace(' ', '-').replace(',', '')}.json"
        model, eps, how = (None, 0.0, {}) if path.exists() else make()
        found[name] = diagnosed(model, path, test_set, eps, options, **how)
        one = found[name]
        flags = ", ".join(f"{flag.upper() if verdict == 'invalid' else flag}" for flag, verdict in one["flags"].items())
        print_row(name, 100 * one["clean"], 100 * one["robust"], flags)
    print()
    print_head("diagnostic", "honest, largest first", "broken, largest first")
    for diagnostic in dict.fromkeys(key for one in found.values() for key in one["values"]):
        halves: list[str] = []
        for broken in (False, True):
            some = [
                inf if one["values"][diagnostic] is None else one["values"][diagnostic]  # null in JSON is no number
                for name, one in found.items()
                if name.startswith("BROKEN") == broken and diagnostic in one["values"]
            ]
            halves.append(" ".join(f"{value:.3g}" for value in sorted(some, reverse=True)))
        print_row(diagnostic, *halves)


if __name__ == "__main__":
    main()
