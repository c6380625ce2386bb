"""Reading NumPy's files: headers before memory is taken, and nothing is ever unpickled."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pof._support.text import reason
from pof.data.checks import DataError
from pof.data.walk import listed


def is_arrays(place: Path) -> bool:
    """Whether a file or folder holds arrays, by the names in it."""
    if not os.path.isdir(place):
        return place.suffix.lower() in {".npz", ".npy"} and place.exists()
    return any(place.glob("*.npy")) and not listed(place)[0]


def array_names(place: Path) -> list[str]:
    """Names of the arrays in an .npz file, or in a folder of .npy files."""
    if os.path.isdir(place):
        return sorted(file.stem for file in place.glob("*.npy"))
    if place.suffix.lower() == ".npy":
        raise DataError(f"{place}: one array has no labels beside it; give the folder with both")
    if not place.is_file():
        raise DataError(f"{place}: no regular file, but a FIFO or a device; replace it")
    try:
        with zipfile.ZipFile(place) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{place}: not a readable .npz file ({error}); write it with numpy.savez") from error


def read_array(place: Path, name: str) -> Any:
    """An array, after a look at its header."""
    from numpy.lib import format as npy

    array_shape(place, name)
    with _opened(place, name) as (stream, _):
        return npy.read_array(stream, allow_pickle=False)


def array_shape(place: Path, name: str) -> tuple[int, ...]:
    """The shape of an array, by its header alone."""
    with _opened(place, name) as (stream, size):
        return _check_header(stream, size)


@contextmanager
def _opened(place: Path, name: str) -> Iterator[tuple[Any, int]]:
    """The file of an array, and its size in bytes; errors in reading it name the array."""
    try:
        if os.path.isdir(place):
            file = place / f"{name}.npy"
            if not file.is_file():
                raise DataError("no regular file, but a folder, a FIFO or a device")
            with file.open("rb") as stream:
                yield stream, file.stat().st_size
        else:
            with zipfile.ZipFile(place) as archive, archive.open(info := archive.getinfo(f"{name}.npy")) as packed:
                yield packed, info.file_size
    except DataError as error:
        raise DataError(f"{place}: {name}: {error}") from error
    except (ValueError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{place}: {name}: not a readable array ({reason(error)})") from error


def _check_header(stream: Any, size: int) -> tuple[int, ...]:
    """The shape; objects, and sizes that the file does not have or this machine's memory cannot hold, are refused."""
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise DataError(f"version {version} of the format, for which there is no plain array")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.hasobject or dtype.names:
        raise DataError(f"an array of {dtype}, which is not read: save plain numbers (or texts)")
    declared, memory = math.prod(shape) * dtype.itemsize, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if declared > memory:
        raise DataError(f"its header says {shape} of {dtype}, {declared:,} bytes: more than the memory of this machine")
    if stream.tell() + declared != size:
        raise DataError(f"its header says {shape} of {dtype}, and the file has {size:,} bytes; copy it again")
    return tuple(shape)
