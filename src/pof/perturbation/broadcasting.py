"""Losses that broadcast: outputs (N, 1) minus targets (N,) is (N, N), its mean is another loss, and torch says nothing.

A loss is watched while it computes, and not asked for values, which would call it again and say less.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pof._support.batches import tensors_of
from pof.head.listen import uncompiled

Function = Callable[..., Any]
_LIKE = {Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as, Tensor.expand_as}
"""Of what else these are given they take shape or type only."""
_BLANK = {
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like),
}
"""What these return is made of nothing that they are given."""
_JOINS = {torch.einsum, torch.column_stack}
"""These take tensors of different axes and broadcast nothing, whatever shape results; einsum names its axes."""
_SUMMARIES = {
    *(torch.quantile, Tensor.quantile, torch.unique, Tensor.unique),
    *(torch.bincount, Tensor.bincount, torch.histc, Tensor.histc),
}
"""What these return has no rows for samples, even where it has as many."""
_DISTANCES = {torch.dist, Tensor.dist, F.pairwise_distance, F.cosine_similarity}
_FEW = 4
"""Samples that a loss of torch is tried on."""


def without_broadcasting(function: Callable[[Tensor, Any], Tensor], outputs: Tensor, targets: Any) -> Tensor:
    """Compute ``function(outputs, targets)``.

    Nothing is seen of what TorchScript, custom autograd functions and transforms (vmap, grad) do inside, nor of targets
    that NumPy has had in hand.

    Args:
        function: a loss.
        outputs: (N, C) of the head, (N,), or of more axes.  They are watched where C is 1, and for targets of numbers
            in another shape or of more axes.
        targets: whatever the loss takes.

    Returns:
        What the function returns.

    Raises:
        ValueError: if what is made of targets is broadcast against what is made of outputs so that samples meet others:
            (N,) against (N, 1), or (N, C, 1) against (N, C).
    """
    several = tensors_of(targets)
    most = min(outputs.ndim, 2)  # axes that class indices, or labels, may have
    others = any(each.ndim > most or (each.is_floating_point() and each.shape != outputs.shape) for each in several)
    if not outputs.ndim or len(outputs) < 2 or not (outputs.shape[1:2] == (1,) or others):
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
        # By identity, and not kept: a loss in chunks needs no more memory than it would alone.
        self._outputs, self._targets = _noted([outputs]), _noted(tensors_of(targets))

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and note what its results are made of."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _BLANK:
            return result
        if func is Tensor.new_tensor:  # a copy of what it is given, and nothing of the tensor whose method it is
            given = tensors_of((args[1:], kwargs))
        else:
            given = tensors_of(args[:1] if func in _LIKE else (args, kwargs))
        outputs, targets = ([t for t in given if t in known] for known in (self._outputs, self._targets))
        for output in outputs:
            for target in targets:
                if self._differ(output, target) and _crosses(func, args, kwargs, result, output, target):
                    raise ValueError(_message(tuple(output.shape), tuple(target.shape), target.is_floating_point()))
        made = args[:1] if result is None else result  # what was written to, such as x[:] = y
        for found, known in ((outputs, self._outputs), (targets, self._targets)):
            # A number has no samples, and neither has what is made of numbers, such as bins.
            if func not in _SUMMARIES and any(tensor.ndim for tensor in found):
                known.update(_noted(tensors_of(made)))
        return result

    def _differ(self, output: Tensor, target: Tensor) -> bool:
        """Whether they are made of different things: residuals, made of both, may be compared with each other."""
        return output not in self._targets or target not in self._outputs


def _noted(tensors: Iterable[Tensor]) -> WeakTensorKeyDictionary:
    found = WeakTensorKeyDictionary()
    for tensor in tensors:
        found[tensor] = None
    return found


def _crosses(
    func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, output: Tensor, target: Tensor
) -> bool:
    """Whether a result is, or is computed from, one tensor broadcast against the other, each sample against all."""
    shape = _crossed(output, target)
    if shape is None or func in _JOINS:
        return False
    if any(tensor.shape == shape for tensor in tensors_of(result)):
        return True
    # A loss may have taken the mean of that inside.  No other function is called again: it may write, or index.
    if getattr(func, "__module__", "") != F.__name__ and func not in _DISTANCES:
        return False
    rows, count = len(output), _FEW
    if (square := _crossed(output[:count], target[:count])) is None:  # a second axis is as long as there are samples
        count, square = rows, shape

    def called(*, whole: bool) -> Any:
        def few(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            # On the CPU, where an index out of range is an error like others.
            cut = (value[:count] if value.shape[:1] == (rows,) else value).detach().cpu()
            return cut.expand(square) if whole and (value is output or value is target) else cut

        return func(*map(few, args), **{name: few(value) for name, value in kwargs.items()})

    # A function that takes nothing so large does not make it either.
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        one, other = called(whole=False), called(whole=True)
        return one.shape == other.shape and torch.allclose(one, other, equal_nan=True)
    return False


def _crossed(output: Tensor, target: Tensor) -> torch.Size | None:
    """The shape of both broadcast, where the samples of one meet those of the other; else None."""
    if output.ndim == target.ndim or min(output.ndim, target.ndim) < 1 or not len(output) == len(target) > 1:
        return None
    with suppress(RuntimeError):
        shape = torch.broadcast_shapes(output.shape, target.shape)  # type: ignore[no-untyped-call]
        return shape if shape.numel() > max(output.numel(), target.numel()) else None
    return None


_MEANT = "a loss that means each sample against all gives both as many axes, as targets[None] does"


def _message(outputs: tuple[int, ...], targets: tuple[int, ...], floating: bool) -> str:
    said = f"the loss broadcasts targets {targets} against outputs {outputs}"
    if (len(outputs), len(targets)) != (2, 1):
        return f"{said}: give targets {outputs}, or let the loss bring both to one shape; {_MEANT}"
    column = "" if floating else " in floating point (integers are class indices, (N,))"
    return (
        f"{said} of the head (a squeeze behind it has no part): give targets (N, 1){column}, or let the loss take"
        f" outputs[:, 0]; 'bce' and 'mse' do so by themselves; {_MEANT}"
    )
