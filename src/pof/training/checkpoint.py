"""Training state on disk: written atomically, read without executing anything, refused if it does not belong.

One file, ``state.pt``, holds what a run needs to go on bitwise identically: network, method, optimizer, schedule,
scaler, the place in the data, every random generator of every process, and the best network so far.  It ends with a
checksum of itself; the state before it is kept as ``previous.pt``, for a run to go back to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from pof._support import distributed
from pof._support.described import flat
from pof._support.files import PARTIAL, replacing

STATE_FILE, PREVIOUS_FILE = "state.pt", "previous.pt"
# At the end of the file, where torch's reader of zip archives passes over it; then the checksum of all before it.
SEAL, DIGEST = b"\npof-state blake2b ", 32
KEYS = (
    *("fingerprint", "method", "optimizer", "scaler", "scheduler", "epoch", "steps", "sums", "history", "streams"),
    *("within_epoch", "selection"),
)


class CheckpointError(ValueError):
    """A training state that cannot be read, or belongs to another configuration."""


class _Damaged(CheckpointError):
    """One that an earlier state can take the place of."""


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a training state atomically, with a checksum at its end; the one before is kept beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE_FILE
    with replacing(path) as partial:
        try:
            torch.save(_plain(dict(state)), partial)
        except RuntimeError as error:  # torch's zip writer hides the operating system's error
            code = errno.ENOSPC if shutil.disk_usage(folder).free < 2**20 else errno.EIO
            raise OSError(code, os.strerror(code), str(partial)) from error
        if not path.exists():
            _check_readable(partial)
        with partial.open("rb+") as file:
            file.write(SEAL + _digest(file, partial.stat().st_size))
        if path.is_file():
            _keep(path, folder / PREVIOUS_FILE)
    return path


def _plain(value: Any) -> Any:
    """The same with numbers of Python instead of NumPy's (a rate, a radius), which are not read again."""
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(_plain, value))
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def _keep(path: Path, previous: Path) -> None:
    """Let a file have another name too; it is at its own place all the time, where the file system can do that."""
    try:
        second = path.with_name(f".{previous.name}.{os.getpid()}{PARTIAL}")
        second.unlink(missing_ok=True)
        os.link(path, second)
        second.replace(previous)
    except OSError:
        path.replace(previous)


def _check_readable(path: Path) -> None:
    """Refuse, before training, what could be written but not read again."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "this network cannot be saved for a resume: an extra state (get_extra_state) of it, or of the optimizer,"
            f" holds more than tensors, numbers, strings, lists and dicts ({_first_line(error)}); train without"
            " checkpoint_dir"
        ) from error


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read the training state of a folder onto the CPU, or if it is damaged the one before; None if there is none."""
    paths = [folder / name for name in (STATE_FILE, PREVIOUS_FILE)]
    problems = []
    for path in paths:
        if not os.path.lexists(path):
            continue
        try:
            state = _read(path)
        except _Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{problems[0]}: the run goes back to step {state['steps']}, from {path.name}", stacklevel=5)
            _set_aside(paths[0])
        return state
    if not problems:
        return None
    raise CheckpointError(f"{problems[0]}, and no earlier state is beside it; remove {folder} to start anew")


def _set_aside(path: Path) -> None:
    """Move what is damaged out of the way of the next state, which would have it for the one before."""
    if distributed.rank() == 0:
        path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))


def refuse_overwriting(folder: Path) -> None:
    """Refuse to begin a run where the state of another one lies."""
    if has_state(folder):
        raise ValueError(
            f"{folder} holds the state of a run: go on with resume=True, give another checkpoint_dir, or remove it"
        )


def remove_state(folder: Path) -> None:
    """Remove the state of a run that was refused before its first step."""
    if distributed.rank() == 0:
        for name in (STATE_FILE, PREVIOUS_FILE):
            (folder / name).unlink(missing_ok=True)


def has_state(folder: Path) -> bool:
    """Tell whether a run left a state, damaged or not."""
    return any(os.path.lexists(folder / name) for name in (STATE_FILE, PREVIOUS_FILE))


def _read(path: Path) -> dict[str, Any]:
    """Read a state, or say in one line what is wrong with its file."""
    if not path.is_file():
        raise _Damaged(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            size = max(path.stat().st_size - len(SEAL) - DIGEST, 0)
            digest = _digest(file, size)
            seal = file.read()
        if not seal.startswith(SEAL):
            raise _Damaged(f"{path} is damaged or no training state of pof: it does not end with its checksum")
        if seal != SEAL + digest:
            raise _Damaged(f"{path} is damaged: its checksum does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _Damaged:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; resume once it can") from error
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise _Damaged(f"{path} is no training state of this version of pof ({_first_line(error)})") from error
    lacking = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if lacking:
        raise _Damaged(f"{path} is no training state of this version of pof: it lacks {lacking[0]!r}")
    found: dict[str, Any] = state
    return found


def _digest(file: IO[bytes], size: int) -> bytes:
    """The checksum of the first ``size`` bytes of a file, which is left behind them."""
    digest = hashlib.blake2b(digest_size=DIGEST // 2)
    file.seek(0)
    while block := file.read(min(size, 2**20)):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


def check_shapes(own: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse the contents of a network with other parameters."""
    before, now = ({name: tuple(p.shape) for name, p in each["parameters"].items()} for each in (saved, own))
    for name in [*now, *(name for name in before if name not in now)]:
        if before.get(name) != now.get(name):
            raise ValueError(f"{name} was {before.get(name, 'not there')} and is now {now.get(name, 'not there')}")


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Refuse a saved state of another configuration, naming the first setting that differs and both its values."""
    before, now = flat(saved), flat(current)
    for key in [*before, *(k for k in now if k not in before)]:
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {before.get(key)!r} and is now {now.get(key)!r};"
                " resume with the same configuration, or train into another folder"
            )
