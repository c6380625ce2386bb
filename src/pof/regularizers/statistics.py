"""Means and deviations of pre-trained features, by class and over all samples, in one pass over a loader.

They start AdaRand and are the priors of RandReg (Yamaguchi et al., CVPR 2024, arXiv 2403.10097, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from pof._support.batches import Inputs, class_targets, for_training, unpack
from pof._support.checks import gives_batches
from pof._support.modules import device_of, evaluating
from pof._support.precision import wide_dtype
from pof._support.random import preserved
from pof.perturbation.targets import IGNORED
from pof.regularizers._base import check_features, check_range, check_targets, counted_of


@dataclass(frozen=True)
class ClassStatistics:
    """Feature statistics of a training set with K classes and feature dimension D.

    Deviations are unbiased (n - 1).  A class with no sample has the marginal mean and deviation; a class with
    one sample has that sample as its mean and the marginal deviation.
    """

    mean: Tensor
    """(K, D), by class."""
    std: Tensor
    """(K, D), by class."""
    count: Tensor
    """(K,) int64, samples by class."""
    marginal_mean: Tensor
    """(D,), over all samples."""
    marginal_std: Tensor
    """(D,), over all samples."""


@torch.no_grad()
def class_statistics(
    model: nn.Module, loader: Iterable[Any], *, num_classes: int, by_class: bool = True
) -> ClassStatistics:
    """Compute the statistics of ``model.features`` over ``loader``, in eval mode.

    Sums are kept in float64 on the CPU, relative to the first batch's mean, so that a large common offset
    costs no digits.  Samples are weighted equally, whatever the batch sizes.  The global generators and
    those of a DataLoader are afterwards where they were.  Nothing is communicated: under several processes each
    reads the whole set.

    Args:
        model: has ``features(inputs) -> (N, D)``: ``pof.split(model)``.  Its modes are restored, errors or
            not.
        loader: batches as in :func:`pof._support.batches.unpack`, with class indices as targets; those of -100 are
            left out.
        num_classes: K.
        by_class: whether the statistics of classes are wanted; if not, floating-point targets of other tasks count as
            one class.

    Returns:
        The statistics, on the model's device, in the features' dtype (float32 at least).

    Raises:
        ValueError: if the loader is empty, the model has no ``features``, features are not (N, D) or not
            finite, or a label is out of range.
    """
    with evaluating(model), preserved(loader):
        batches = features_and_targets(model, loader, num_classes, by_class=by_class)
        first = next(batches, None)
        if first is None:
            raise ValueError("no batch in the loader: feature statistics need at least one sample")
        shift = first[0].mean(dim=0)
        sums = torch.zeros(2, num_classes, shift.shape[0], dtype=torch.float64)
        count = torch.zeros(num_classes, dtype=torch.int64)
        for features, targets, _ in chain([first], batches):
            check_features(features, shift.shape[0])
            centred = features - shift
            sums[0].index_add_(0, targets, centred)
            sums[1].index_add_(0, targets, centred.square())
            count += torch.bincount(targets, minlength=num_classes)
    return _from_sums(sums, count, shift, first[2])


def moments(total: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation (..., D) from sums and sums of squares (..., D) of ``count`` (...) samples.

    Where there are fewer samples than the formula needs, they are finite but meaningless.

    Returns:
        mean and std.
    """
    n = count.unsqueeze(-1).to(total.dtype)
    mean = total / n.clamp(min=1)
    variance = (squares - n * mean.square()) / (n - 1).clamp(min=1)
    return mean, variance.clamp(min=0).sqrt()


def check_moments(mean: Tensor, std: Tensor, dimensions: int) -> None:
    """Check the statistics of a prior: (D,) or (K, D), of one shape, finite, no negative deviation.

    Raises:
        ValueError: if they are not.
    """
    shape = ("(D,)", "(K, D)")[dimensions - 1]
    if mean.ndim != dimensions or mean.shape != std.shape:
        raise ValueError(f"mean and std must both be {shape}; got {tuple(mean.shape)} and {tuple(std.shape)}")
    if not (mean.is_floating_point() and std.is_floating_point()):
        raise ValueError(f"mean and std must be floating point; got {mean.dtype} and {std.dtype}")
    if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
        raise ValueError("mean and std must be finite and std >= 0: check the features they were computed from")


def _from_sums(sums: Tensor, count: Tensor, shift: Tensor, like: Tensor) -> ClassStatistics:
    mean, std = moments(sums[0], sums[1], count)
    marginal_mean, marginal_std = moments(sums[0].sum(dim=0), sums[1].sum(dim=0), count.sum())
    mean = torch.where((count == 0)[:, None], marginal_mean, mean)
    std = torch.where((count < 2)[:, None], marginal_std, std)
    return ClassStatistics(
        mean=(mean + shift).to(like),
        std=std.to(like),
        count=count.to(like.device),
        marginal_mean=(marginal_mean + shift).to(like),
        marginal_std=marginal_std.to(like),
    )


def features_and_targets(
    model: nn.Module, loader: Iterable[Any], num_classes: int, *, by_class: bool = True
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Read features and targets off a loader, without the samples to be ignored.

    Yields:
        Features (N, D) float64 and targets (N,), both on the CPU, and an empty tensor of the result's kind: on the
        model's device, in the features' dtype, float32 at least.

    Raises:
        ValueError: as :func:`class_statistics`.
    """
    extract = cast(Callable[[Inputs], Tensor] | None, getattr(model, "features", None))
    if not callable(extract):
        raise ValueError(f"{type(model).__name__} has no features(inputs): pass pof.split(model)")
    gives_batches("loader", loader)
    device = device_of(model)
    for batch in loader:
        inputs, targets = unpack(batch)
        features = extract(for_training(inputs, device))
        check_features(features)
        classes = by_class or _are_classes(targets, num_classes)
        targets = class_targets(targets, num_classes) if classes and isinstance(targets, Tensor) else targets
        counted = counted_of(targets) if classes else None
        if classes:
            check_targets(targets, features, num_classes)
        else:  # of another task
            targets = torch.zeros(len(features), dtype=torch.int64)
        if counted is not None:
            features, targets = features[counted.to(device)], targets[counted.to(targets.device)]
        if not len(targets):
            continue
        if not features.isfinite().all():
            raise ValueError("a feature is not finite: check the images for NaN and the weights of the model")
        kind = features.new_empty(0, dtype=wide_dtype(features))
        targets = targets.cpu().long()
        check_range(targets, num_classes)
        yield features.cpu().double(), targets, kind


def _are_classes(targets: Any, num_classes: int) -> bool:
    """Whether targets (N,) are indices of classes, or to be ignored."""
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return False
    return bool(((targets >= 0) & (targets < num_classes) | (targets == IGNORED)).all())
