"""Image files: only regular ones of known formats are opened, and sizes are looked at before memory is taken.

What 8-bit RGB cannot hold is scaled by its range (16 bits) or refused (floats, whose range no file says); EXIF's
orientation is applied.  For training a JPEG is decoded at a half, a quarter or an eighth of its size where it is made
smaller anyway: the decoder drops the finest frequencies instead of a filter, in a part of the time and memory.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from pof._support.preprocessing import Interpolation, Preprocessing
from pof._support.text import reason
from pof.data.checks import DataError

# Pillow knows more; some of them start other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")
ORIENTATION = 0x0112  # the EXIF tag
# A JPEG is decoded at no less than this times the size that it is brought to, so that a filter still does the rest.
SPARE = 2.0
# The filters, by Pillow's numbers, that leave as little to see of that.
SMOOTH: dict[str, int] = {"bilinear": 2, "bicubic": 3}
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@cache
def _known() -> tuple[tuple[str, ...], frozenset[str]]:
    from PIL import Image

    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    return formats, frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def is_image(name: str) -> bool:
    """Whether a file is an image that can be read here, by the end of its name."""
    return os.path.splitext(name)[1].lower() in _known()[1]


def max_pixels() -> float:
    """How many pixels an image may have: Pillow's own limit, which ``PIL.Image.MAX_IMAGE_PIXELS`` changes."""
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS or float("inf")


class Stored(Protocol):
    """An image that is a part of a larger file; its text says which."""

    def content(self) -> bytes:
        """The image file."""


Source = str | Path | Stored


@contextmanager
def opened(path: Source) -> Iterator[Any]:
    """Open an image, of which only the header is read; all that goes wrong in the body is said of the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _file(path) as file, Image.open(file, formats=_known()[0]) as image:
            if image.width * image.height > max_pixels():
                raise DataError(f"too large: {image.width} x {image.height} pixels, read are {max_pixels():,} at most")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: too large: {error}; make it smaller or remove it") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; replace or remove it") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not a readable image (none of {', '.join(_known()[0])}); replace or remove it"
        ) from error
    except Exception as error:  # a damaged file raises almost anything: SyntaxError, struct.error, OverflowError
        said = getattr(error, "strerror", None) or reason(error) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({said}); replace or remove it") from error


def content_of(path: str) -> bytes:
    """What is in a regular file."""
    with _file(path) as file:
        return file.read()


def _file(source: Source) -> BinaryIO:
    if not isinstance(source, str | Path):
        return BytesIO(source.content())
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise DataError("no regular file, but a folder, a FIFO or a device")
    return open(source, "rb")


def decode(image: Any, smaller: float = 1.0) -> tuple[Any, int]:
    """8-bit RGB of an opened image, turned as its EXIF says; and how much smaller it is now: at most ``smaller``."""
    turn, scale = _turn(image), 1
    if image.format in {"JPEG", "MPO"}:
        # An incomplete pixel must stay at the right and at the bottom, where the others are measured from.
        scale = next((s for s in (8, 4, 2) if s <= smaller and (turn is None or math.gcd(*image.size) % s == 0)), 1)
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
    pixels = _eight_bits(image)
    return (pixels if turn is None else pixels.transpose(turn)), scale


def upright_size(image: Any) -> tuple[int, int]:
    """Width and height of an opened image once it is turned as its EXIF says."""
    from PIL.Image import Transpose

    swaps = {Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90}
    width, height = image.size
    return (height, width) if _turn(image) in swaps else (width, height)


def _turn(image: Any) -> Any:
    from PIL.Image import Transpose

    turns = (
        *(None, None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    if image.format == "TIFF":
        image.load()  # Pillow turns these itself there, and takes the tag away
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF says nothing of the pixels
        return None
    return turns[value] if isinstance(value, int) and 1 <= value <= 8 else None


def _eight_bits(image: Any) -> Any:
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        # The high byte, which is what Pillow takes of 16-bit colours.
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if image.mode in {"I", "F"}:
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise DataError(f"its pixels are {kind}, whose range is not known: save it with 8 or 16 bits per channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@cache
def _torchvision(size: int, interpolation: Interpolation) -> tuple[Any, Any, Any, Any]:
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.functional, InterpolationMode(interpolation)


@cache
def randaugment() -> Any:
    """RandAugment with the usual 2 operations of strength 9, torchvision's; it draws from torch's global generator."""
    from torchvision.transforms import v2

    return v2.RandAugment()


@cache
def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


@dataclass(frozen=True)
class Prepare:
    """Makes a tensor (3, size, size) of an opened image; the draws of the augmentation are torchvision's."""

    how: Preprocessing
    augment: bool
    randaugment: bool = False
    """Whether RandAugment (Cubuk et al. 2020, arXiv 1909.13719) follows crop and flip."""

    def __call__(self, image: Any) -> Tensor:
        """Crop, resize and normalise."""
        square, size = self._augmented(image) if self.augment else self._centred(image), self.how.size
        square = randaugment()(square) if self.randaugment else square
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3)
        # As v2.ToDtype(scale=True) and v2.Normalize compute it, in a third of their time.
        scaled = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)
        return scaled.sub_(_column(self.how.mean)).div_(_column(self.how.std))

    def _augmented(self, image: Any) -> Any:
        size = [self.how.size] * 2
        crop, flip, functional, mode = _torchvision(self.how.size, self.how.interpolation)
        width, height = upright_size(image)
        top, left, down, across = crop.make_params([torch.empty(0, height, width)]).values()
        smaller = min(down, across) / (SPARE * self.how.size) if self.how.interpolation in SMOOTH else 1.0
        pixels, scale = decode(image, smaller)
        if scale == 1:
            return flip(functional.resized_crop(pixels, top, left, down, across, size, mode))
        box = tuple(edge / scale for edge in (left, top, left + across, top + down))
        return flip(pixels.resize(size, SMOOTH[self.how.interpolation], box=box))

    def _centred(self, image: Any) -> Any:
        functional, mode = _torchvision(self.how.size, self.how.interpolation)[2:]
        across, down = self.how.resized(*upright_size(image))
        if across * down > max_pixels():
            raise DataError(
                f"too narrow: {image.width} x {image.height} pixels with the shorter side resized to"
                f" {min(across, down)} would be {across * down:,}"
            )
        # Decoded in full: a network is evaluated on what it was trained with, to the last bit.
        resized = functional.resize(decode(image)[0], [down, across], mode)
        return resized.crop(self.how.centre(across, down))
