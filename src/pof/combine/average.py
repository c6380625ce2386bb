"""The weighted average of networks, on which interpolation and soups stand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pof._support.modules import copied

REMEDY = "combine networks of one architecture and head that started from the same weights"


@torch.no_grad()
def average(models: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """sum_i weights[i] models[i], a copy of the first network of non-zero weight in everything but its parameters."""
    _check(models)
    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    result = copied(used[0][0])
    others = [dict(model.named_parameters()) for model, _ in used[1:]]
    # Tied parameters come once here, and the copy keeps them tied.
    for name, parameter in result.named_parameters():
        if not parameter.dtype.is_floating_point and not parameter.is_complex():
            continue
        wide = torch.promote_types(parameter.dtype, torch.float32)
        first, *rest = (values.to(parameter.device, wide) for values in (parameter, *(other[name] for other in others)))
        # What is the same in all networks, such as a frozen head, is not rounded.
        if not all(torch.equal(value, first) for value in rest):
            terms = (weight * value for value, (_, weight) in zip((first, *rest), used, strict=True))
            parameter.copy_(sum(terms, torch.zeros_like(first)))
    return result


def _check(models: Sequence[nn.Module]) -> None:
    shapes = [_shapes(model, index) for index, model in enumerate(models)]
    for index, found in enumerate(shapes[1:], start=1):
        for name in [*shapes[0], *found]:
            first, other = shapes[0].get(name, "no such parameter"), found.get(name, "no such parameter")
            if first != other:
                raise ValueError(f"{name!r} differs: network 0 has {first}, network {index} has {other}; {REMEDY}")


def _shapes(model: nn.Module, index: int) -> dict[str, tuple[int, ...]]:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name!r} of network {index} has no shape yet: run one forward first")
        if parameter.is_meta or not bool(parameter.isfinite().all()):
            raise ValueError(f"{name!r} of network {index} holds NaN, infinity or (on meta) no values: leave it out")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
