"""Training state on disk: written atomically, read without executing anything, refused if it does not belong.

One file, ``state.pt``, holds what a run needs to go on bitwise identically: network, method, optimizer, schedule,
scaler, the place in the data, every random generator of every process, and the best network so far.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pof._support.files import replacing

STATE_FILE = "state.pt"


class CheckpointError(ValueError):
    """A training state that cannot be read, or belongs to another configuration."""


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a training state atomically; the one before stays until the new one is on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / STATE_FILE) as partial:
        try:
            torch.save(dict(state), partial)
        except RuntimeError as error:  # torch's zip writer hides the operating system's error
            code = errno.ENOSPC if shutil.disk_usage(folder).free < 2**20 else errno.EIO
            raise OSError(code, os.strerror(code), str(partial)) from error
    return folder / STATE_FILE


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read the training state of a folder onto the CPU; None if there is none."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to start again") from error
    return state


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], where: Path) -> None:
    """Refuse a saved state of another configuration, naming the first setting that differs and both its values."""
    before, now = _flat(saved), _flat(current)
    for key in [*before, *(k for k in now if k not in before)]:
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"cannot resume from {where}: {key} was {before.get(key)!r} and is now {now.get(key)!r};"
                " resume with the same configuration, or train into another folder"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of all levels, by names such as ``training.lr``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
