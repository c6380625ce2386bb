"""Batch-norm statistics of a network whose weights were not trained with them: an average, an interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import TARGET_KEYS, Inputs, batch_size, call, to_device, unpack
from pof._support.modules import BATCH_NORMS, evaluating


@torch.no_grad()
def estimate_statistics(model: nn.Module, loader: Iterable[Any]) -> None:
    """Estimate the running statistics of batch norms anew: mean over all samples, short batches by their size.

    Everything but the batch norms is in eval mode meanwhile; momenta and modes are put back.  Under several processes
    each goes through its own share of the data, and all get the mean of what they found.

    Args:
        model: any network; without torch's batch norms (or subclasses) nothing is run.
        loader: the training set, in batches of any kind: ``(inputs, targets)``, dicts with or without ``labels``, or
            inputs (N, ...) alone; moved to the device of the model.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    momenta = [m.momentum for m in norms]
    seen = 0
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            for batch in loader:
                inputs = to_device(_inputs(batch), device)
                seen += batch_size(inputs)
                for norm in norms:
                    norm.momentum = batch_size(inputs) / seen
                call(model, inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if distributed.active():
        for norm in norms:
            for buffer in (norm.running_mean, norm.running_var):
                if buffer is not None:
                    dist.all_reduce(buffer)
                    buffer.div_(dist.get_world_size())


def _inputs(batch: Any) -> Inputs:
    if isinstance(batch, Tensor) or (isinstance(batch, Mapping) and not any(key in batch for key in TARGET_KEYS)):
        return batch
    return unpack(batch)[0]
