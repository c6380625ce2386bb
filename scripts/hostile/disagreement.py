"""Two processes (gloo) that were started with different options: refused on both in one line, before they train."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.hostile import world
from scripts.hostile.runs import clean
from scripts.hostile.trial import PATIENCE, Child, Ended, Try, copied, judged, pof

BASE = (*world.POST_TRAIN, "--method", "finetune", "--workers", "0")
OTHER: dict[str, tuple[str, ...]] = {
    "lr": ("--lr", "0.01"),
    "seed": ("--seed", "1"),
    "split seed": ("--split_seed", "1"),
    "weight decay": ("--weight_decay", "0"),
    "momentum": ("--momentum", "0.5"),
    "precision": ("--precision", "bf16"),
    "optimizer": ("--optimizer", "adamw"),
    "method": ("--method", "pof"),
    "method of more passes": ("--method", "sam"),
    "accumulation": ("--accumulation", "2"),
    "checkpoint_every": ("--checkpoint_every", "2"),
    "validation": ("--validation", "0"),
    "share of validation": ("--validation", "0.2"),
    "batch size": ("--batch_size", "40"),
    "epochs": ("--epochs", "3"),
    "train size": ("--train_size", "60"),
    "schedule": ("--schedule.kind", "constant"),
    "clipping": ("--clip_norm", "0.1"),
    "smoothing": ("--label_smoothing", "0.1"),
    "frozen head": ("--freeze_head", "true"),
    "weights": ("--weights", "weights.pt"),
    "model": ("--model", "resnet20"),
    "average": ("--average.kind", "ema"),
    "resume": ("--resume", "true"),
    "data": ("--data", "images", "--image_size", "8"),
    "augmentation": ("--augment", "none"),
}
"""Options of the second process only."""
AGREEING = "nothing"


def tries(folder: Path, made: Path, wanted: str) -> Iterator[Try]:
    """Each must end on both ranks, within the time, without having trained; without a difference both go well."""
    place = copied(made, folder / "ranks")
    for name, extra in {AGREEING: (), **OTHER}.items():
        if wanted not in name:
            continue
        since = time.monotonic()
        ranks = _ranks(place, BASE, (*BASE, *extra))
        clean(place)
        codes = [rank.code for rank in ranks]
        wrong = f"exit codes {codes}" if (0 in codes) != (name == AGREEING) else None
        worst = next((rank for rank in ranks if rank.code is None), next((r for r in ranks if r.code != 0), ranks[0]))
        yield judged("disagreement", name, since, worst, wrong)


def _ranks(place: Path, *commands: tuple[str, ...]) -> list[Ended]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = [
        Child(place, pof, *command, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, command in enumerate(commands)
    ]
    until = time.monotonic() + PATIENCE
    return [child.ended(max(0.1, until - time.monotonic())) for child in children]
