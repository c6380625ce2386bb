"""RandReg: features are drawn towards fresh random references from a fixed prior.

Yamaguchi et al., CVPR 2024 (arXiv 2403.10097): the penalty lambda * E ||g(x) - z||^2, with z drawn anew for
every sample and step.  The prior ``class`` is their RandReg-CP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from pof.regularizers._base import OnFeatures, check_targets
from pof.regularizers._references import ReferenceStream, class_references, squared_distance
from pof.regularizers.statistics import check_moments, class_statistics

Prior = Literal["uniform", "normal", "features", "class"]
MOMENT_DIMENSIONS = {"features": 1, "class": 2}


class RandReg(OnFeatures):
    """strength * mean_n 1/D ||f_n - z_n||^2 with z_n drawn from a fixed prior.

    Args:
        prior: distribution of z_n. ``"uniform"``: U(0, 1); ``"normal"``: N(0, 1); ``"features"``: N(mean,
            std^2), the marginal statistics of the pre-trained features; ``"class"``: N(mean[y_n],
            std[y_n]^2), those of the class.
        mean: (D,) for ``"features"``, (K, D) for ``"class"``; not given otherwise.
        std: like ``mean``, >= 0.
        strength: lambda, the weight of the penalty, >= 0.
        seed: of the references; every process needs the same one.

    Raises:
        ValueError: if the prior is unknown, its statistics are missing or misshapen, or ``strength`` is
            negative.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        prior: Prior = "normal",
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        strength: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(strength)
        if prior not in get_args(Prior):
            raise ValueError(f"prior must be one of {get_args(Prior)}; got {prior!r}")
        self.prior, self.seed = prior, seed
        self.stream = ReferenceStream(seed)
        dimensions = MOMENT_DIMENSIONS.get(prior)
        if dimensions is not None:
            if mean is None or std is None:
                raise ValueError(f"prior {prior!r} needs mean and std; RandReg.from_loader computes them")
            check_moments(mean, std, dimensions)
            self.dimension = mean.shape[-1]
            self.register_buffer("mean", mean.detach().clone())
            self.register_buffer("std", std.detach().clone())
        elif mean is not None or std is not None:
            raise ValueError(
                f"prior {prior!r} has no statistics: leave out mean and std, or choose 'features' or 'class'"
            )

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        num_classes: int,
        prior: Prior = "class",
        strength: float = 1.0,
        seed: int = 0,
    ) -> Self:
        """Take the statistics of the prior from one pass over the training set.

        Args:
            model: a ``SplitModel``; see :func:`~pof.regularizers.class_statistics`.
            loader: the whole training set, in every process.
            num_classes: K.
            prior: ``"features"`` or ``"class"``.
            strength: lambda, >= 0.
            seed: of the references.

        Returns:
            The regulariser, on the device of the model.

        Raises:
            ValueError: if the prior has no statistics, or they cannot be computed.
        """
        if prior not in MOMENT_DIMENSIONS:
            raise ValueError(
                f"prior {prior!r} needs no data: use RandReg({prior!r}); from_loader is for 'features' and 'class'"
            )
        found = class_statistics(model, loader, num_classes=num_classes, by_class=prior == "class")
        mean, std = (found.mean, found.std) if prior == "class" else (found.marginal_mean, found.marginal_std)
        return cls(prior, mean=mean, std=std, strength=strength, seed=seed)

    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty of features (N, D) with new references; targets (N,) are read by the prior ``"class"`` only."""
        by_class = check_targets(targets, features, self.mean.shape[0]) if self.prior == "class" else None
        references: Tensor = self.stream(features.detach(), torch.rand if self.prior == "uniform" else torch.randn)
        if by_class is not None:
            references = class_references(self.mean, self.std, by_class, references)
        elif self.prior == "features":
            references = torch.addcmul(self.mean.to(references.dtype), self.std.to(references.dtype), references)
        return self.strength * squared_distance(features, references, counted)
