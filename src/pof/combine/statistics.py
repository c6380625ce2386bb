"""Batch-norm statistics of a network whose weights were not trained with them: an average, an interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import TARGET_KEYS, Inputs, call, check_inputs, to_device, unpack
from pof._support.modules import BATCH_NORMS, TRACKED, device_of, evaluating, frozen_norms

_TRACKING = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@torch.no_grad()
def estimate_statistics(model: nn.Module, loader: Iterable[Any]) -> None:
    """Estimate the running statistics of batch norms anew: mean over all samples, short batches by their size.

    A norm that runs several times in a forward takes the mean over its calls, each by its rows.  Frozen ones, in eval
    mode inside of a model in training mode, are left alone.  Everything but the batch norms is in eval mode meanwhile;
    momenta and modes are put back.  Under several processes each goes through its own share of the data, and all get
    the mean of what they found, by its rows.

    Args:
        model: any network; without torch's batch norms, or instance norms that track (or subclasses), nothing is run.
        loader: the training set, in batches of any kind: ``(inputs, targets)``, dicts with or without ``labels``, or
            inputs (N, ...) alone; moved to the device of the model.

    Raises:
        ValueError: if the loader is empty, inputs are not finite, or a mini-batch has one value per channel.  The
            statistics are as before then, as after any other error.
    """
    frozen = frozen_norms(model)
    norms = [m for m in model.modules() if isinstance(m, _TRACKING) and m.track_running_stats and m not in frozen]
    if not norms:
        return
    device = device_of(model)
    empty = True
    with evaluating(model), _counting(norms) as rows:
        for batch in loader:
            check_inputs(inputs := to_device(_inputs(batch), device))
            call(model, inputs)
            empty = False
        if empty and not distributed.active():
            raise ValueError("the loader gave no batch, and statistics cannot be estimated without one")
    if distributed.active():
        for norm in norms:
            _join(norm, rows[norm])


@contextmanager
def _counting(norms: Sequence[nn.Module]) -> Iterator[dict[nn.Module, int]]:
    """Norms take the mean over the rows of all their calls in the body, of which a forward may make several."""
    rows = dict.fromkeys(norms, 0)
    momenta: list[Any] = [norm.momentum for norm in norms]

    def count(norm: Any, arguments: tuple[Tensor, ...]) -> None:
        rows[norm] += len(arguments[0])
        norm.momentum = len(arguments[0]) / max(rows[norm], 1)

    before = [(buffer, buffer.clone()) for norm in norms for name, buffer in norm.named_buffers() if name in TRACKED]
    for norm in norms:
        restart: Any = norm.reset_running_stats
        restart()
        norm.train()
    handles = [norm.register_forward_pre_hook(count) for norm in norms]
    try:
        yield rows
    except BaseException as error:
        for buffer, value in before:
            buffer.copy_(value)
        if "Expected more than 1 value per channel" in str(error):
            raise ValueError("a mini-batch of one sample has no variance: give the loader drop_last=True") from error
        raise
    finally:
        for norm, handle, momentum in zip(norms, handles, momenta, strict=True):
            handle.remove()
            norm.momentum = momentum


def _join(norm: Any, rows: int) -> None:
    """Average a norm's statistics over the processes, each by the rows that it saw."""
    counts = distributed.gather_objects(rows)
    for buffer in (norm.running_mean, norm.running_var):
        if buffer is not None:
            buffer.mul_(rows / max(sum(counts), 1))
            dist.all_reduce(buffer)


def _inputs(batch: Any) -> Inputs:
    if isinstance(batch, Tensor) or (isinstance(batch, Mapping) and not any(key in batch for key in TARGET_KEYS)):
        return batch
    return unpack(batch)[0]
