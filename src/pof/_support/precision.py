"""Dtypes to compute in: what the hardware is fast in, float32 at least, autocast on, off, or without its cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from typing import Literal, cast, get_args

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16"]
# How torch calls it, by its older name for it.
_NEWER = {"highest": "ieee", "high": "tf32", "medium": "tf32"}
_NOTHING: AbstractContextManager[None] = nullcontext()
AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_precision(asked: str, device: torch.device) -> Precision:
    """Find the precision of a device; ``auto``: bf16 where the hardware computes in it, else fp32."""
    if asked not in get_args(AskedPrecision):
        raise ValueError(f"precision must be one of {', '.join(get_args(AskedPrecision))}; got {asked!r}")
    if asked == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if asked == "bf16" and device.type == "cpu" and not has_bf16(device):
        warnings.warn(
            "this processor emulates bf16, which can be 14 times slower than fp32: --precision fp32 or auto",
            stacklevel=1,  # the same place each time, so that it is said once
        )
    return cast(Precision, asked)


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device computes in bf16 itself: of processors, those with AMX or AVX512-BF16."""
    if device.type == "cpu":
        # Torch 2.6 has the private names only.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    module = torch.get_device_module(device)
    asked = getattr(module, "is_bf16_supported", None)
    if asked is None or not module.is_available():
        return False
    return bool(asked(including_emulation=False) if device.type == "cuda" else asked())


@contextmanager
def float32_products(device: torch.device, precision: Literal["highest", "high"]) -> Iterator[None]:
    """Compute float32 matrix products of the body exactly ("highest"), or in TF32 on a GPU that has it ("high")."""
    if device.type != "cuda":
        yield
        return
    before = _products()
    _set_products(precision if before in _NEWER else _NEWER[precision])
    try:
        yield
    finally:
        _set_products(before)


def _products() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set under its newer name, with which it cannot be asked for under the older one
        found: str = torch.backends.cuda.matmul.fp32_precision
        return found


def _set_products(name: str) -> None:
    if name in _NEWER:
        torch.set_float32_matmul_precision(name)
    else:
        torch.backends.cuda.matmul.fp32_precision = name


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Find the dtype that tensors are computed in together: one that holds them all, float32 at least."""
    dtypes = {tensor.dtype for tensor in tensors}
    return torch.float32 if dtypes == {torch.float32} else reduce(torch.promote_types, dtypes, torch.float32)


def widest_dtype(device: torch.device) -> torch.dtype:
    """Find the widest dtype that a device computes in: float64, or float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def widest(tensor: Tensor) -> Tensor:
    """Convert to the widest dtype of its device, with graph: for sums and means over many samples."""
    return tensor.to(widest_dtype(tensor.device))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32, with graph; float32 and float64 stay as they are."""
    return tensor.to(wide_dtype(tensor))


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Run the body under autocast to ``dtype``; None is none, whatever there is outside."""
    if dtype is None and not _autocasts(device.type):
        return _NOTHING
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    return context


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Run the body in the dtypes of its tensors, whatever autocast and TF32 do outside; also without autocast."""
    context = torch.autocast(device.type, enabled=False) if _autocasts(device.type) else _NOTHING
    if device.type == "cuda" and _products() not in {"highest", "ieee"}:
        return _both(context, float32_products(device, "highest"))
    return context


def _autocasts(kind: str) -> bool:
    return (kind == "cpu" or torch.amp.is_autocast_available(kind)) and torch.is_autocast_enabled(kind)


@contextmanager
def _both(outer: AbstractContextManager[None], inner: AbstractContextManager[None]) -> Iterator[None]:
    with outer, inner:
        yield


def without_cast_cache(device: torch.device) -> AbstractContextManager[None]:
    """Run the body under the autocast of outside, and let it keep no weight that it cast.

    For a pass without gradient before a training pass: torch 2.6 would hand the training pass the cast weights of the
    first, which have no graph, and the weights themselves would get no gradient.
    """
    if not _autocasts(device.type):
        return _NOTHING
    dtype = torch.get_autocast_dtype(device.type)
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype, cache_enabled=False)
    return context
