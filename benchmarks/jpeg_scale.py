"""What decoding JPEGs at a part of their size changes in the images of a training, and the time that it saves.

    python benchmarks/jpeg_scale.py FOLDER [--photographs 140]

FOLDER holds photographs as JPEGs.  Each is cropped, resized and flipped as in training, with the same draws, once
decoded in full, once as pof does it (a part of the size where twice the input remains), and once where the input's
size itself would do.  Beside the photographs, mosaics of 9 x 7 of them stand for large images.  Writes
results/jpeg-scale.json: mean absolute difference of the pixels, of 255, and the time against full decoding.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from improve import here
from PIL import Image

from pof._support.preprocessing import Preprocessing
from pof.app.run_folder import write_json
from pof.data import images

ROOT = Path(__file__).resolve().parents[1]
SPARE = {"full": math.inf, "pof": images.SPARE, "the size itself": 1.0}
SIZES = {"photographs": (14, 28), "mosaics": (128, 224)}
ACROSS, DOWN, TILE, MOSAICS = 9, 7, 227, 8


def mosaics(photographs: list[Path], folder: Path) -> list[Path]:
    """Large JPEGs, each of other photographs."""
    made = []
    for number in range(MOSAICS):
        whole = Image.new("RGB", (ACROSS * TILE, DOWN * TILE))
        for place in range(ACROSS * DOWN):
            with Image.open(photographs[(number * ACROSS * DOWN + place) % len(photographs)]) as tile:
                at = (place % ACROSS * TILE, place // ACROSS * TILE)
                whole.paste(tile.convert("RGB").resize((TILE, TILE)), at)
        made.append(folder / f"{number}.jpg")
        whole.save(made[-1], quality=90)
    return made


def prepared(files: list[Path], size: int, spare: float) -> tuple[torch.Tensor, float]:
    """Images of a training (N, 3, size, size) in [0, 255], and the seconds per image."""
    images.SPARE = spare
    prepare = images.Prepare(Preprocessing(size=size, mean=(0.0,) * 3, std=(1.0,) * 3), augment=True)
    with images.opened(files[0]) as image:
        prepare(image)  # loads what is loaded once
    torch.manual_seed(0)
    begin = time.process_time()
    stack = []
    for file in files:
        with images.opened(file) as image:
            stack.append(prepare(image))
    return torch.stack(stack) * 255, (time.process_time() - begin) / len(files)


def compared(files: list[Path], size: int) -> dict[str, Any]:
    with Image.open(files[0]) as image:
        found: dict[str, Any] = {"n": len(files), "pixels": image.size, "size": size}
    full, seconds = prepared(files, size, SPARE["full"])
    for name in ("pof", "the size itself"):
        other, its = prepared(files, size, SPARE[name])
        found[name] = {"difference": float((other - full).abs().mean()), "time": its / seconds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photographs", type=int, default=140)
    options = parser.parse_args()
    every = sorted(options.folder.rglob("*.jpg"))
    photographs = every[:: max(1, len(every) // options.photographs)][: options.photographs]
    with tempfile.TemporaryDirectory() as folder:
        files = {"photographs": photographs, "mosaics": mosaics(photographs, Path(folder))}
        found = {kind: [compared(files[kind], size) for size in sizes] for kind, sizes in SIZES.items()}
    write_json(ROOT / "benchmarks/results/jpeg-scale.json", {"found": found, "environment": here()})


if __name__ == "__main__":
    main()
