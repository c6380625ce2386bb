"""The image processor of Hugging Face as a Preprocessing, compared with it on an image."""

from __future__ import annotations

from typing import Any, cast

import torch

from pof._support.preprocessing import Interpolation, Preprocessing
from pof._support.text import reason

FILTERS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's numbers."""
CONVNEXT_SQUASHES_FROM = 384
LEVELS = 1.0
"""Mean difference, of 255, that rounding after a resize in torch instead of Pillow may make."""


def read_processor(name: str) -> Preprocessing | None:
    """The preprocessing of a folder of Transformers, or a name on the hub; None if it comes without one.

    Returns:
        Its size, crop, filter and normalisation.

    Raises:
        ValueError: if it does more than resize, crop and normalise.
    """
    from transformers import AutoImageProcessor

    reader: Any = AutoImageProcessor
    try:
        processor = reader.from_pretrained(name, trust_remote_code=False)
    except OSError:
        return None
    except Exception as error:
        raise ValueError(f"hf:{name}: its image processor cannot be read: {reason(error)}") from error
    found = _translated(processor)
    if found is None or _apart(processor, found) > LEVELS:
        raise ValueError(
            f"hf:{name}: its {type(processor).__name__} does not just resize, crop the centre and normalise; give what"
            " comes nearest: --image_size, --mean, --std, --interpolation and --crop, all of them"
        )
    return found


def _translated(processor: Any) -> Preprocessing | None:
    """What the processor's settings say; None if that is no square image."""
    size, crop_size = _sizes(processor, "size"), _sizes(processor, "crop_size")
    share, crops = getattr(processor, "crop_pct", None), getattr(processor, "do_center_crop", False)
    edge, height = size.get("shortest_edge"), size.get("height")
    target = crop_size.get("height") if crops else edge if share else height
    if not getattr(processor, "do_resize", False) or target is None:
        return None
    squash = height is not None
    if edge is not None and share:
        squash = not crops and edge >= CONVNEXT_SQUASHES_FROM
        edge = edge if squash else int(edge / share)
    resized = height or edge
    if resized is None or target > resized:
        return None
    normalises = getattr(processor, "do_normalize", False)
    mean, std = (processor.image_mean, processor.image_std) if normalises else ((0.0,) * 3, (1.0,) * 3)
    return Preprocessing(target, mean, std, FILTERS[int(processor.resample)], target / resized, squash, "down")


def _sizes(processor: Any, attribute: str) -> dict[str, int]:
    size = getattr(processor, attribute, None)
    names = ("shortest_edge", "height", "width")
    values = {name: getattr(size, name, None) if size is not None else None for name in names}
    found = {name: value for name, value in values.items() if value is not None}
    return found if found.get("height") == found.get("width") else {}


def _apart(processor: Any, how: Preprocessing) -> float:
    """Mean difference between the processor and its translation on an image of noise, in levels of 255."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (40, 60, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(noise.numpy()).resize((480, 320), Image.Resampling.BICUBIC)
    try:
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    except Exception:  # settings that it cannot do itself
        return float("inf")
    resized = image.resize(how.resized(*image.size), cast("Image.Resampling", FILTERS.index(how.interpolation)))
    square = resized.crop(how.centre(*resized.size))
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(how.size, how.size, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (how.mean, how.std))
    ours = (pixels.permute(2, 0, 1) / 255 - mean) / std
    if theirs.shape != ours.shape:
        return float("inf")
    return float(((theirs - ours) * std * 255).abs().mean())
