"""Dtypes to compute in: float32 at least, and autocast on, off, or without its cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Find the dtype that tensors are computed in together: one that holds them all, float32 at least."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32, with graph; float32 and float64 stay as they are."""
    return tensor.to(wide_dtype(tensor))


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Run the body under autocast to ``dtype``; None changes nothing."""
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    return context


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Run the body in the dtypes of its tensors, whatever autocast does outside; also for devices without autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, enabled=False)
    return context


def without_cast_cache(device: torch.device) -> AbstractContextManager[None]:
    """Run the body under the autocast of outside, and let it keep no weight that it cast.

    For a pass without gradient before a training pass: torch 2.6 would hand the training pass the cast weights of the
    first, which have no graph, and the weights themselves would get no gradient.
    """
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    dtype = torch.get_autocast_dtype(device.type)
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, cache_enabled=False)
    return context
