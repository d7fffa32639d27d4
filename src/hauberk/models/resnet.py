"""Residual networks for small images (3×3 stem, no max-pooling), as the adversarial-training papers use them."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Block = Callable[[int, int, int, Activation], nn.Module]  # inputs, outputs, stride, activation


class BasicBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, twice, with the ReLU after the sum (He et al. 2016a)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = F.relu):
        super().__init__()
        self.activation = activation
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        out = self.activation(self.bn1(self.conv1(x)))
        return self.activation(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution (He et al. 2016b)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation = F.relu):
        super().__init__()
        self.activation = activation
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        straight = stride == 1 and inputs == outputs
        self.shortcut = None if straight else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        out = self.activation(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(out)
        change: Tensor = self.conv2(self.activation(self.bn2(self.conv1(out))))
        return change + kept


class ResNet(nn.Module):
    """ResNet-18: four stages of two blocks, 64 to 512 channels, global average pooling; 11.2 M parameters at that width.

    Args:
        block: ``BasicBlock``; or ``PreActBlock``, to which the stem leaves BatchNorm and ReLU, with a last pair of them before
            pooling, as in robust_overfitting.
        input_shape: (channels, height, width).
        classes: number of logits.
        width: channels of the first stage; each later one has twice those before it.
        activation: between the layers.
    """

    def __init__(
        self, block: Block, input_shape: tuple[int, ...], classes: int, width: int = 64, activation: Activation = F.relu
    ):
        super().__init__()
        self.preact, self.activation = block is PreActBlock, activation
        sizes = [width, 2 * width, 4 * width, 8 * width]
        self.conv1 = _conv3(input_shape[0], sizes[0])
        self.bn1 = nn.BatchNorm2d(sizes[3] if self.preact else sizes[0])
        self.layer1 = _stage(block, sizes[0], sizes[0], 2, 1, activation)
        self.layer2 = _stage(block, sizes[0], sizes[1], 2, 2, activation)
        self.layer3 = _stage(block, sizes[1], sizes[2], 2, 2, activation)
        self.layer4 = _stage(block, sizes[2], sizes[3], 2, 2, activation)
        self.linear = nn.Linear(sizes[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> logits (B, classes)."""
        out = self.conv1(x)
        if not self.preact:
            out = self.activation(self.bn1(out))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        if self.preact:
            out = self.activation(self.bn1(out))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


class WideResNet(nn.Module):
    """WRN-d-k (Zagoruyko and Komodakis 2016), without the unused block of TRADES' public code: three stages of n blocks.

    Two counts of the depth are in use for the same networks: WRN-34-10 and Madry's WRN-32-10 both have five blocks a stage.

    Args:
        depth: d: 6n + 4, the number of convolutions, the three in shortcuts among them (the paper, TRADES); or 6n + 2, without
            those three and with the linear layer (Madry, FAT, GAIRAT).
        width: k, how many times wider than a plain ResNet.
        input_shape: (channels, height, width).
        classes: number of logits.
        activation: between the layers.
    """

    def __init__(self, depth: int, width: int, input_shape: tuple[int, ...], classes: int, activation: Activation = F.relu):
        super().__init__()
        self.activation = activation
        blocks = (depth - 2) // 6  # n by either count
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = _conv3(input_shape[0], 16)
        self.block1 = _stage(PreActBlock, sizes[0], sizes[1], blocks, 1, activation)
        self.block2 = _stage(PreActBlock, sizes[1], sizes[2], blocks, 2, activation)
        self.block3 = _stage(PreActBlock, sizes[2], sizes[3], blocks, 2, activation)
        self.bn1 = nn.BatchNorm2d(sizes[3])
        self.fc = nn.Linear(sizes[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> logits (B, classes)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.activation(self.bn1(out)).mean((2, 3)))
        return logits


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _stage(block: Block, inputs: int, outputs: int, blocks: int, stride: int, activation: Activation) -> nn.Sequential:
    later = (block(outputs, outputs, 1, activation) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, outputs, stride, activation), *later)
