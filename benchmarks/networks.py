"""Networks of published checkpoints, ResNet-50, and small ones of several kinds for MNIST."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.models import Normalize
from hauberk.models.resnet import BasicBlock, PreActBlock


def small_net(shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    """The network of Wong and Kolter (2018) and Wong et al. (2020), and of α,β-CROWN's CNN-A, for images (C, H, W)."""
    channels, height, width = shape
    convolutions = [nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    flat = 32 * (height // 4) * (width // 4)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10))


def cifar_net() -> nn.Module:
    """The network "cnn_a" of the verification benchmarks (Zhang et al. 2022) on CIFAR-10, with its normalisation before it."""
    convolutions = [nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    layers = [nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10)]
    normalize = Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    return nn.Sequential(normalize, nn.Sequential(*convolutions, *layers))


class TradesNet(nn.Module):
    """The network of TRADES (Zhang et al. 2019) on MNIST, with the names of its checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Sequential()
        sizes = (1, 32, 32, 64, 64)
        for k in range(1, 5):
            self.feature_extractor.add_module(f"conv{k}", nn.Conv2d(sizes[k - 1], sizes[k], 3))
            self.feature_extractor.add_module(f"relu{k}", nn.ReLU())
            if k % 2 == 0:
                self.feature_extractor.add_module(f"maxpool{k // 2}", nn.MaxPool2d(2))
        self.classifier = nn.Sequential()
        for name, layer in {
            "fc1": nn.Linear(1024, 200), "relu1": nn.ReLU(), "drop": nn.Dropout(0.5),
            "fc2": nn.Linear(200, 200), "relu2": nn.ReLU(), "fc3": nn.Linear(200, 10),
        }.items():  # fmt: skip
            self.classifier.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 28, 28)."""
        logits: Tensor = self.classifier(self.feature_extractor(x).flatten(1))
        return logits


@dataclass(frozen=True)
class Checkpoint:
    """A published file, the network that it is of, and its data set."""

    file: str
    build: Callable[[], nn.Module]
    data: str = "mnist"


CHECKPOINTS = {
    "wong": Checkpoint("fast_adversarial_mnist_fgsm.pth", small_net),
    "trades": Checkpoint("trades_mnist_smallcnn.pt", TradesNet),
    "convex": Checkpoint("convex_adversarial_models_mnist.pth", small_net),
    "cnn-a": Checkpoint("abcrown_cifar_cnn_a_adv.model", cifar_net, "cifar10"),
}


def load_checkpoint(name: str, folder: Path) -> nn.Module:
    """Return a published network; a normalisation before it, which its file has not, is its own."""
    known = CHECKPOINTS[name]
    net = known.build()
    weights = torch.load(folder / known.file, map_location="cpu", weights_only=True)
    inner = list(net.children())[-1] if isinstance(next(net.children()), Normalize) else net
    inner.load_state_dict(weights.get("state_dict", weights))
    return net.eval()


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 pixels around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs, sizes = 4 * width, ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        layers: list[nn.Module] = []
        for before, after, size, step in sizes:
            layers += [nn.Conv2d(before, after, size, step, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.change = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 width, H/stride, W/stride)."""
        return (self.change(x) + self.shortcut(x)).relu()


class ResNet50(nn.Sequential):
    """ResNet-50 (He et al. 2016) for images of 224×224, 25.6 M parameters."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for k in range(count):
                layers.append(Bottleneck(inputs, width, 2 if k == 0 and width > 64 else 1))
                inputs = 4 * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def cnn(activation: type[nn.Module], pool: type[nn.Module] | None = None, groups: int = 0) -> nn.Module:
    """Two convolutions and two linear layers for images of 1×28×28, with an activation, and pooling in place of strides."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 4, 2, 1) if pool is None else nn.Conv2d(inputs, outputs, 3, 1, 1)
        norm = [nn.GroupNorm(groups, outputs)] if groups else []
        return [convolution, *norm, activation(), *([pool(2)] if pool is not None else [])]

    return nn.Sequential(*block(1, 16), *block(16, 32), nn.Flatten(), nn.Linear(1568, 100), activation(), nn.Linear(100, 10))


def resnet(preact: bool, width: int = 8) -> nn.Module:
    """ResNet-18's blocks at an eighth of their width, for images of 1×28×28."""
    block = PreActBlock if preact else BasicBlock
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1, bias=False)]
    if not preact:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    sizes = (width, width, 2 * width, 4 * width, 8 * width)
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [block(inputs, outputs, 1 if k == 0 else 2), block(outputs, outputs, 1)]
    if preact:
        layers += [nn.BatchNorm2d(sizes[-1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) of two layers for images of 1×28×28: 16 patches, 48 channels, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 48, 7, 7)
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 28, 28)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_zeros(len(x), 1, 48), tokens], 1) + self.place
        logits: Tensor = self.head(self.layers(tokens)[:, 0])
        return logits
