"""Residual networks for CIFAR, ResNet-20 to -110 (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

Three stages of 16, 32, 64 channels (times ``width``) with two 3x3 convolutions per block.  Where the
resolution changes the shortcut is the paper's option A, without parameters (``"pad"``), or option B
(``"projection"``).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from pof._support.checks import whole_number

Shortcut = Literal["pad", "projection"]


class CifarResNet(nn.Module):
    """ResNet-``depth`` for images (N, in_channels, H, W); H and W are at least 4.

    Args:
        depth: number of weight layers, 6 n + 2: 20, 32, 44, 56, 110.
        num_classes: number of classes C.
        in_channels: channels of the images.
        shortcut: ``"pad"`` subsamples by two and pads the new channels with zeros, half on either side
            (option A); ``"projection"`` is a 1x1 convolution with batch norm (option B).
        width: multiplier of the channel counts.

    Raises:
        ValueError: if the depth is not 6 n + 2, or the shortcut or width is not one of the above.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        shortcut: Shortcut = "pad",
        width: int = 1,
    ) -> None:
        super().__init__()
        whole_number("depth", depth, 0, 1000)
        whole_number("width", width, 1, 100)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of a CIFAR ResNet is 6 n + 2 (20, 32, 44, 56, 110); got {depth}")
        if shortcut not in {"pad", "projection"}:
            raise ValueError(f"shortcut is 'pad' or 'projection'; got {shortcut!r}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16 * width)
        self.layer1 = _stage(16 * width, 16 * width, blocks, 1, shortcut)
        self.layer2 = _stage(16 * width, 32 * width, blocks, 2, shortcut)
        self.layer3 = _stage(32 * width, 64 * width, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, in_channels, H, W)."""
        maps = relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(self.avgpool(maps).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Convolution, BN, ReLU, convolution, BN, plus the shortcut, ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (N, channels, H / stride, W / stride) of maps (N, in_channels, H, W)."""
        residual = self.bn2(self.conv2(relu(self.bn1(self.conv1(maps)))))
        return relu(residual + self.shortcut(maps))


class PadShortcut(nn.Module):
    """Option A: take every ``stride``-th pixel and pad the channels with zeros, half on either side."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_channels + new_channels, H / stride, W / stride) of maps (N, in_channels, H, W)."""
        return pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _shortcut(in_channels: int, channels: int, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(channels - in_channels, stride)
    convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))
