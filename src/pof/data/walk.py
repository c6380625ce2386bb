"""The image files below a class folder: a bounded walk, which follows links and never goes round in circles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pof._support.text import first_of
from pof.data.checks import DataError

# Left by notebooks, by macOS, by file managers and servers; names that begin with a dot are left out too.
IGNORED = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
IGNORED_FILES = {"thumbs.db", "desktop.ini"}
# Other entries than images that one data set may have, and as many again for each image: annotations beside them.
MAX_OTHERS, OTHERS_PER_IMAGE = 100_000, 10


def listed(folder: str | os.PathLike[str]) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Folders and other entries of a folder, each by name; without what is hidden."""
    with _naming(folder), os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in IGNORED]
    folders: list[os.DirEntry[str]] = []
    files: list[os.DirEntry[str]] = []
    for entry in sorted(visible, key=lambda entry: entry.name):
        (folders if _is(entry.is_dir) else files).append(entry)
    return folders, files


@contextmanager
def _naming(folder: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """What a folder has in common with every link to it."""
    with _naming(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False


@dataclass
class Walk:
    """Finds image files, and counts what it leaves out."""

    root: str | os.PathLike[str]
    is_image: Callable[[str], bool]
    others: Counter[str] = field(default_factory=Counter)
    """Files left out, by the end of their names."""
    classless: list[str] = field(default_factory=list)
    """Images beside the class folders."""
    looked_at: int = 0
    """Entries that are no images."""
    images: int = 0

    def images_below(self, folder: str) -> list[str]:
        """Paths of the images in a folder and those below it, in the order of the folders' paths, then of the names."""
        found: dict[str, list[str]] = {}
        # A link to a folder that this one lies in would lead to the other classes.
        seen = {
            _identity(above)
            for path in (os.path.abspath(folder), os.path.realpath(folder))
            for above in Path(path).parents
        }
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            identity = _identity(place)
            if identity in seen:
                continue
            seen.add(identity)
            folders, files = listed(place)
            waiting += [entry.path for entry in folders]
            found[place] = [entry.path for entry in files if self._takes(entry)]
            self._bound(len(folders))
        return [path for place in sorted(found) for path in found[place]]

    def _takes(self, entry: os.DirEntry[str]) -> bool:
        if self.is_image(entry.name):
            if not _is(entry.is_file):
                raise DataError(f"{entry.path}: no regular file, but a FIFO, a device or a broken link; remove it")
            self.images += 1
            return True
        if entry.name.lower() not in IGNORED_FILES:
            self.others[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
        self._bound(1)
        return False

    def _bound(self, more: int) -> None:
        self.looked_at += more
        if self.looked_at > MAX_OTHERS + OTHERS_PER_IMAGE * self.images:
            raise DataError(
                f"{self.root}: more than {MAX_OTHERS:,} files and folders that are no images, and {self.images} images:"
                " give the folder that holds the class folders"
            )

    def without_class(self) -> str:
        """Which images lie in no class folder, in words; empty if none does."""
        shown = first_of(os.path.relpath(path, self.root) for path in self.classless)
        return shown and f"images left out, as they lie in no class folder: {shown}"

    def left_out(self) -> str:
        """What was left out, in words; empty if nothing was."""
        kinds = ", ".join(f"{count} {end}" for end, count in self.others.most_common(6))
        more = ", ..." if len(self.others) > 6 else ""
        return kinds and f"files left out, as no images that are read here: {kinds}{more}"
