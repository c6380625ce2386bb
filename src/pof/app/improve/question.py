"""The folder of a search, and what the search was asked: it goes on with the same question only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pof._support.files import lock
from pof.app.improve.rate import COMMON
from pof.app.options import TrainOptions
from pof.app.run_files import RunError
from pof.app.run_folder import write_json


def open_folder(folder: Path, wanted: Mapping[str, Any], resume: bool, stack: ExitStack) -> None:
    """Take a folder for this race alone; one that holds another is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    stack.callback(lock(folder))
    asked = folder / "improve.json"
    others = any(not entry.name.startswith(".") and entry != asked for entry in folder.iterdir())
    if not others:  # or a search that died before its first judgement
        write_json(asked, wanted)
        return
    if not asked.exists():
        raise RunError(f"{folder} holds other files: give --out a new or empty folder")
    if not resume:
        raise RunError(
            f"{folder} holds a search already: give another folder, or go on with resume, or remove that search with"
            " --overwrite"
        )
    before = json.loads(asked.read_text(encoding="utf-8"))
    changed = next((name for name in wanted if wanted[name] != before.get(name)), None)
    if changed is not None:
        raise RunError(
            f"cannot go on in {folder}: {changed} was {before.get(changed)!r} and is now {wanted[changed]!r};"
            " go on with the same arguments, or give another folder"
        )


def digest(tensors: Mapping[str, Any]) -> str:
    """Tensors by their names and content; what is none is left out."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, torch.Tensor):
            found.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return found.hexdigest()[:16]


def question(budget: float, candidates: Any, seed: int, lr: float | None, base: TrainOptions) -> dict[str, Any]:
    """What a search that goes on must find unchanged, in plain values."""
    own = {"budget": budget, "candidates": _plain(candidates), "seed": seed, "lr": lr}
    return own | {f"training.{name}": getattr(base, name) for name in COMMON}


def _plain(candidates: Sequence[str] | Mapping[str, Mapping[str, Any]] | None) -> Any:
    if isinstance(candidates, Mapping):
        return {name: dict(options or {}) for name, options in candidates.items()}
    return None if candidates is None else list(candidates)
