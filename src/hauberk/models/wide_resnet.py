"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis 2016), without the unused block of TRADES' public code."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from hauberk.models.resnet import PreActBlock


class WideResNet(nn.Module):
    """Three stages of n pre-activation blocks, 16k to 64k channels.

    Two counts of the depth are in use for the same networks: WRN-34-10 and Madry's WRN-32-10 both have five blocks a stage.

    Args:
        depth: d: 6n + 4, the number of convolutions, the three in shortcuts among them (the paper, TRADES); or 6n + 2, without
            those three and with the linear layer (Madry, FAT, GAIRAT).
        width: k, how many times wider than a plain ResNet.
        channels: of the input.
        classes: number of logits.
    """

    def __init__(self, depth: int, width: int, channels: int, classes: int):
        super().__init__()
        blocks = (depth - 2) // 6  # n by either count
        sizes = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = _stage(sizes[0], sizes[1], blocks, 1)
        self.block2 = _stage(sizes[1], sizes[2], blocks, 2)
        self.block3 = _stage(sizes[2], sizes[3], blocks, 2)
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
        logits: Tensor = self.fc(F.relu(self.bn1(out)).mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActBlock(inputs, outputs, stride), *[PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1)])
