"""States of interrupted runs that were damaged: the resume ends bitwise the same, or says in one line why not."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from scripts.hostile.files import Payload, edited
from scripts.hostile.runs import KINDS, OUT, Kind, Undisturbed, clean, differs, killed, resumed, undisturbed
from scripts.hostile.trial import ACCEPTED, Try, copied, judged

FLIPS, CUTS = 14, 8
Harm = Callable[[Path, random.Random], None]
"""Damages one file."""


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _fifo(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _text(path: Path, draw: random.Random) -> None:
    path.write_text("state", encoding="utf-8")


def _empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def _payload(path: Path, draw: random.Random) -> None:
    import pickle

    path.write_bytes(pickle.dumps(Payload()))


def _foreign(path: Path, draw: random.Random) -> None:
    torch.save({"model": {}, "epoch": 3}, path)


def _random(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def _gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def _by_hand(pattern: str, text: str) -> Harm:
    return lambda path, draw: edited(path.name, pattern, text)(path.parent)


FOREIGN = (_fifo, _folder, _loop, _text, _empty, _payload, _foreign, _random, _gone)
BY_HAND: dict[str, tuple[Harm, ...]] = {
    "config.yaml": (
        _by_hand(r"^  lr: .*", "  lr: 0.01"),
        _by_hand(r"^  seed: .*", "  seed: 7"),
        _by_hand(r"^  momentum: .*", "  momentum: nan"),
        _by_hand(r"^  batch_size: .*", "  batch_size: [20]"),
        _by_hand(r"^training:", "trainings:"),
        _by_hand(r"^processes: .*", "processes: 2"),
    ),
    "metrics.jsonl": (
        _by_hand(r'"loss": [\d.e-]+', '"loss": 0.5'),
        _by_hand(r'"step": 2,', '"step": 3,'),
        _by_hand(r'"step": \d+', '"step": null'),
        _by_hand(r'"event": "step"', '"event": "stop"'),
        _by_hand(r'"epoch": \d+', '"epoch": "a"'),
        _by_hand(r"^\{.*\n", ""),
    ),
    "environment.json": (_by_hand(r"\{", "["), _by_hand(r'"time"', '"date"')),
}
"""Small edits of the other files of a run, which a resume must notice, or which change none of its figures."""


def tries(folder: Path, made: Path, wanted: str, seed: int) -> Iterator[Try]:
    """Bits, cuts, foreign and edited files of one interrupted run each."""
    draw = random.Random(seed)
    for name, kind in KINDS.items():
        place = copied(made, folder / f"damage-{name}")
        whole, interrupted = undisturbed(place, kind), folder / f"interrupted-{name}"
        share = 0.7
        while not killed(place, kind, share * whole.seconds) or not list((place / OUT).glob(kind.state)):
            clean(place)
            share = share * 0.9 if share > 0.3 else 0.9
        (place / OUT).rename(interrupted)
        for label, pattern, harm in _harms(name, kind):
            if wanted in label:
                yield _tried(place, interrupted, kind, whole, label, pattern, harm, draw)


def _harms(name: str, kind: Kind) -> Iterator[tuple[str, str, Harm]]:
    long = name == "post-train"
    for number in range(FLIPS if long else 3):
        yield f"{name}, {kind.state}: bit {number}", kind.state, _flip
    for number in range(CUTS if long else 2):
        yield f"{name}, {kind.state}: cut {number}", kind.state, _cut
    for harm in FOREIGN if long else FOREIGN[:3]:
        yield f"{name}, {kind.state}: {harm.__name__}", kind.state, harm
    if long:
        for file, edits in BY_HAND.items():
            for number, harm in enumerate(edits):
                yield f"{name}, {file} by hand: {number}", file, harm
    if name == "improve":
        for harm in (_flip, _cut, _text, _empty, _gone):
            yield f"{name}, {harm.__name__}: improve.json", "improve.json", harm
    if name == "experiment":
        for file in ("result.json", "model.safetensors", "config.yaml"):
            for harm in (_flip, _cut, _empty):
                yield f"{name}, {file}: {harm.__name__}", f"runs/*/{file}", harm


def _tried(
    place: Path,
    interrupted: Path,
    kind: Kind,
    whole: Undisturbed,
    label: str,
    pattern: str,
    harm: Harm,
    draw: random.Random,
) -> Try:
    shutil.copytree(interrupted, place / OUT, symlinks=True)
    found = sorted((place / OUT).glob(pattern))
    since = time.monotonic()
    if found:
        harm(draw.choice(found), draw)
    ended = resumed(place, kind)
    # A log that was edited by hand stays so: nothing but itself is made of it.
    wrong = differs(place, kind, whole, log=pattern != "metrics.jsonl") if ended.code == ACCEPTED else None
    if (place / "executed").exists():
        wrong = "code was executed"
    clean(place)
    return judged("damage", label if found else f"{label} (no such file)", since, ended, wrong)
