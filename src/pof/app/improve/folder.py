"""The folder of a search: taken for one question alone, and gone on with, or removed, for it only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pof._support.files import lock
from pof.app.improve.rate import COMMON
from pof.app.options import TrainOptions, plain
from pof.app.run_files import RunError
from pof.app.run_folder import check_removable, clear, write_json
from pof.training.same_data import are_same, sampled
from pof.weights import NETWORK_FILE

QUESTION, RATES = "improve.json", "rates.json"
OF_A_SEARCH = {
    *(QUESTION, "journal.jsonl", "runs", "config.yaml", NETWORK_FILE, "result.json", "test.json"),
    *("report.html", "networks.html", "flatness.json", RATES),
}
"""What a search and the commands about it write into its folder."""
FORMAT = 3
"""Of the journal: another one where its rungs or passes mean something else, or the question asks for more."""
SEEN = "first mini-batch of val_loader"
"""The name in the question of a few values of it."""


def take(folder: Path, asked: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Callable[[], None]:
    """Take a folder for one search alone; one that holds another is refused.

    Args:
        folder: is made if it is not there.
        asked: what a search that goes on must find unchanged, in plain values.
        resume: go on with the search in it.
        overwrite: remove the search in it.

    Returns:
        What lets other processes write to it.
    """
    if resume and overwrite:
        raise RunError("give resume or overwrite, not both: one goes on with the search, the other removes it")
    folder.mkdir(parents=True, exist_ok=True)
    release = lock(folder)
    try:
        _open(folder, asked, resume, overwrite)
    except BaseException:
        release()
        raise
    return release


def _open(folder: Path, asked: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    question = folder / QUESTION
    if overwrite and question.is_file():
        check_removable(folder, None, OF_A_SEARCH)
        clear(folder, OF_A_SEARCH)
    begun = {QUESTION, "config.yaml"} if question.exists() else set()
    others = any(not entry.name.startswith(".") and entry.name not in begun for entry in folder.iterdir())
    if not others:  # or a search that died before it found its rates
        write_json(question, asked)
        return
    if not question.exists():
        raise RunError(f"{folder} holds other files: give --out a new or empty folder")
    if not resume:
        raise RunError(
            f"{folder} holds a search already: give another folder, or go on with resume, or remove that search with"
            " overwrite"
        )
    before = {"format": 1, **json.loads(question.read_text(encoding="utf-8"))}
    for name in ("format", *sorted((before.keys() | asked.keys()) - {SEEN}, key=str)):
        if name not in before or name not in asked or before[name] != asked[name]:
            was, now = (repr(values[name]) if name in values else "not given" for values in (before, asked))
            raise RunError(
                f"cannot go on in {folder}: {name} was {was} and is now {now}; go on with the same arguments, or give"
                " another folder"
            )
    if not are_same(*[_tensors(values[SEEN]) for values in (before, asked)]):
        raise RunError(
            f"cannot go on in {folder}: val_loader gives other samples than before; give the same, or another folder"
        )


def seen(batch: Any) -> list[dict[str, Any]]:
    """A few values of a mini-batch, as plain values; under ``SEEN`` they may differ as other decoders make them."""
    return [
        {"shape": each["shape"], "values": each["values"].nan_to_num(0.0, 0.0, 0.0).tolist()} for each in sampled(batch)
    ]


def _tensors(values: Any) -> list[dict[str, Any]]:
    found = [np.asarray(each["values"]) for each in values]  # float64 or int64, as they were
    return [{"shape": each["shape"], "values": torch.from_numpy(own)} for each, own in zip(values, found, strict=True)]


def rates_in(folder: Path) -> dict[str, Any] | None:
    """The rates that a search found before it was interrupted, what they cost, and whether its network fits."""
    file = folder / RATES
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def digest(tensors: Mapping[str, Any]) -> str:
    """Tensors by their names and content; what is none is left out."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, torch.Tensor):
            found.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return found.hexdigest()[:16]


def question(budget: float, candidates: Any, seed: int, lr: float | None, base: TrainOptions) -> Any:
    """What a search that goes on must find unchanged, in plain values."""
    if isinstance(candidates, Mapping):
        candidates = {name: dict(options or {}) for name, options in candidates.items()}
    own = {"format": FORMAT, "budget": budget, "candidates": candidates, "seed": seed, "lr": lr}
    return plain(own | {f"training.{name}": getattr(base, name) for name in COMMON})
