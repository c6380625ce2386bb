"""What a recipe's methods refuse, found before anything runs: each is built around a small stand-in network."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from pof._support.random import isolated
from pof.app.job import make_optimizer
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions, check_numbers, schedule_of

_found: set[str] = set()


def check_training(training: TrainOptions, *, from_scratch: bool, new_head: bool) -> None:
    """Refuse options that a run would refuse, with its own words."""
    key = f"{from_scratch} {new_head} {training}"
    if key in _found:
        return
    check_numbers(training)
    if training.loss != "cross-entropy" or training.metric is not None:
        raise ValueError(
            f"experiments and improve compare classifiers by their errors, so the loss is cross-entropy; got loss"
            f" {training.loss!r}, metric {training.metric!r}: use pof train and pof post-train for other tasks"
        )
    schedule_of(training)
    torch.device(training.device or "cpu")
    with warnings.catch_warnings(), isolated(0, torch.device("cpu")):
        warnings.simplefilter("ignore")
        images, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
        layers = (nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        batches = [(images, labels)]
        source_head = nn.Linear(32, 3) if new_head else None
        model = nn.Sequential(*layers)
        context = Context(model, None, training, 2, batches, batches, from_scratch, source_head=source_head)
        method = build_method(context)
        make_optimizer(method, training if training.lr != "auto" else replace(training, lr=1.0))
    _found.add(key)
