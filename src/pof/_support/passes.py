"""Tracks the parameters whose optimizer is in its second pass, at the perturbed point.

What a method remembers of a forward (features, keys) is that of the first pass, as running statistics are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_passing: set[int] = set()


@contextmanager
def second_pass(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run the body as the second pass of an optimizer that has these parameters, moved or not."""
    own = {id(parameter) for parameter in parameters} - _passing
    _passing.update(own)
    try:
        yield
    finally:
        _passing.difference_update(own)


def in_second_pass(module: nn.Module) -> bool:
    """Tell whether a parameter of the module is in one."""
    return bool(_passing) and any(id(parameter) in _passing for parameter in module.parameters())
