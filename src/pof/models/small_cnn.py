"""A tiny convolutional network for 8x8 images: the demonstration's model, trained in seconds on one core."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class SmallCNN(nn.Module):
    """Two convolutions with batch norm, pooling to (H/4, W/4) averages, linear head; H and W are at least 4.

    Args:
        num_classes: number of classes C.
        in_channels: channels of the images.
        width: factor on the channels of both convolutions, 32 and 64.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: int = 1) -> None:
        super().__init__()
        first, second = 32 * width, 64 * width
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(second * 4, num_classes)
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, in_channels, H, W)."""
        maps = max_pool2d(relu(self.bn1(self.conv1(images))), 2)
        maps = relu(self.bn2(self.conv2(maps)))
        logits: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits
