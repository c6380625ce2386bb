"""Euclidean norms that neither vanish nor overflow: in float32 the square of 1e-25 is 0, and that of 1e25 infinite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pof._support.distributed import is_sharded, whole
from pof._support.precision import wide_dtype

# Norms that float32 computes to its precision, partial sums included.
_SAFE = (1e-15, 1e15)


def norm_of(values: Tensor) -> Tensor:
    """The norm of one tensor of any shape, summed in float64: a float32 sum of millions is 1e-4 off."""
    if values.device.type == "mps":
        # Without float64.
        largest = values.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
        return (values / largest).square().sum().sqrt() * largest
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all tensors taken together, whatever their shapes, types and devices.

    One tensor at a time is asked for, so they may be computed on the way; of those that FSDP2 has sharded, all parts
    count.  The result, float32 or wider as the tensors are, is on the device of the first one.
    """
    norms, dtype = [], torch.float32
    for each in tensors:
        tensor = torch.view_as_real(each.resolve_conj()) if each.is_complex() else each
        norms.append(_norm(tensor))
        dtype = torch.promote_types(dtype, wide_dtype(tensor))
    if not norms:
        return torch.zeros(())
    sharded = [norm for norm in norms if is_sharded(norm)]
    here = [norm.to(norms[0].device) for norm in norms if not is_sharded(norm)]
    # One exchange for all of them.
    parts = [whole(torch.linalg.vector_norm(torch.stack(sharded)))] if sharded else []
    total: Tensor = torch.linalg.vector_norm(torch.stack([*parts, *here]))
    return total.to(dtype)


def _norm(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu" and not is_sharded(tensor):
        # Float64 takes a processor 20 times longer, and reading a value takes it no time.
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide_dtype(tensor))
        if _SAFE[0] < norm.item() < _SAFE[1]:
            return norm
    return norm_of(tensor)
