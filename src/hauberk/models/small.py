"""Small networks that train in minutes on a CPU."""

import math

from torch import nn


def small_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two strided convolutions and two linear layers; no BatchNorm. For images of 4×4 and up.

    Args:
        input_shape: (channels, height, width).
        classes: number of logits.
    """
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def mlp(input_shape: tuple[int, ...], classes: int, width: int = 128) -> nn.Module:
    """Two hidden layers on the flattened input, for vectors and small images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
