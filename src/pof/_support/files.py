"""Files that are there whole or not at all: written beside their place, synced, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# Of the file that takes the place of another once it is complete; a kill can leave one behind.
PARTIAL = ".partial"
LOCK = ".lock"
"""A file that is locked while somebody writes to its folder, and says who; a kill leaves it behind, unlocked."""


class LockedError(ValueError):
    """Another process writes to the folder."""


def lock(folder: Path) -> Callable[[], None]:
    """Keep other processes out of a folder until the returned function is called, or say at once who is in it.

    The lock is this process's own, not its children's: workers that outlive a kill for seconds keep nobody out.
    Windows, and file systems without locks, are not guarded.
    """
    try:
        fcntl = import_module("fcntl")
    except ImportError:
        return lambda: None
    path = folder / LOCK
    with naming(path):
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(file, 200).decode() or "another process"
                os.close(file)
                if error.errno not in {errno.EACCES, errno.EAGAIN}:
                    return lambda: None
                raise LockedError(f"{folder} is in use by {holder}: stop it, or wait") from None
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                break
            os.close(file)  # its holder removed it between the two calls
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} of {socket.gethostname()}".encode())

    def release() -> None:
        path.unlink(missing_ok=True)
        os.close(file)

    return release


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace ``path`` atomically by what the body writes to the yielded file; if anything fails, it is untouched."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        with naming(target, "what was there is untouched"):
            yield partial
            _sync(partial, os.O_RDWR)
            if target.exists():
                shutil.copymode(target, partial)
            partial.replace(target)
            if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
                _sync(target.parent, os.O_RDONLY)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text for people; of a name that is not UTF-8, as a folder may have, the bytes are written out."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def append(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write ``content`` at the end of a file, which is made if it is not there; with ``sync`` all of it to the disk."""
    with naming(path), path.open("ab") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())


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
