"""Losses that broadcast: outputs (N, 1) minus targets (N,) is (N, N), its mean is another loss, and torch says nothing.

A loss is watched while it computes, and not asked for values, which would call it again and say less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pof._support.batches import tensors_of
from pof.head.listen import uncompiled

_LIKE = {Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as}
"""Of what else these are given they take shape or type only."""


def without_broadcasting(function: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> Tensor:
    """Compute ``function(outputs, targets)``.

    Nothing is seen of what TorchScript and custom autograd functions do inside.

    Args:
        function: a loss.
        outputs: of the head; of other shapes than (N, 1) nothing is said.
        targets: whatever the loss takes.

    Returns:
        What the function returns.

    Raises:
        ValueError: if a row made of targets, (N,), is broadcast against a column made of outputs, (N, 1), or a column
            of targets against a row of outputs.
    """
    if outputs.ndim != 2 or outputs.shape[1] != 1 or len(outputs) < 2:
        return function(outputs, targets)
    # A frame that is traced from outside hands over: of a graph there is nothing to see.
    hands_over = torch.compiler.is_compiling()
    watched = torch.compiler.disable(_watched) if hands_over else _watched  # type: ignore[no-untyped-call]
    return watched(function, outputs, targets)


def _watched(function: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> Tensor:
    with uncompiled(), _Makers(outputs, targets):
        return function(outputs, targets)


class _Makers(TorchFunctionMode):
    """A context that knows what is made of outputs, and what of targets."""

    def __init__(self, outputs: Tensor, targets: Any) -> None:
        super().__init__()
        # By identity, and kept: no other tensor gets the identity of one that is gone.
        self._outputs = {id(outputs): outputs}
        self._targets = {id(tensor): tensor for tensor in tensors_of(targets)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and note what its results are made of."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = list(_tensors(args[:1] if func in _LIKE else (args, kwargs)))
        outputs, targets = ([t for t in given if id(t) in known] for known in (self._outputs, self._targets))
        for output in outputs:
            for target in targets:
                if self._meet(output, target) and _is_square(len(output), func, args, kwargs, result):
                    raise ValueError(_message(tuple(output.shape), tuple(target.shape), target.is_floating_point()))
        for found, known in ((outputs, self._outputs), (targets, self._targets)):
            if found:
                known.update({id(tensor): tensor for tensor in _tensors(result)})
        return result

    def _meet(self, output: Tensor, target: Tensor) -> bool:
        """Whether one is a row and one a column; residuals, made of both, may be compared with each other."""
        rows = output.shape[:1]
        shapes = {tuple(output.shape), tuple(target.shape)}
        return id(target) not in self._outputs and rows > (1,) and shapes == {(*rows,), (*rows, 1)}


def _is_square(rows: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a result is (N, N) or computed from that: an index, a class, a product of matrices are no such thing."""
    square = torch.Size((rows, rows))
    written = any(tensor is result for tensor in _tensors((args, kwargs)))
    if not isinstance(result, Tensor) or written:  # what is written to keeps its shape
        return False
    if result.shape == square:
        return True

    def whole(value: Any) -> Any:
        narrow = isinstance(value, Tensor) and value.shape in {(rows,), (rows, 1)}
        return value.expand(square).clone() if narrow else value

    with suppress(Exception):  # a function that takes nothing (N, N) does not make it either
        again = func(*map(whole, args), **{name: whole(value) for name, value in kwargs.items()})
        return again.shape == result.shape and torch.allclose(again, result, equal_nan=True)
    return False


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _message(outputs: tuple[int, ...], targets: tuple[int, ...], floating: bool) -> str:
    said = f"the loss broadcasts targets {targets} against outputs {outputs}"
    if len(outputs) == 1:
        return f"{said}: give targets {outputs}, or let the loss take the head's outputs as they are, ({outputs[0]}, 1)"
    column = "" if floating else " in floating point (integers are class indices, (N,))"
    return (
        f"{said} of the head (a squeeze behind it has no part): give targets (N, 1){column}, or let the loss take"
        " outputs[:, 0]; 'bce' and 'mse' do so by themselves"
    )
