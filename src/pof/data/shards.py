"""WebDataset shards: ``.tar`` files with the members of a sample side by side, ``KEY.jpg`` and ``KEY.cls``.

The members' headers are read once, so that shards are a data set with a length like any other: it can be split,
shuffled as a whole, balanced and resumed at any mini-batch.  Nothing is unpacked.  Streams of other places and other
members are the ``webdataset`` package's, through ``package.module:factory``.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pof._support.text import first_of
from pof.data.checks import DataError
from pof.data.description import DataSplit, LazyData
from pof.data.images import is_image
from pof.data.parts import SPLITS, Preparation, Sample, image_data, named_classes, role_of
from pof.data.walk import listed

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS, LONGEST_LABEL = 100_000, 256


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image file in a shard."""

    shard: str
    name: str
    offset: int
    size: int

    def content(self) -> bytes:
        """Its bytes, read where the header says they are."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


def is_shards(place: Path) -> bool:
    """Whether a path names shards, or a folder of them."""
    if not os.path.isdir(place):
        return place.suffix.lower() == ".tar" and (bool(RANGE.search(str(place))) or place.exists())
    return any(place.glob("*.tar")) and not listed(place)[0]


def shard_data(place: Path, preparation: Preparation) -> LazyData:
    """Describe the images in shards."""
    left_out: Counter[str] = Counter()
    shards = {path: _role(path) for path in _paths(place)}
    named = {role for role in shards.values() if role is not None}
    if named and "train" not in named:
        raise DataError(f"{place}: no shard is for training; call those {SPLITS['train'][0]}-000000.tar, ...")
    notes = [f"not used: {path.name} (no usual name of a part)" for path, role in shards.items() if named and not role]
    found: dict[DataSplit, list[tuple[TarImage, str]]] = {}
    for path, role in shards.items():
        if role or not named:
            found.setdefault(role or "train", []).extend(_samples(path, left_out))
    classes = named_classes([label for _, label in found["train"]])
    numbers = {name: number for number, name in enumerate(classes)}
    for role, samples in found.items():
        if not samples:
            raise DataError(f"{place}: no samples for {role} in its shards")
        if unknown := next(((image, label) for image, label in samples if label not in numbers), None):
            raise DataError(
                f"{unknown[0]}: the class {unknown[1]!r} has no training images; there are {', '.join(classes)}"
            )
    parts: dict[DataSplit, list[Sample]] = {
        role: [(image, numbers[label]) for image, label in samples] for role, samples in found.items()
    }
    kinds = ", ".join(f"{count} .{end}" for end, count in left_out.most_common(6))
    notes.append(kinds and f"members left out, as neither images nor labels (.cls): {kinds}")
    return image_data(place.stem, str(place), classes, parts, preparation, notes=notes)


def _paths(place: Path) -> list[Path]:
    """The shards of a folder, or those that a name with ``{000..009}`` stands for."""
    if os.path.isdir(place):
        return sorted(place.glob("*.tar"))
    names = [str(place)]
    while found := RANGE.search(names[0]):
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST_SHARDS // len(names):
            raise DataError(f"{place}: {found[0]} stands for no shard, or for more than {MOST_SHARDS:,}")
        numbers = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
        names = [RANGE.sub(number, name, count=1) for name in names for number in numbers]
    absent = [name for name in names if not os.path.isfile(name)]
    if absent:
        raise DataError(
            f"{place}: {len(absent)} of {len(names)} shards are not there, or no regular files: {first_of(absent, 3)}"
        )
    return [Path(name) for name in names]


def _role(path: Path) -> DataSplit | None:
    return next((role for word in re.split(r"[-_.]", path.stem) if (role := role_of(word)) is not None), None)


def _samples(path: Path, left_out: Counter[str]) -> Iterator[tuple[TarImage, str]]:
    """Images and labels of a shard."""
    key, image, label = "", None, None
    for name, member in _members(path, left_out):
        if name != key and key:
            yield _sample(path, key, image, label)
            image = label = None
        key = name
        if isinstance(member, str):
            label = member
        elif image is not None:
            raise DataError(f"{path}: the sample {key} has two images, {image.name} and {member.name}: keep one")
        else:
            image = member
    if key:
        yield _sample(path, key, image, label)


def _sample(path: Path, key: str, image: TarImage | None, label: str | None) -> tuple[TarImage, str]:
    if image is None or not label:
        missing = "image" if image is None else "label (.cls)"
        raise DataError(f"{path}: the sample {key} has no {missing}; its members must stand side by side")
    return image, label


def _members(path: Path, left_out: Counter[str]) -> Iterator[tuple[str, TarImage | str]]:
    """Key, and image or label, of the members that are one of both."""
    if not path.is_file():
        raise DataError(f"{path}: no regular file, but a folder, a FIFO or a device")
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                name, _, end = base.partition(".")
                if not member.isreg() or not name:
                    continue
                key, end = f"{folder}/{name}", end.lower()
                if member.offset_data + member.size > size:
                    raise DataError(f"{path}: {member.name} is cut off; copy the shard again")
                if end == "cls":
                    stored = archive.extractfile(member)
                    assert stored is not None  # it is regular
                    yield key, stored.read(LONGEST_LABEL).decode().strip()
                elif is_image(f"image.{end}"):
                    yield key, TarImage(str(path), member.name, member.offset_data, member.size)
                else:
                    left_out[end] += 1
                    continue
                archive.members = []  # type: ignore[attr-defined]  # it keeps them all
        _check_end(path, archive.offset)
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable .tar file, uncompressed ({error}); write it again") from error


def _check_end(path: Path, offset: int) -> None:
    """Refuse a shard that goes on, or is cut off, where reading ended: a damaged header passes for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise DataError(f"{path}: damaged or cut off behind {offset:,} bytes; copy the shard, or write it, again")
