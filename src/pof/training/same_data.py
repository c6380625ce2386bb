"""Whether a loader gives the data of the run that it resumes, by a few values of an epoch's first mini-batch.

They are kept in the training state.  Floating-point values may differ a little, as other decoders and kernels make
them; labels and other whole numbers may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
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
    real = (t for t in tensors_of(batch) if is_plain(t) and not t.is_complex() and not t.is_quantized)
    return [{"shape": list(t.shape), "values": _spread(t)} for t in islice(real, TENSORS)]


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


def items_of(loader: Any) -> dict[str, Any] | None:
    """Number of samples, and a few values of three of them, of a loader's data set; None where it cannot be asked."""
    data: Any = getattr(loader, "dataset", None)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        return None
    samples = len(data)
    try:
        items = [data[number] for number in sorted({0, samples // 2, samples - 1})]
    except (KeyError, IndexError, TypeError):  # items by other names than numbers
        return None
    return {"samples": samples, "values": sampled(loader.collate_fn(items))}


def other_items(saved: dict[str, Any] | None, now: Callable[[], dict[str, Any] | None]) -> str | None:
    """Say which data :func:`items_of` was given before, if they are not those that it gives ``now``."""
    found = now()
    if saved is None or found is None:
        return None
    if saved["samples"] != found["samples"]:
        return f"training data with {saved['samples']} samples, and now there are {found['samples']}"
    if are_same(saved["values"], found["values"]):
        return None
    again = now()
    seeded = again is not None and are_same(found["values"], again["values"])  # else nobody can tell
    return "other training data" if seeded else None


def readable_again(loader: Any) -> bool:
    """Whether starting and abandoning a pass changes nothing but generators; False for streams and unknown loaders."""
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
