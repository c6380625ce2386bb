"""Batch-norm statistics of a network whose weights were not trained with them: an average, an interpolation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import TARGET_KEYS, Inputs, check_inputs, halves_of, to_device
from pof._support.checks import gives_batches
from pof._support.modules import BATCH_NORMS, TRACKED, device_of, evaluating, frozen_norms
from pof._support.precision import wide_dtype
from pof._support.random import preserved
from pof.head.calls import Untouched

_TRACKING = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@torch.no_grad()
def estimate_statistics(model: nn.Module, loader: Iterable[Any]) -> None:
    """Estimate the running statistics of batch norms anew: mean over all samples, short batches by their size.

    A norm that runs several times in a forward takes the mean over its calls, each by its rows.  Frozen ones, in eval
    mode inside of a model in training mode, are left alone, as are those that do not run.  Everything but the batch
    norms is in eval mode meanwhile; momenta, modes and generators, the loader's own too, are put back.  Under several
    processes each goes through its own share of the data, and all get the mean of what they found, by its rows.

    Args:
        model: any network; without torch's batch norms, or instance norms that track (or subclasses), nothing is run.
        loader: the training set, in batches of any kind: ``(inputs, targets)``, dicts with or without ``labels``, or
            inputs (N, ...) alone; moved to the device of the model.

    Raises:
        ValueError: if the loader is empty, inputs are not finite, or a mini-batch has one value per channel.  The
            statistics are as before then, as after any other error.
    """
    gives_batches("loader", loader)
    frozen = frozen_norms(model)
    norms = [m for m in model.modules() if isinstance(m, _TRACKING) and m.track_running_stats and m not in frozen]
    if not norms:
        return
    device = device_of(model)
    empty, untouched = True, Untouched()
    with preserved(loader), evaluating(model), _averaging(norms):
        for batch in loader:
            check_inputs(inputs := to_device(_inputs(batch), device))
            untouched(model, inputs)
            empty = False
        if empty and not distributed.active():
            raise ValueError("the loader gave no batch, and statistics cannot be estimated without one")


class _Mean:
    """The mean of one norm's statistics over the rows of all its calls, of which a forward may make several."""

    def __init__(self, norm: Any) -> None:
        self.rows, self.momentum = 0, norm.momentum
        self.tracked = [buffer for name, buffer in norm.named_buffers() if name in TRACKED]
        self.before = [buffer.clone() for buffer in self.tracked]
        # In half precision a mean over many mini-batches would soon not move any more.
        self.means = [torch.zeros_like(b, dtype=wide_dtype(b)) for b in self.tracked if b.is_floating_point()]
        norm.reset_running_stats()
        norm.train()
        norm.momentum = 1.0  # the statistics are then those of one call
        self.handle = norm.register_forward_hook(self._add, with_kwargs=True)

    def _add(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = len(next(iter((*args, *kwargs.values()))))
        self.rows += rows
        for mean, buffer in zip(self.means, (norm.running_mean, norm.running_var), strict=True):
            if rows:
                mean.lerp_(buffer.to(mean.dtype), rows / self.rows)

    def put(self, norm: Any) -> None:
        """Give the norm its mean over all processes; one that never ran keeps what it had."""
        everywhere = sum(distributed.gather_objects(self.rows))
        if not everywhere:
            self.restore()
            return
        for mean, buffer in zip(self.means, (norm.running_mean, norm.running_var), strict=True):
            if distributed.active():
                dist.all_reduce(mean.mul_(self.rows / everywhere))
            buffer.copy_(mean)

    def restore(self) -> None:
        """Put back what was before."""
        for buffer, value in zip(self.tracked, self.before, strict=True):
            buffer.copy_(value)


@contextmanager
def _averaging(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Norms have the mean over the body afterwards; what they had before where the body raises."""
    means = {norm: _Mean(norm) for norm in norms}
    try:
        yield
        for norm, mean in means.items():
            mean.put(norm)
    except BaseException as error:
        for mean in means.values():
            mean.restore()
        if "Expected more than 1 value per channel" in str(error):
            raise ValueError("a mini-batch of one sample has no variance: give the loader drop_last=True") from error
        raise
    finally:
        for norm, mean in means.items():
            mean.handle.remove()
            norm.momentum = mean.momentum


def _inputs(batch: Any) -> Inputs:
    if isinstance(batch, Tensor) or (isinstance(batch, Mapping) and not any(key in batch for key in TARGET_KEYS)):
        return batch
    alone = type(batch) in {list, tuple} and len(batch) == 1  # of a TensorDataset without targets
    return batch[0] if alone else halves_of(batch)[0]
