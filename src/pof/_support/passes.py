"""Which parameters are of an optimizer at its perturbed point, for a second pass over the mini-batches of a step.

What a method remembers of a forward (features, keys) is that of the first pass, as running statistics are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer

_passing: set[int] = set()
_perturbing: WeakSet[Optimizer] = WeakSet()


def register(optimizer: Optimizer) -> None:
    """Note an optimizer that perturbs its parameters."""
    _perturbing.add(optimizer)


def is_perturbed(module: nn.Module) -> bool:
    """Tell whether such an optimizer has a parameter of the module."""
    own = {id(parameter) for parameter in module.parameters()}
    groups = [group for optimizer in _perturbing for group in optimizer.param_groups]
    return any(id(parameter) in own for group in groups for parameter in group["params"])


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
