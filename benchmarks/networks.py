"""Networks of published checkpoints, and ResNet-50."""

from torch import Tensor, nn


def small_net() -> nn.Module:
    """The network of Wong and Kolter (2018) and Wong et al. (2020)."""
    convolutions = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


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
