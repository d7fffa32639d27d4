"""The networks of published checkpoints."""

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
