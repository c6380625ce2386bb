"""Image files of every kind, bit depth and orientation, and those that are damaged, too large, or no images at all."""

from __future__ import annotations

import io
import random
import tracemalloc
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, features
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from pof._support.preprocessing import Preprocessing
from pof._support.random import isolated
from pof.data import DataError, images, parts
from pof.data.images import Prepare, decode, is_image, opened

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(width: int, height: int, *, mode: str = "RGB") -> Image.Image:
    """Smooth structure and fine noise, as photographs have."""
    y, x = numpy.mgrid[:height, :width] / 40
    waves = numpy.stack([numpy.sin(x + y), numpy.cos(x * y / 5), numpy.sin(2 * x) * numpy.cos(y)], axis=-1)
    noise = numpy.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(numpy.uint8)).convert(mode)


def pixels(path: Path) -> numpy.ndarray:
    with opened(path) as image:
        return numpy.asarray(decode(image)[0])


LOSSLESS = ("png", "apng", "bmp", "ppm", "pnm", "tif", "tiff")
LOSSY = ("jpg", "jpeg", "jpe", "jfif", "gif", "webp", "avif")


@pytest.mark.parametrize("ending", (*LOSSLESS, *LOSSY))
def test_formats(tmp_path, ending):
    if ending in ("webp", "avif") and not features.check(ending):
        pytest.skip(f"Pillow here has no {ending}")
    image = photograph(40, 30)
    formats = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "pnm": "PPM"}
    image.save(tmp_path / f"x.{ending}", format=formats.get(ending))
    assert is_image(f"X.{ending.upper()}")
    found = pixels(tmp_path / f"x.{ending}")
    assert found.shape == (30, 40, 3)
    apart = numpy.abs(found.astype(int) - numpy.asarray(image)).mean()
    assert apart == 0 if ending in LOSSLESS else apart < 25


def test_the_first_of_several_pictures(tmp_path):
    first, second = photograph(400, 320), photograph(400, 320).transpose(Image.Transpose.ROTATE_180)
    for name, kind in (("x.jpg", "MPO"), ("x.gif", "GIF"), ("x.tif", "TIFF"), ("x.png", "PNG")):
        first.copy().save(tmp_path / name, kind, save_all=True, append_images=[second.copy()])
        assert numpy.abs(pixels(tmp_path / name).astype(int) - numpy.asarray(first)).mean() < 25
    # What phones write is a JPEG by its first picture.
    with opened(tmp_path / "x.jpg") as image:
        assert image.format == "MPO"
        small, scale = decode(image, 4.0)
    assert (small.size, scale) == ((100, 80), 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes(tmp_path, mode):
    image = photograph(20, 10, mode=mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    assert numpy.array_equal(pixels(file), numpy.asarray(image.convert("RGB")))


def test_a_palette_with_transparency(tmp_path):
    image = photograph(20, 10, mode="P")
    image.save(tmp_path / "x.png", transparency=bytes(range(0, 250, 5)))
    assert numpy.array_equal(pixels(tmp_path / "x.png"), numpy.asarray(image.convert("RGB")))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, ending):
    values = numpy.arange(0, 65536, 257, dtype=numpy.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"x.{ending}")
    found = pixels(tmp_path / f"x.{ending}")
    assert numpy.array_equal(found, numpy.repeat((values >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "floats"), ("int32", "32-bit integers")])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype, kind):
    Image.fromarray(numpy.full((4, 4), 0.5).astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif: its pixels are {kind}, whose range is not known: save it with 8"):
        pixels(tmp_path / "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_exif_orientation(tmp_path, orientation, ending):
    quarters = Image.new("RGB", (32, 16))
    for i, colour in enumerate(("red", "lime", "blue", "white")):
        quarters.paste(colour, (16 * (i % 2), 8 * (i // 2), 16 * (i % 2) + 16, 8 * (i // 2) + 8))
    # Where the first row and the first column of the file's pixels belong, by the EXIF standard.
    stored = {
        1: quarters,
        2: quarters.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: quarters.rotate(180),
        4: quarters.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: quarters.transpose(Image.Transpose.TRANSPOSE),
        6: quarters.rotate(90, expand=True),
        7: quarters.transpose(Image.Transpose.TRANSVERSE),
        8: quarters.rotate(270, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    stored.save(tmp_path / f"x.{ending}", exif=exif, **({"quality": 100, "subsampling": 0} if ending == "jpg" else {}))
    with opened(tmp_path / f"x.{ending}") as image:
        assert images.upright_size(image) == (32, 16)
        found = numpy.asarray(decode(image)[0]).astype(int)
    assert numpy.abs(found - numpy.asarray(quarters)).max() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of Pillow
def test_a_damaged_exif_says_nothing_of_the_pixels(tmp_path):
    photograph(20, 10).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(tmp_path / "x.jpg").shape == (10, 20, 3)


@pytest.mark.parametrize("size", [(227, 227), (300, 180), (90, 140)])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_without_a_smaller_decoding_all_is_as_torchvision_has_it(tmp_path, size, ending):
    file = tmp_path / f"x.{ending}"
    photograph(*size).save(file)
    values = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    training = v2.Compose([v2.RandomResizedCrop(128, antialias=True), v2.RandomHorizontalFlip(), *values])
    evaluation = v2.Compose([v2.Resize(146, antialias=True), v2.CenterCrop(128), *values])
    for augment, theirs in ((True, training), (False, evaluation)):
        for seed in range(4):
            with isolated(seed), opened(file) as image:
                found = Prepare(Preprocessing(128, MEAN, STD), augment)(image)
            with isolated(seed):
                wanted = theirs(default_loader(str(file)))
            assert torch.equal(found, wanted)
            assert found.is_contiguous()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "box", "nearest"])
@pytest.mark.parametrize(
    ("orientation", "size", "most"), [(1, (1000, 801), 8), (6, (1000, 804), 4), (3, (1000, 801), 1)]
)
def test_a_jpeg_decoded_smaller_for_training_is_nearly_the_same(
    tmp_path, monkeypatch, interpolation, orientation, size, most
):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    file, scales, decoding = tmp_path / "x.jpg", [], images.decode
    how = Preprocessing(44, (0.0,) * 3, (1.0,) * 3, interpolation)
    photograph(*size).save(file, quality=90, exif=exif)

    def watched(*arguments):
        pixels, scale = decoding(*arguments)
        scales.append(scale)
        return pixels, scale

    monkeypatch.setattr(images, "decode", watched)
    for seed in range(8):
        made = []
        for spare in (images.SPARE, float("inf")):
            with monkeypatch.context() as patch, isolated(seed), opened(file) as image:
                patch.setattr(images, "SPARE", spare)
                made.append(Prepare(how, augment=True)(image))
        assert float((made[0] - made[1]).abs().mean()) < 1.5 / 255
    assert max(scales[::2]) == (most if interpolation in images.SMOOTH else 1)
    assert set(scales[1::2]) == {1}


@pytest.mark.parametrize("size", [(1000, 801), (640, 1280)])
def test_evaluation_decodes_in_full(tmp_path, size):
    photograph(*size).save(tmp_path / "x.jpg", quality=90)
    for interpolation in ("bilinear", "bicubic"):
        how = Preprocessing(44, (0.0,) * 3, (1.0,) * 3, interpolation)
        wanted = v2.Compose([v2.Resize(50, v2.InterpolationMode(interpolation)), v2.CenterCrop(44), v2.PILToTensor()])
        with opened(tmp_path / "x.jpg") as image:
            found = Prepare(how, augment=False)(image)
        assert torch.equal((found * 255).round().byte(), wanted(default_loader(str(tmp_path / "x.jpg"))))


@pytest.mark.parametrize("squash", [True, False])
def test_what_is_resized_and_cropped(tmp_path, squash):
    photograph(300, 200).save(tmp_path / "x.png")
    how = Preprocessing(90, (0.0,) * 3, (1.0,) * 3, "lanczos", 0.9, squash)
    assert how.resized(300, 200) == ((100, 100) if squash else (150, 100))
    resized = Image.open(tmp_path / "x.png").resize(how.resized(300, 200), Image.Resampling.LANCZOS)
    left = 5 if squash else 30
    wanted = numpy.asarray(resized.crop((left, 5, left + 90, 95)))
    with opened(tmp_path / "x.png") as image:
        found = Prepare(how, augment=False)(image)
    assert numpy.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), wanted)


def test_sizes_are_looked_at_before_memory_is_taken(tmp_path, monkeypatch):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    def png(width: int, height: int) -> bytes:
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(100)))
            + chunk(b"IEND", b"")
        )

    cases = {
        "bomb.ppm": (b"P6 60000 60000 255\n", "too large: Image size"),
        "bomb.png": (png(60000, 60000), "too large: Image size"),
        "gigantic.png": (png(13000, 14500), "too large: Image size"),
        "large.png": (png(9000, 10000), r"too large: (9000 x 10000 pixels, read are 89,478,485 at most|Image size)"),
        "narrow.png": (
            png(1, 60000),
            "too narrow: 1 x 60000 pixels with the shorter side resized to 256 would be 3,932",
        ),
        "negative.ppm": (b"P6 -4 4 255\n" + bytes(48), "not a readable image"),
        "word.ppm": (b"P6 four 4 255\n" + bytes(48), "not a readable image"),
        "long.ppm": (b"P6 " + b"9" * 4000 + b" 4 255\n" + bytes(48), "not a readable image"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        with (
            pytest.raises(DataError, match=rf"^\S+{name}: {message}.*remove it$") as caught,
            opened(tmp_path / name) as image,
        ):
            Prepare(Preprocessing(224, MEAN, STD), augment=False)(image)
        assert tracemalloc.get_traced_memory()[1] < 2**24, name
        tracemalloc.stop()
        assert len(str(caught.value)) < 500
    # As Pillow has it, whoever trusts his files may change the limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    photograph(20, 10).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: too large: (20 x 10 pixels, read are 100 at most|Image size)"):
        pixels(tmp_path / "x.png")


def test_other_formats_are_not_tried(tmp_path):
    # Pillow would start Ghostscript for it.
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"x\.png: not a readable image \(none of JPEG, PNG, .*; replace or remove it$"):
        pixels(tmp_path / "x.png")
    assert not is_image("x.eps")


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged headers
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM", "WEBP"])
def test_damaged_files_are_read_or_named(tmp_path, kind):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    buffer, draw, path = io.BytesIO(), random.Random(0), tmp_path / "x.png"
    photograph(24, 16).save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG") else {}))
    refused, prepare = 0, Prepare(Preprocessing(8, MEAN, STD), augment=False)
    for _ in range(60):
        content = bytearray(buffer.getvalue())
        for _ in range(draw.choice([1, 3, 30])):
            content[draw.randrange(draw.choice([64, len(content)])) % len(content)] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        try:
            assert parts.ImageFiles([(str(path), 0)], prepare)[0][0].shape == (3, 8, 8)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
    assert refused > 0
