"""How an image becomes a network's input where it is evaluated: size, crop, interpolation and normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pof._support.checks import finite, whole_number

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Margin = Literal["even", "down"]
MAX_SIZE = 8192
# Nearly every model of photographs was trained with these, and widely used public CIFAR checkpoints expect them;
# CIFAR's own differ by less than 0.06.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From an 8-bit RGB image to a tensor (3, size, size).

    Args:
        size: side of the square input, in pixels.
        mean: per channel, in units of the full intensity.
        std: per channel, in the same units.
        interpolation: of the resizing.
        crop: share of the resized image's shorter side that the central crop keeps, in (0, 1].
        squash: resize both sides to the same length, whatever their ratio.
        margin: of which the crop begins at a half where it is odd: rounded half to even (torchvision), or down
            (Transformers).

    Raises:
        ValueError: if a value is out of range.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop: float = 7 / 8
    squash: bool = False
    margin: Margin = "even"

    def __post_init__(self) -> None:
        whole_number("image_size", self.size, 1, MAX_SIZE)
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation is one of {', '.join(get_args(Interpolation))}; got {self.interpolation!r}"
            )
        finite("crop", self.crop, above=0)
        if self.crop > 1:
            raise ValueError(f"crop is a share of the image in (0, 1]; got {self.crop}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is resized to before the central crop of ``size``."""
        side = math.floor(self.size / self.crop + 1e-6)  # as timm rounds; a quotient of whole numbers comes back
        if self.squash:
            return side, side
        short = min(width, height)
        return side * width // short, side * height // short

    def centre(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Edges of the central crop of a resized image: left, top, right, bottom."""
        halves = ((side - self.size) / 2 for side in (width, height))
        left, top = (round(half) if self.margin == "even" else int(half) for half in halves)
        return left, top, left + self.size, top + self.size
