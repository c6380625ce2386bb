"""IDX files, the format of MNIST and its successors: a header of big-endian numbers, then the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from pof.data.checks import DataError

UNSIGNED_BYTE = 8
MAX_BYTES = 2**30
"""The largest known set of this format, EMNIST, has 640 MB."""
CHUNK = 2**20


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``, in the shape that the header says."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTE:
                raise DataError(f"{path}: not an IDX file of unsigned bytes (it begins with {head!r})")
            sizes = file.read(4 * head[3])
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            declared = math.prod(shape)
            if declared > MAX_BYTES:
                raise DataError(f"{path}: its header says {shape}, more than the {MAX_BYTES:,} bytes that are read")
            content = bytearray()
            # One byte more than there should be shows a file that is too long; a bomb goes no further.
            while chunk := file.read(min(CHUNK, declared + 1 - len(content))):
                content += chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); copy or download it again") from error
    if len(content) != declared or len(sizes) != 4 * head[3]:
        found = f"more than {declared}" if len(content) > declared else str(len(content))
        raise DataError(f"{path}: {found} bytes where its header says {shape}; copy or download it again")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)
