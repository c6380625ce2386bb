"""Temporary changes to modules, undone when the body raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

TRACKED = ("running_mean", "running_var", "num_batches_tracked")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Put every submodule into eval mode; afterwards each has its own mode again."""
    return _in_mode(module, training=False)


def in_training(module: nn.Module) -> AbstractContextManager[None]:
    """Put every submodule into training mode; afterwards each has its own mode again."""
    return _in_mode(module, training=True)


@contextmanager
def _in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    with modes_kept(module):
        module.train(training)
        yield


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever the body does, each submodule has its own train or eval mode again afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forward passes in the body leave all running statistics untouched; normalisation itself is as before.

    Batch norms of torch (and their subclasses: SyncBatchNorm, timm's) stop tracking; nothing is copied for them.
    All other buffers are copied before and written back after, so that a custom batch norm is covered whatever it
    calls its statistics.
    """
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats and m.training]
    saved = [(m, name, buffer, buffer.clone()) for m, name, buffer in _other_buffers(module)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for m, name, buffer, value in saved:
                # Some write into their buffer, some put a new tensor in its place.
                setattr(m, name, buffer.copy_(value))


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in the body normalise with their running statistics; everything else stays in its own mode."""
    norms = [m for m in module.modules() if _normalises_batches(m) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _normalises_batches(module: nn.Module) -> bool:
    """Tell batch norms by class, custom ones by their buffers."""
    return isinstance(module, BATCH_NORMS) or isinstance(getattr(module, "running_mean", None), Tensor)


def _other_buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (m, name, buffer)
        for m in module.modules()
        if m.training
        for name, buffer in m.named_buffers(recurse=False)
        if not (isinstance(m, BATCH_NORMS) and name in TRACKED)
    ]
