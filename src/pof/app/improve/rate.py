"""The largest stable learning rate: a few steps at rising rates, each from the incoming network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from pof._support.batches import to_device, unpack
from pof._support.random import isolated
from pof.app.job import make_optimizer
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions

STEPS, FACTOR = 8, 4.0
RANGE = {"sgd": (1e-3, 1.0), "adamw": (1e-6, 1e-2)}
RISE = 0.1
"""Rise of the loss that counts as unstable, as a share of the loss of guessing."""


def largest_stable_rate(
    network: nn.Module, train_loader: Iterable[Any], base: TrainOptions, steps_per_epoch: int
) -> tuple[float, float]:
    """Find the largest rate of a grid at which a few plain steps do not raise the loss of their mini-batches.

    Returns:
        The rate (the smallest of the grid if none is stable), and the passes over the training set that it took.
    """
    device = next(network.parameters()).device
    with isolated(base.seed):
        batches = [unpack(to_device(batch, device)) for batch in islice(train_loader, STEPS)]
    lowest, highest = RANGE[base.optimizer]
    rate, spent = highest, 0.0
    while rate > lowest:
        spent += len(batches) / steps_per_epoch
        if _is_stable(network, batches, replace(base, lr=rate)):
            return rate, spent
        rate /= FACTOR
    return lowest, spent


def _is_stable(network: nn.Module, batches: list[Any], options: TrainOptions) -> bool:
    method = build_method(Context(copy.deepcopy(network), None, replace(options, method="finetune"), 0, ()))
    optimizer = make_optimizer(method, options)
    method.train()
    losses, guessing = [], 0.0
    with isolated(options.seed):
        for inputs, targets in batches:
            out = method(inputs, targets)
            guessing = math.log(max(2, out.logits.shape[1]))
            losses.append(float(out.loss.detach()))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        with torch.no_grad():
            after = [float(method(inputs, targets).loss) for inputs, targets in batches]
    before = sum(losses[: max(1, len(losses) // 4)]) / max(1, len(losses) // 4)
    return all(map(math.isfinite, [*losses, *after])) and sum(after) / len(after) <= before + RISE * guessing
