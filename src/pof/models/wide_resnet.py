"""Wide residual networks WRN-depth-width (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

Pre-activation blocks of two 3x3 convolutions with optional dropout between them; where the width or the
resolution changes, the shortcut is a 1x1 convolution of the activated input.  For small images: no pooling in
the stem, total stride 4.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from pof._support.checks import whole_number


class WideResNet(nn.Module):
    """WRN-``depth``-``width`` for images (N, in_channels, H, W); H and W are at least 4.

    Args:
        depth: number of convolution layers, 6 n + 4: 16, 22, 28, 40, ...
        width: multiplier k of the channel counts 16, 32, 64.
        num_classes: number of classes C.
        in_channels: channels of the images.
        dropout: probability of zeroing an activation between the two convolutions of a block.

    Raises:
        ValueError: if the depth is not 6 n + 4, or a number is out of its range.
    """

    def __init__(self, depth: int, width: int, *, num_classes: int, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        whole_number("depth", depth, 0, 1000)
        whole_number("width", width, 1, 100)
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, ...); got {depth}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1); got {dropout}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, 1, dropout)
        self.layer2 = _stage(16 * width, 32 * width, blocks, 2, dropout)
        self.layer3 = _stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, in_channels, H, W)."""
        maps = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(relu(self.bn1(maps))).flatten(1))
        return logits


class WideBlock(nn.Module):
    """Pre-activation block: BN, ReLU, convolution, BN, ReLU, dropout, convolution, plus the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changed = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changed else None

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (N, channels, H / stride, W / stride) of maps (N, in_channels, H, W)."""
        active = relu(self.bn1(maps))
        skip = maps if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(self.dropout(relu(self.bn2(self.conv1(active)))))
        return residual + skip


def _stage(in_channels: int, channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(in_channels, channels, stride, dropout)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))


def _initialise(model: nn.Module) -> None:
    """He et al. 2015, over the outgoing connections as in the paper's own experiments; biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
