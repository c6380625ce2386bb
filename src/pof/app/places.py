"""Paths that a run says: relative to where it was started from, which is one of the folders around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pof.data.hub import PREFIX
from pof.data.registry import FOLDER, KNOWN
from pof.models import PRETRAINED

FOLDERS = ("hf:", "timm:local-dir:", "local-dir:")
"""What comes before the folder of a network."""


def located(text: str | None, folder: Path) -> str | None:
    """Find data or weights from the run's folder; what is no path, is there already, or nowhere, is left as it is."""
    if text is not None and text.startswith(PREFIX):
        return f"{PREFIX}{located(text.removeprefix(PREFIX), folder)}"
    if text is None or text in KNOWN or text == PRETRAINED or ":" in text or Path(text).exists():
        return text
    found = (base / text for base in folder.resolve().parents)
    return next((str(path) for path in found if path.exists()), text)


def identified(data: str, data_root: str | None) -> str:
    """What tells data sets apart: the name of a built-in one, else where the files are, however that is written."""
    if data in KNOWN:
        return data
    return str(Path(data_root or "", "" if data == FOLDER else data.removeprefix(PREFIX)).resolve())


def located_model(name: str, folder: Path) -> str:
    """The name of a network, its folder found from that of the run."""
    prefix = next((prefix for prefix in FOLDERS if name.startswith(prefix)), None)
    return name if prefix is None else f"{prefix}{located(name.removeprefix(prefix), folder)}"


def located_options(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A section of a run's config.yaml with its paths found; data below a data_root are looked for nowhere else."""
    paths = ("data_root", "weights") if values.get("data_root") is not None else ("data", "data_root", "weights")
    found = {name: located(values[name], folder) for name in paths if name in values}
    return values | found | ({"model": located_model(values["model"], folder)} if "model" in values else {})
