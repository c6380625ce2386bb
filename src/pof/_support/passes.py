"""Which parameters stand at a perturbed point, for a second pass over the mini-batches of a step.

What a method remembers of a forward (features, keys) is that of the first pass, as running statistics are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_moved: set[int] = set()


@contextmanager
def second_pass(parameters: Iterable[Tensor]) -> Iterator[None]:
    """These parameters are moved for the body, behind a pass at their own values."""
    own = {id(parameter) for parameter in parameters} - _moved
    _moved.update(own)
    try:
        yield
    finally:
        _moved.difference_update(own)


def in_second_pass(module: nn.Module) -> bool:
    """Tell whether a parameter of the module is moved."""
    return bool(_moved) and any(id(parameter) in _moved for parameter in module.parameters())
