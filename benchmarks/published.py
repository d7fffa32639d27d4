"""AutoAttack on small networks with published or certified robust accuracy, on MNIST.

    python benchmarks/published.py --checkpoints FOLDER --data-dir FOLDER --out runs/published

Share it by ``torchrun --nproc_per_node 2 benchmarks/published.py ...``; interrupted, the same command goes on. Prints a
table for docs/results.md.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import TradesNet, small_net
from torch import nn

import hauberk as hb
from hauberk.core.distributed import init_distributed


@dataclass(frozen=True)
class Published:
    """A network and what is known of it."""

    file: str
    net: type[nn.Module] | None
    eps: float
    n: int
    known: str
    random: bool = False  # n of all images, not the first


NETWORKS = {
    "wong-1000": Published(
        "fast_adversarial_mnist_fgsm.pth", None, 0.3, 1000, "official on these: 85.0 (CE), 83.1 (T), 82.8 (FAB), 79.7"
    ),
    "wong": Published("fast_adversarial_mnist_fgsm.pth", None, 0.3, 10_000, "published: 82.93"),
    "trades-1000": Published("trades_mnist_smallcnn.pt", TradesNet, 0.3, 1000, "published, all 10,000: 92.81"),
    "trades-sample": Published("trades_mnist_smallcnn.pt", TradesNet, 0.3, 600, "published, all 10,000: 92.81", random=True),
    "certified": Published("convex_adversarial_models_mnist.pth", None, 0.1, 10_000, "certified: at least 94.2"),
}


def main() -> None:
    """Run those asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("model", "fp32", "tf32", "bf16", "auto"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    test = hb.data.load_data("mnist", "test", options.data_dir)
    shuffled = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    with init_distributed() as world:
        for name in options.only:
            known = NETWORKS[name]
            model = hb.load(options.checkpoints / known.file, model=(known.net or small_net)())
            threat = hb.Linf(known.eps)
            images = test.fetch(shuffled[: known.n] if known.random else torch.arange(known.n))
            folder = options.out / name
            result = hb.evaluate(
                model, images, threat=threat, suite="standard", out=folder, precision=options.precision, quiet=True
            )
            if world.is_main:
                after = ", ".join(f"{attack} {100 * share:.2f}" for attack, share in result.by_attack.items())
                flags = ", ".join(d.name for d in result.warnings) or "none"
                print(f"| {name} | {100 * result.clean_accuracy:.2f} | {after} | {known.known} | {flags} |", flush=True)


if __name__ == "__main__":
    main()
