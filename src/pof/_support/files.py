"""Files that are there whole or not at all: written beside their place, synced, renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of the file that takes the place of another once it is complete; a kill can leave one behind.
PARTIAL = ".partial"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace ``path`` atomically by what the body writes to the yielded file; if anything fails, it is untouched."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        with naming(target, "what was there is untouched"):
            yield partial
            _sync(partial, os.O_RDWR)
            partial.replace(target)
            if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
                _sync(target.parent, os.O_RDONLY)
    finally:
        partial.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Write ``content`` at the end of a file, which is made if it is not there."""
    with naming(path), path.open("ab") as file:
        file.write(content)


@contextmanager
def naming(path: Path, remark: str = "") -> Iterator[None]:
    """Say in the body's OSErrors what could not be written, and what to do about a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "free some space or choose another folder" if error.errno == errno.ENOSPC else ""
        message = "; ".join(part for part in (f"cannot write: {reason}", hint, remark) if part)
        raise OSError(error.errno, message, str(path)) from error


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
