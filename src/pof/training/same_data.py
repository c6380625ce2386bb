"""Whether a loader gives the data of the run that it resumes, by a few values of an epoch's first mini-batch.

They are kept in the training state.  Floating-point values may differ a little, as other decoders and kernels make
them; labels and other whole numbers may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pof._support.batches import is_plain, tensors_of

VALUES, TENSORS = 256, 8
NOISE = 0.1
"""Of the spread of floating-point values: the root mean square difference that passes for the same data."""


def sampled(batch: Any) -> list[dict[str, Any]]:
    """Shape and evenly spaced values of each tensor of a mini-batch, on the CPU."""
    return [{"shape": list(t.shape), "values": _spread(t)} for t in tensors_of(batch) if _is_real(t)][:TENSORS]


def _is_real(tensor: Tensor) -> bool:
    return is_plain(tensor) and not tensor.is_complex() and not tensor.is_quantized


def _spread(tensor: Tensor) -> Tensor:
    places = torch.linspace(0, max(tensor.numel() - 1, 0), min(tensor.numel(), VALUES), dtype=torch.float64)
    values = tensor.detach().flatten()[places.long().to(tensor.device)].cpu()
    return values.double() if values.is_floating_point() else values.long()


def are_same(saved: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> bool:
    """Compare two that :func:`sampled` gave."""
    return [each["shape"] for each in saved] == [each["shape"] for each in found] and all(
        _close(before["values"], now["values"]) for before, now in zip(saved, found, strict=True)
    )


def _close(before: Tensor, now: Tensor) -> bool:
    if before.dtype != now.dtype or not before.is_floating_point() or not before.numel():
        return before.dtype == now.dtype and torch.equal(before, now)
    before, now = before.nan_to_num(), now.nan_to_num()
    allowed = NOISE * before.std(correction=0) + 1e-6 * before.abs().max()
    return bool((before - now).square().mean().sqrt() <= allowed)


def readable_again(loader: Any) -> bool:
    """Whether a pass that is begun and left moves nothing but generators: not of streams, nor where nobody can know."""
    if type(loader) in {list, tuple}:
        return True
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return False
    if type(loader) is not DataLoader:
        return callable(getattr(loader, "iterate", None))  # any pass, by its contract
    samplers = (loader.sampler, loader.batch_sampler)
    return not loader.persistent_workers and all(
        part is None or type(part).__module__.startswith("torch.utils.data.") for part in samplers
    )
