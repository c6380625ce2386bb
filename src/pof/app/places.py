"""Paths that a run says: relative to where it was started from, which its config.yaml says from where the run is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pof.data.hub import PREFIX
from pof.data.registry import FOLDER, KNOWN
from pof.models import PRETRAINED

FOLDERS = ("hf:", "timm:local-dir:", "local-dir:")
"""What comes before the folder of a network."""
START = "started_in"
"""The section of config.yaml with the folder that a run was started in, from its own: both may have moved together."""


def start_from(folder: Path) -> str:
    """The current folder, seen from that of a run."""
    try:
        return Path(os.path.relpath(Path.cwd(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return str(Path.cwd())


def candidates(text: str, config: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """What a path of a run may be: from where it was started, from here, or from one of the folders around it.

    Not the run itself, ``runs/birds`` for its data ``birds``, nor what it is in.
    """
    said, folder = config.get(START), folder.resolve()
    if isinstance(said, str):
        yield (folder / said).resolve() / text
    yield Path(text)
    around = (base / text for base in folder.parents)
    yield from (path for path in around if path.resolve() not in {folder, *folder.parents})


def located(text: str | None, config: Mapping[str, Any], folder: Path) -> str | None:
    """Find data or weights of a run; what is no path, the same from here, or nowhere, stays."""
    if isinstance(text, str) and text.startswith(PREFIX):
        return f"{PREFIX}{located(text.removeprefix(PREFIX), config, folder)}"
    if not isinstance(text, str) or not text or text in KNOWN or text == PRETRAINED or ":" in text:
        return text
    # A folder of another user may be closed, which Path.exists raises.
    found = next((path for path in candidates(text, config, folder) if os.path.exists(path)), Path(text))
    return text if found.resolve() == Path(text).resolve() else str(found)


def identified(data: str, data_root: str | None) -> str:
    """What tells data sets apart: the name of a built-in one, else where the files are, however that is written."""
    if data in KNOWN:
        return data
    return str(Path(data_root or "", "" if data == FOLDER else data.removeprefix(PREFIX)).resolve())


def located_model(name: str, config: Mapping[str, Any], folder: Path) -> str:
    """The name of a network, its folder found."""
    prefix = next((prefix for prefix in FOLDERS if name.startswith(prefix)), None)
    return name if prefix is None else f"{prefix}{located(name.removeprefix(prefix), config, folder)}"


def located_options(values: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A section of a run's config.yaml with its paths found; data below a data_root are looked for nowhere else."""
    paths = ("data_root", "weights", "validation_data", *(["data"] if values.get("data_root") is None else []))
    found = {name: located(values[name], config, folder) for name in paths if name in values}
    model = values.get("model")
    return {**values, **found, **({"model": located_model(model, config, folder)} if isinstance(model, str) else {})}
