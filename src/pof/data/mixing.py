"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), torchvision's.

Labels become probabilities.  With both, each mini-batch is mixed by one of them, drawn with equal chances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pof._support.batches import unpack
from pof._support.checks import finite
from pof._support.random import isolated
from pof.data.checks import DataError


@dataclass(frozen=True)
class Mixing:
    """What mixes the samples of a mini-batch.

    Args:
        num_classes: number of classes C.
        mixup: alpha of the Beta distribution that shares are drawn from, > 0; None: no mixup.
        cutmix: the same of CutMix.
    """

    num_classes: int
    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if (alpha := getattr(self, name)) is not None:
                finite(name, alpha, above=0)

    def __call__(self, batch: Any, seed: int) -> tuple[Tensor, Tensor]:
        """Mix images (N, K, H, W) with labels (N,), which become probabilities (N, C); ``seed`` gives the draws."""
        images, labels = unpack(batch)
        if not isinstance(images, Tensor) or images.ndim != 4 or labels.ndim != 1 or labels.is_floating_point():
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise DataError(
                f"mixup and cutmix are for images (N, K, H, W) with class indices (N,); got {shape} with"
                f" {labels.dtype} {tuple(labels.shape)}: leave them out"
            )
        with isolated(seed, torch_only=True):  # torchvision draws from the global generator
            mixed, probabilities = _transform(self)(images, labels)
        return mixed, probabilities


@cache
def _transform(mixing: Mixing) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise DataError("mixup and cutmix are torchvision's: pip install torchvision") from error
    kinds: list[Any] = []
    if mixing.mixup is not None:
        kinds.append(v2.MixUp(alpha=mixing.mixup, num_classes=mixing.num_classes))
    if mixing.cutmix is not None:
        kinds.append(v2.CutMix(alpha=mixing.cutmix, num_classes=mixing.num_classes))
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights that make every class count the same: N / (C n_c), of classes without a sample 0.

    Args:
        labels: (N,) class indices.
        num_classes: number of classes C.

    Returns:
        (C,) float32; their mean over the samples is 1.

    Raises:
        DataError: if the labels are floating-point targets of another task.
    """
    if labels.is_floating_point():
        raise DataError(
            "class_weights and sampler balanced count the one class of each sample, and the targets are floating-point:"
            " leave balanced out"
        )
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), 0.0)
