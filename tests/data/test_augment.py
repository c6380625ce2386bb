"""Every operation against a loop over samples, written as the sentence says it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pof.data import Augmentation, DataError, cutout, horizontal_flip, normalise, pad_crop
from pof.data.augment import augment, draw_augmentation

SHAPES = [(5, 3, 8, 8), (4, 1, 6, 9), (1, 2, 1, 1)]


def some_images(shape: tuple[int, ...], channels_last: bool = False) -> Tensor:
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def slow_pad_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    count, channels, height, width = images.shape
    result = torch.zeros_like(images)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                row, column = y + int(offsets[n, 0]) - padding, x + int(offsets[n, 1]) - padding
                if 0 <= row < height and 0 <= column < width:
                    for c in range(channels):
                        result[n, c, y, x] = images[n, c, row, column]
    return result


def slow_cutout(images: Tensor, centers: Tensor, size: int) -> Tensor:
    result = images.clone()
    for n, (row, column) in enumerate(centers.tolist()):
        for y in range(row - size // 2, row - size // 2 + size):
            for x in range(column - size // 2, column - size // 2 + size):
                if 0 <= y < images.shape[2] and 0 <= x < images.shape[3]:
                    result[n, :, y, x] = 0
    return result


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [1, 4])
def test_pad_crop(shape, padding, channels_last):
    images = some_images(shape, channels_last)
    offsets = torch.randint(2 * padding + 1, (shape[0], 2), generator=torch.Generator().manual_seed(1))
    before = images.clone()
    assert torch.equal(pad_crop(images, offsets, padding=padding), slow_pad_crop(images, offsets, padding))
    assert torch.equal(images, before)


def test_pad_crop_at_the_middle_is_the_image():
    images = some_images((3, 3, 8, 8))
    assert torch.equal(pad_crop(images, torch.full((3, 2), 4), padding=4), images)


@pytest.mark.parametrize("shape", SHAPES)
def test_flip(shape):
    images = some_images(shape)
    flips = torch.arange(shape[0]) % 2 == 0
    expected = torch.stack([i.flip(2) if f else i for i, f in zip(images, flips.tolist(), strict=True)])
    assert torch.equal(horizontal_flip(images, flips), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 4, 50])
def test_cutout(shape, size):
    images = some_images(shape).float()
    generator = torch.Generator().manual_seed(2)
    centers = torch.stack([torch.randint(n, (shape[0],), generator=generator) for n in shape[2:]], 1)
    assert torch.equal(cutout(images, centers, size=size), slow_cutout(images, centers, size))


def test_normalise():
    images = some_images((4, 3, 5, 5))
    mean, std = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([0.2, 0.3, 0.1])
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    # Two float32 roundings of values up to 10.
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


ALL_ON = Augmentation(pad=2, flip=True, cutout=3)


def test_order_of_operations():
    images, (mean, std) = some_images((6, 3, 8, 8)), (torch.full((3,), 0.4), torch.full((3,), 0.2))
    draws = draw_augmentation(ALL_ON, images.shape, torch.Generator().manual_seed(3))
    cropped = slow_pad_crop(images, draws.offsets, 2)
    flipped = torch.stack([i.flip(2) if f else i for i, f in zip(cropped, draws.flips.tolist(), strict=True)])
    # Cutout last: its zero is the mean; the zeros of the padding are black.
    expected = slow_cutout(normalise(flipped, mean, std), draws.centers, 3)
    assert torch.equal(augment(images, draws, ALL_ON, mean=mean, std=std), expected)


def test_each_operation_can_be_off():
    images, (mean, std) = some_images((6, 3, 8, 8)), (torch.zeros(3), torch.ones(3))
    draws = draw_augmentation(ALL_ON, images.shape, torch.Generator().manual_seed(3))
    nothing = augment(images, draws, Augmentation(pad=0, flip=False, cutout=0), mean=mean, std=std)
    assert torch.equal(nothing, normalise(images, mean, std))


def test_draws_are_uniform_and_reproducible():
    shape = torch.Size([20_000, 1, 8, 6])
    state = torch.get_rng_state()
    draws = draw_augmentation(ALL_ON, shape, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    again = draw_augmentation(ALL_ON, shape, torch.Generator().manual_seed(0))
    assert torch.equal(draws.offsets, again.offsets)
    assert torch.equal(draws.flips, again.flips)
    for values, length in (
        (draws.offsets[:, 0], 5),
        (draws.offsets[:, 1], 5),
        (draws.centers[:, 0], 8),
        (draws.centers[:, 1], 6),
        (draws.flips.long(), 2),
    ):
        shares = torch.bincount(values, minlength=length) / len(values)
        assert len(shares) == length
        # Five standard errors of a share p of 20,000 draws.
        p = 1 / length
        assert (shares - p).abs().max() < 5 * (p * (1 - p) / len(values)) ** 0.5
    # The choice for a sample does not follow from that of another kind.
    assert abs(float(torch.corrcoef(torch.stack([draws.offsets[:, 0].double(), draws.flips.double()]))[0, 1])) < 0.05


def test_negative_sizes_are_refused():
    with pytest.raises(DataError, match="pixels >= 0; got -1 and 0"):
        Augmentation(pad=-1)
