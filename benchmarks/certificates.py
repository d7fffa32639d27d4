"""What certificates prove of published networks, in which time and memory, beside PGD on the same images.

A network whose file (benchmarks/networks.py) is not there is left out.
"""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Options, parse, print_head, print_row, where
from networks import CHECKPOINTS, load_checkpoint, small_net

import hauberk as hb
from hauberk.data import load_data

# Name of a network, its file in place of that of CHECKPOINTS, data, threat model, and images at most.
ROWS = (
    ("convex", "", "mnist", hb.Linf(0.1), 10_000),
    ("convex", "convex_adversarial_models_fashion_mnist.pth", "fashion-mnist", hb.Linf(0.1), 1_000),
    ("cnn-a", "", "cifar10", hb.Linf("2/255"), 200),
    ("cnn-a", "", "cifar10", hb.Linf("1/255"), 200),
    ("cnn-a", "", "cifar10", hb.L2(0.05), 100),
    ("cnn-a", "", "cifar10", hb.L1(0.1), 100),
    ("wong", "", "mnist", hb.Linf(0.1), 200),
)


@dataclass(frozen=True)
class Certificates(Options):
    """Certify published networks."""

    checkpoints: Path = Path("checkpoints")
    """Folder of their files."""
    images: int = 10_000
    """Images of each at most, the first ones."""
    only: str = ""
    """Name of the network to take; by default all of them."""


def main() -> None:
    """Print a row for each network."""
    options = parse(Certificates)
    print(where())
    print_head("network", "threat", "images", "clean", "certified", "under PGD-40", "s an image", "peak MiB")
    for name, file, data, threat, most in ROWS:
        path = options.checkpoints / (file or CHECKPOINTS[name].file)
        if not path.exists() or options.only not in ("", name):
            continue
        if file:
            net = small_net().eval()
            weights = torch.load(path, map_location="cpu", weights_only=True)
            net.load_state_dict(weights.get("state_dict", weights))
        else:
            net = load_checkpoint(name, options.checkpoints)
        test, n = load_data(data, "test", folder=options.data_dir), min(most, options.images)
        begun = time.process_time()
        found = hb.certify(
            net, test, threat=threat, n=n, out=options.out / f"certificates-{path.stem}-{threat}".replace("/", "-")
        )
        seconds = (time.process_time() - begun) / n
        attacked = hb.evaluate(net, test, threat=threat, n=min(n, 1_000), attacks=["pgd-40"], diagnostics="cheap", quiet=True)
        robust = f"{100 * attacked.robust_accuracy:.1f} (of {attacked.n:,})"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        shares = 100 * found.clean_accuracy, 100 * found.certified_accuracy
        print_row(path.stem, threat, f"{n:,}", *shares, robust, f"{seconds:.3f}", f"{peak:.0f}")


if __name__ == "__main__":
    main()
