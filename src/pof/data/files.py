"""Where the files of the known data sets are looked for, and what is said when they are not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pof._support.text import reason
from pof.data.checks import DataError


def cache_folder() -> Path:
    """The folder that data sets are downloaded to: ``$XDG_CACHE_HOME/pof``, by default ``~/.cache/pof``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pof"


def root_folder(data_root: Path | None) -> Path:
    """The folder to read from: the one that the user gave, or the cache, which may not exist yet."""
    if data_root is None:
        return cache_folder()
    if not os.path.isdir(data_root):
        raise DataError(f"no such folder: data_root {data_root}")
    return data_root


def torchvision_datasets() -> Any:
    """The module ``torchvision.datasets``; a DataError where torchvision is not installed."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError("this data set needs torchvision: pip install torchvision") from error
    return datasets


def not_found(
    name: str, files: Sequence[str], *, data_root: Path | None, remedy: str, error: Exception | None
) -> DataError:
    """The error to raise: which files are expected in ``data_root`` (None: a download has failed), and a remedy."""
    cause = reason(error)
    if data_root is None:
        return DataError(
            f"{name} is not in {cache_folder()} and cannot be downloaded ({cause}); "
            f"{remedy} into some folder, and give that as data_root (files: {', '.join(files)})"
        )
    absent = [file for file in files if not (data_root / file).is_file()]
    if not absent:
        return DataError(
            f"{name}: the files in {data_root} are damaged or not the original ones ({cause}); {remedy} again"
        )
    return DataError(
        f"{name} is not in {data_root}: missing {', '.join(absent)}; {remedy} into that folder, or leave out "
        "data_root to download it where there is a network"
    )
