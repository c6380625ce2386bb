"""What every regulariser is, so that one training loop drives them all, and what they share.

``penalty = regularizer(features, targets, inputs)`` is added to the loss of the same forward pass, already
multiplied by its strength; ``regularizer.update(features, targets)`` runs once after the optimizer's step, on
the detached features of that forward pass.  Only AdaRand adapts anything there.

Under several processes, rows of the global batch are ordered by rank; the processes may hold different numbers of
them.  Nothing is communicated in a single process.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs, class_targets
from pof._support.precision import at_least_float32, without_autocast
from pof.perturbation.targets import IGNORED, may_ignore


class Regularizer(nn.Module, ABC):
    """A penalty for the fine-tuning loss, and what it adapts after each step.

    Under several processes a penalty is, like a mean cross-entropy, made to be averaged over the processes
    with the weights N_r / N, their shares of the global batch: then value and gradient are those of one
    process on all of it.

    A network that is cast to half precision leaves what it holds in float32.

    A custom one keeps each option of its constructor under the option's own name: :meth:`options` reads them there.

    Args:
        strength: weight of the penalty, finite and >= 0; fixed at construction.  At 0 the penalty is the
            constant 0 without a graph, and nothing is drawn, copied or adapted.

    Raises:
        ValueError: if ``strength`` is negative or not finite.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength = nonnegative("strength", strength)

    @property
    def strength(self) -> float:
        """Weight that the penalty is already multiplied by."""
        return self._strength

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that this regulariser would not act on; for those that hold one.

        Args:
            model: the one to be trained.

        Raises:
            ValueError: if it was made for another.
        """
        own = self.held_parameters()
        if own and not own & set(model.parameters()):
            raise ValueError(
                f"this {type(self).__name__} was made for another network than the one that is trained: make it anew,"
                " around that one"
            )

    def held_parameters(self) -> set[nn.Parameter]:
        """The trained parameters of a model that it reads beside the features; empty if there are none.

        Returns:
            Parameters of the model that it was made for.
        """
        return set()

    def options(self) -> dict[str, Any]:
        """What it was built with: the constructor's options that are numbers, strings (also several) or None.

        Networks and tensors are not among them: tensors are in ``state_dict``.

        Returns:
            Name -> value, in the order of the constructor; several strings as one, separated by commas.
        """
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        texts = {name: ", ".join(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {name: v for name, v in texts.items() if v is None or isinstance(v, bool | int | float | str)}

    @abstractmethod
    def forward(self, features: Tensor, targets: Tensor, inputs: Inputs | None = None) -> Tensor:
        """Compute the penalty; each subclass makes optional what it does not read.

        Args:
            features: (N, D), the tensor that enters the head, with its graph.
            targets: (N,) class indices.
            inputs: the inputs (N, ...) that the features were computed from.

        Returns:
            The penalty, a scalar.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What is adapted would hardly move in half precision, and counts end at 256: that is for the network alone.
        def widely(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return tensor.to(found.device, torch.float32) if found.itemsize < 4 <= tensor.itemsize else found

        applied: Self = super()._apply(widely, recurse)  # type: ignore[no-untyped-call]
        return applied

    def open(self) -> None:
        """Put the hooks that it needs on the model again, after :meth:`close`; nothing for most."""

    def close(self) -> None:
        """Take its hooks off the model, after training; nothing for most."""

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Adapt the regulariser's own state, once after the optimizer's step; does nothing unless overridden.

        Args:
            features: (N, D) of the forward pass that the step was made from; detached here.  With gradient
                accumulation those of all its passes, concatenated.
            targets: (N,) class indices.
        """

    def extra_repr(self) -> str:
        """Name the options when the module is printed.

        Returns:
            ``strength=...`` and the others.
        """
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


class OnFeatures(Regularizer):
    """A penalty of the features alone, or of features and targets."""

    dimension: int | None = None
    """D that the features must have; None for any."""

    def forward(self, features: Tensor, targets: Tensor | None = None, inputs: Inputs | None = None) -> Tensor:
        """Compute the penalty, outside of autocast; AdaRand and RandReg draw new references for it.

        Args:
            features: (N, D) with graph.
            targets: (N,) class indices; samples with -100 have no part.  Their class is read by AdaRand, and RandReg
                with the prior ``"class"``.
            inputs: not read.

        Returns:
            A scalar, float32 (float64 for float64 features).

        Raises:
            ValueError: if features or targets do not fit the regulariser.
        """
        if self.strength == 0:
            return zero(features)
        check_features(features, self.dimension)
        with without_autocast(features.device):
            return self.penalty(at_least_float32(features), targets, counted_of(targets))

    @abstractmethod
    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty, strength included, of features (N, D) in float32 or float64 and targets (N,) not checked yet.

        ``counted``: as :func:`counted_of` says.
        """


def nonnegative(name: str, value: float) -> float:
    """Check a weight.

    Returns:
        ``value`` as a float.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0; got {value!r} (0 switches the penalty off)")
    return float(value)


def zero(features: Tensor | None) -> Tensor:
    """Penalty of strength 0: a float32 constant without a graph, so that it adds no work to the backward pass."""
    return torch.zeros((), device=None if features is None else features.device)


def counted_of(targets: Any) -> Tensor | None:
    """Which samples have a part, (N,) bool: all but those with the label -100; None where all are known to."""
    if not isinstance(targets, Tensor):
        return None
    labels: Tensor = class_targets(targets)
    if labels.ndim != 1 or labels.is_floating_point() or not may_ignore(labels):
        return None
    return labels != IGNORED


def kept(values: Tensor, counted: Tensor | None) -> Tensor:
    """Values (N, ...), 0 in the rows that have no part."""
    return values if counted is None else values.masked_fill(~counted.view(-1, *[1] * (values.ndim - 1)), 0.0)


def mean_over(values: Tensor, counted: Tensor | None) -> Tensor:
    """The mean of values (N, ...) over the samples that have a part; those of the others are 0."""
    return values.mean() if counted is None else values.sum() / (counted.sum().clamp_min(1) * values[0].numel())


def check_features(features: Tensor, dimension: int | None = None) -> None:
    """Check that features are (N, D) with N >= 1.

    Raises:
        ValueError: if not, or if D differs from ``dimension``.
    """
    if features.ndim != 2 or features.shape[0] == 0:
        raise ValueError(
            f"features must be (N, D) with N >= 1, the tensor that enters the head; got {tuple(features.shape)}"
        )
    if dimension is not None and features.shape[1] != dimension:
        raise ValueError(
            f"features have dimension {features.shape[1]}, the regulariser's statistics {dimension}: "
            "compute the statistics with the model that is fine-tuned"
        )


def check_targets(targets: Tensor | None, features: Tensor, num_classes: int) -> Tensor:
    """Check that targets are one class index per row of features.

    Values are looked at on the CPU only: on an accelerator that would be a host synchronisation in every step, and
    the cross-entropy beside it refuses them there.

    Returns:
        The targets, as int64; 0 for those to be ignored.

    Raises:
        ValueError: if there are none, the shape or dtype is wrong, or an index is outside [0, ``num_classes``).
    """
    if targets is None:
        raise ValueError("a reference for each class needs the targets: call regularizer(features, targets)")
    if isinstance(targets, Tensor):
        targets = class_targets(targets, num_classes)
    if not isinstance(targets, Tensor) or targets.shape != features.shape[:1] or targets.is_floating_point():
        tensor = isinstance(targets, Tensor)
        got = f"{targets.dtype} of shape {tuple(targets.shape)}" if tensor else "several targets per sample"
        raise ValueError(
            f"targets must be class indices of shape ({features.shape[0]},), one per row of features; got {got} (mixed,"
            " soft and other targets have no single class: FNP, RandReg with another prior, L2SP, BSS and DELTA need"
            " none)"
        )
    targets = torch.where(targets == IGNORED, 0, targets) if may_ignore(targets) else targets
    if targets.device.type == "cpu":
        check_range(targets, num_classes)
    return targets


def check_range(targets: Tensor, num_classes: int) -> None:
    """Check that every class index (N,) lies in [0, ``num_classes``).

    Raises:
        ValueError: if one does not.
    """
    low, high = (int(v) for v in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"label {wrong} is out of range for {num_classes} classes (0 to {num_classes - 1})")


def own_rows(rows: Tensor) -> tuple[slice, int]:
    """Place the rows (N_r, ...) of this process in the global batch: 8 N bytes, and a host synchronisation.

    Returns:
        The slice that they are, and the global batch's size N.
    """
    count = rows.shape[0]
    if not distributed.active():
        return slice(0, count), count
    rank = distributed.rank()
    (owners,) = distributed.gather_rows(torch.full((count,), rank, device=rows.device))
    start = int((owners < rank).sum())
    return slice(start, start + count), owners.shape[0]


def gather_with_graph(rows: Tensor) -> Tensor:
    """Rows (N, D) of all processes: this one's own (N_r, D) with their graph, those of the others as constants."""
    if not distributed.active():
        return rows
    own, _ = own_rows(rows)
    (everywhere,) = distributed.gather_rows(rows.detach())
    return torch.cat([everywhere[: own.start], rows, everywhere[own.stop :]])
