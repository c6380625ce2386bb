"""What a loss is, and the cross-entropy with its options, said once for methods, perturbation and calibration."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import class_targets, samples_of, tensors_of
from pof._support.precision import widest_dtype, without_autocast
from pof.head.output import End
from pof.perturbation.targets import IGNORED, Targets, check_targets, encode_targets

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)`` -> scalar: the mean over a mini-batch."""


class Loss(nn.Module, ABC):
    """A mean over the samples of a mini-batch, that knows what guessing costs."""

    end: ClassVar[End | None] = None
    """What may follow the head in the network: the loss takes the head's own outputs then."""

    @abstractmethod
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss, a scalar, of outputs (N, C) and their targets."""

    def weight_of(self, targets: Tensor) -> Tensor:
        """What a mini-batch counts in a mean over several: as the function :func:`weight_of`."""
        return _weight_of(*unwrapped(self), targets)

    @abstractmethod
    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """The loss a share, in [0, 1], of the way from the least that it can be to that of guessing.

        ``like``: (..., C), such as outputs for these or other samples.
        """


def weight_of(loss: LossFunction | None, targets: Tensor) -> Tensor:
    """What a mini-batch counts in a mean over several, scalar of float64: what its own mean loss was divided by.

    Returns:
        Its samples; of class indices under a cross-entropy, the class weights of those that are not to be ignored; of a
        loss of the user's own that has a method ``weight_of(targets)``, what that says.
    """
    return loss.weight_of(targets) if isinstance(loss, Loss) else _weight_of(*unwrapped(loss), targets)


def unwrapped(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The function inside of ``functools.partial`` and of a loss that holds one, and the keywords it is called with."""
    function: Any = loss
    options: dict[str, Any] = {}
    while True:
        if isinstance(function, partial):
            function, options = function.func, function.keywords | options
        elif isinstance(function, Loss) and hasattr(function, "function"):
            function = function.function
        else:
            return function, options


def ignored_class(loss: Any) -> int | None:
    """The class index whose samples a loss leaves out; None of what is no cross-entropy, as far as can be seen."""
    return _ignored(*unwrapped(loss))


def _ignored(function: Any, options: Mapping[str, Any]) -> int | None:
    if isinstance(function, CrossEntropy):
        return IGNORED
    if isinstance(function, nn.CrossEntropyLoss | nn.NLLLoss):
        return function.ignore_index
    entropy = function is F.cross_entropy or function is F.nll_loss
    return int(options.get("ignore_index", IGNORED)) if entropy else None


def with_ignored(loss: Any, targets: Any) -> Any:
    """Class indices (N,) with -100, which regularisers know, where the loss leaves samples out by another."""
    ignored = ignored_class(loss)
    if ignored in {None, IGNORED} or not isinstance(targets, Tensor) or targets.is_floating_point():
        return targets
    return torch.where(targets == ignored, IGNORED, targets.long())  # 255 may be a byte


def _weight_of(loss: Any, options: Mapping[str, Any], targets: Tensor) -> Tensor:
    device = tensors_of(targets)[0].device
    own = getattr(loss, "weight_of", None)
    if callable(own) and getattr(type(loss), "weight_of", None) is not Loss.weight_of:
        return torch.as_tensor(own(targets), dtype=widest_dtype(device), device=device)
    ignored = _ignored(loss, options)
    if ignored is None or targets.is_floating_point():
        samples = samples_of(targets)
        return torch.full((), samples, dtype=widest_dtype(device), device=device)
    weights = getattr(loss, "weight", None) if isinstance(loss, nn.Module) else options.get("weight")
    return _counted(targets, weights, ignored)


def _counted(targets: Tensor, weights: Tensor | None, ignored: int) -> Tensor:
    """What class indices (N,) count: 1 each or their class weights (C,), scalar of float64; the ignored ones 0."""
    counted: Tensor = targets != ignored
    if weights is None:
        return counted.sum(dtype=widest_dtype(counted.device))
    rows = weights.to(targets.device, widest_dtype(targets.device))[torch.where(counted, targets, 0).long()]
    weight: Tensor = (rows * counted).sum()
    return weight


class CrossEntropy(Loss):
    """The mean cross-entropy of a mini-batch, outside of autocast.

    A module, so that the class weights go where the method goes; they are no part of the state.

    Args:
        label_smoothing: mass moved to the uniform distribution, in [0, 1).
        class_weights: (C,) non-negative, not all 0, or None.

    Raises:
        ValueError: if an option is out of range.
    """

    end = "softmax"

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | Sequence[float] | None = None) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _checked(class_weights), persistent=False)

    @property
    def weight(self) -> Tensor | None:
        """The class weights, under their name in torch."""
        return self.class_weights

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (N, C).
            targets: (N,) class indices or (N, C) probabilities.

        Returns:
            Scalar.

        Raises:
            ValueError: if targets or class weights do not fit the logits, or are no probabilities.
        """
        _refuse_one(logits)
        targets = class_targets(targets, logits.shape[1])
        soft = targets.is_floating_point()
        if soft:
            _check_probabilities(targets)
        if soft or logits.device.type == "cpu":
            loss = self._mean(logits, targets)
            if soft or not math.isnan(loss.item()):
                return loss
        # Where no target counts, all are ignored: 0, with gradients of 0, instead of 0 / 0.
        counts = weight_of(self, targets) > 0
        loss = self._mean(logits, torch.where(counts, targets, IGNORED))
        return torch.where(counts, loss, torch.zeros_like(loss))

    def _mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        weight = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        try:
            with without_autocast(logits.device):
                return F.cross_entropy(logits, targets, weight=weight, label_smoothing=self.label_smoothing)
        except (IndexError, RuntimeError, ValueError):
            # Asked for afterwards, that costs other steps nothing.
            check_targets(targets, len(logits), logits.shape[1], self.class_weights)
            raise

    def weight_of(self, targets: Tensor) -> Tensor:
        """Samples, or the class weights of those that are not to be ignored, scalar of float64."""
        targets = class_targets(targets, targets.shape[-1] if isinstance(targets, Tensor) and targets.ndim else 0)
        if targets.is_floating_point():
            return targets.new_full((), len(targets), dtype=widest_dtype(targets.device))
        return _counted(targets, self.class_weights, IGNORED)

    def encode(self, targets: Tensor, like: Tensor, *, check: bool = True) -> Targets:
        """Write targets, (N,) or (N, C), as what this loss makes of them; ``like``: logits (N, C)."""
        _refuse_one(like)
        return encode_targets(targets, like, self.label_smoothing, class_weights=self.class_weights, check=check)

    def level(self, share: float, targets: Tensor, like: Tensor) -> Tensor | float:
        """The loss a share of the way from the least that it can be to that of guessing among C classes.

        The least is the entropy of soft or smoothed targets, and 0 of class indices; guessing has the loss log C.

        Args:
            share: in [0, 1].
            targets: (N,) class indices or (N, C) probabilities.
            like: (..., C), such as logits of these or other samples.

        Returns:
            The loss in nats, a scalar; a tensor where it depends on the targets.
        """
        guess = math.log(like.shape[-1])
        targets = class_targets(targets, like.shape[-1])
        if not len(targets) or not (self.label_smoothing or targets.is_floating_point()):
            return share * guess
        like = like.new_empty(len(targets), like.shape[-1])
        encoded = self.encode(targets, like)
        least = torch.special.entr(encoded.distribution(like)).sum(dim=1)
        return encoded.mean(least + share * (guess - least))


def _checked(weights: Tensor | Sequence[float] | None) -> Tensor | None:
    """Class weights (C,) in floating point, refused where they cannot be."""
    if weights is None:
        return None
    found = torch.as_tensor(weights)
    found = found if found.is_floating_point() else found.float()
    if found.ndim != 1:
        raise ValueError(f"class_weights must be (C,), one per class; got shape {tuple(found.shape)}")
    if not bool(found.isfinite().all() and (found >= 0).all() and (found > 0).any()):
        raise ValueError(f"class_weights must not be negative, infinite, NaN or all 0; got {found.tolist()}")
    return found


def _refuse_one(logits: Tensor) -> None:
    """Refuse a single output, by which nothing would be trained."""
    if logits.shape[1] == 1:
        raise ValueError(
            "the network has one output, of which the cross-entropy is always 0: give loss='bce' for two classes, or"
            " 'mse' for numbers"
        )


def _check_probabilities(targets: Tensor) -> None:
    """Refuse floating-point targets that are no distributions: several labels per sample would pass unnoticed."""
    if targets.ndim != 2:
        return
    # Half precision rounds a sum of many classes by this much.
    apart = (targets.detach().float().sum(dim=1) - 1).abs().amax()
    if not bool(apart < 0.02):
        raise ValueError(
            f"rows of floating-point targets must sum to 1, as probabilities do; got a row that is {apart:.2g} off."
            " For several labels per sample give loss='bce', for other targets another loss"
        )
