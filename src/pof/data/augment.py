"""Augmentation of whole batches, with a fresh draw for each sample: pad-crop, horizontal flip, cutout.

Each operation is a pure function of images and draws; nothing here touches the global random state.  Cutout
(DeVries & Taylor 2017, arXiv 1708.04552) works on normalised images, where its zero is the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.random import isolated
from pof.data.checks import DataError
from pof.data.images import randaugment


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image."""

    pad: int = 4
    """Zeros added on each side, in pixels, before a random crop of the old size; 0: no crop."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""
    cutout: int = 0
    """Side of the square that is set to the mean, in pixels; 0: none."""
    randaugment: bool = False
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719) after crop and flip, with torchvision's defaults."""

    def __post_init__(self) -> None:
        if self.pad < 0 or self.cutout < 0:
            raise DataError(f"pad and cutout are numbers of pixels >= 0; got {self.pad} and {self.cutout}")


@dataclass(frozen=True)
class Draws:
    """The random choices for N images."""

    offsets: Tensor
    """(N, 2) int64 in [0, 2 pad]: row and column where the crop starts in the padded image."""
    flips: Tensor
    """(N,) bool."""
    centers: Tensor
    """(N, 2) int64: row and column of the middle of the cutout square."""
    seeds: Tensor
    """(N,) int64: of RandAugment."""

    def part(self, rows: slice, device: torch.device) -> Draws:
        """The choices for some of the images, on ``device``."""
        return Draws(*(t[rows].to(device) for t in (self.offsets, self.flips, self.centers, self.seeds)))


def draw_augmentation(augmentation: Augmentation, shape: torch.Size, generator: torch.Generator) -> Draws:
    """Draw the choices for images of ``shape`` (N, K, H, W), on the CPU."""
    # All kinds are always drawn, so that switching one off leaves the others as they were.
    count, _, height, width = shape
    offsets = torch.randint(2 * augmentation.pad + 1, (count, 2), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    rows = torch.randint(height, (count,), generator=generator)
    columns = torch.randint(width, (count,), generator=generator)
    seeds = torch.randint(2**62, (count,), generator=generator)
    return Draws(offsets, flips, torch.stack([rows, columns], 1), seeds)


def augment(images: Tensor, draws: Draws, augmentation: Augmentation, *, mean: Tensor, std: Tensor) -> Tensor:
    """Crop, flip, normalise and cut out: (N, K, H, W) uint8 to float32, by mean and std (K,)."""
    if augmentation.pad:
        images = pad_crop(images, draws.offsets, padding=augmentation.pad)
    if augmentation.flip:
        images = horizontal_flip(images, draws.flips)
    if augmentation.randaugment:
        images = _randaugmented(images, draws.seeds)
    normalised = normalise(images, mean, std)
    if augmentation.cutout:
        normalised = cutout(normalised, draws.centers, size=augmentation.cutout)
    return normalised


def _randaugmented(images: Tensor, seeds: Tensor) -> Tensor:
    """RandAugment of each image (K, H, W) on its own draws."""
    if images.shape[1] not in {1, 3}:
        raise DataError(f"randaugment is for grey images and colours; got images of {images.shape[1]} channels")
    policy, changed = randaugment(), []
    for image, seed in zip(images, seeds.tolist(), strict=True):
        with isolated(seed, torch_only=True):  # torchvision draws from the global generator
            changed.append(policy(image))
    return torch.stack(changed)


def pad_crop(images: Tensor, offsets: Tensor, *, padding: int) -> Tensor:
    """Pad with zeros and crop each image to its old size at its own offset.

    Args:
        images: (N, K, H, W).
        offsets: (N, 2) int64 in [0, 2 padding]: first row and column.
        padding: pixels on each side.

    Returns:
        (N, K, H, W), same dtype.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # A view of every possible crop, (N, K, 2p+1, 2p+1, H, W), of which one per image is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return windows[samples, :, offsets[:, 0], offsets[:, 1]]


def horizontal_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror the chosen images left and right.

    Args:
        images: (N, K, H, W).
        flips: (N,) bool.

    Returns:
        (N, K, H, W), same dtype.
    """
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, centers: Tensor, *, size: int) -> Tensor:
    """Set a square to zero in each image; it is cut off at the border.

    Args:
        images: (N, K, H, W), normalised.
        centers: (N, 2) int64, row and column; the square covers [center - size // 2, center + size - size // 2).
        size: side of the square in pixels.

    Returns:
        (N, K, H, W), same dtype.
    """
    first = centers - size // 2
    inside = []
    for axis, length in enumerate(images.shape[2:]):
        distance = torch.arange(length, device=images.device) - first[:, axis, None]
        inside.append((distance >= 0) & (distance < size))
    mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(mask, 0)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute (images / 255 - mean) / std.

    Args:
        images: (N, K, H, W) uint8.
        mean: (K,).
        std: (K,).

    Returns:
        (N, K, H, W) float32.
    """
    scale = 1 / (255 * std)
    shift = -mean / std
    return images.to(torch.float32).mul_(scale[:, None, None]).add_(shift[:, None, None])
