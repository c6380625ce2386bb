"""Co-Tuning (You et al., NeurIPS 2020): the source head is trained too, on what the target classes are to it.

p(y_s | y_t) is learned once, from the source head's probabilities on the target training set (the paper's
direct approach); in training it supervises the source head beside the target head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.checks import finite
from pof._support.modules import copied, evaluating
from pof._support.precision import wide_dtype
from pof._support.random import preserved
from pof.regularizers._base import OnFeatures, check_targets, kept, mean_over
from pof.regularizers.statistics import features_and_targets


@torch.no_grad()
def category_relationship(
    model: nn.Module, source_head: nn.Module, loader: Iterable[Any], *, num_classes: int, temperature: float = 1.0
) -> Tensor:
    """p(y_s | y_t) (K, S): the source head's mean probabilities over the samples of each target class.

    Args:
        model: has ``features(inputs) -> (N, D)``, pre-trained: ``pof.split(model)``; in eval mode meanwhile.
        source_head: gives logits (N, S) of the S source classes, from features in their own dtype.
        loader: the target training set as it is evaluated, in every process; class indices, -100 to be left out.
        num_classes: K.
        temperature: that the source head's logits are divided by, > 0; calibrated on source data, which are not here.

    Returns:
        (K, S) on the model's device, rows of sum 1; a class without a sample has the mean of all samples.

    Raises:
        ValueError: if the loader is empty, a feature is not finite, or a label or the temperature is out of range.
    """
    finite("temperature", temperature, above=0)
    sums, count = torch.zeros(()), torch.zeros(num_classes, dtype=torch.float64)
    source_head = _wide_copy(source_head)
    with evaluating(model), preserved(loader):
        for features, targets, kind in features_and_targets(model, loader, num_classes):
            logits = source_head(features.to(kind)).cpu().double()
            if logits.shape[1] < 2:
                raise ValueError(
                    "the source head gives one logit, as for a binary loss, and Co-Tuning needs one for each source"
                    " class (its penalty would be 0): take another method"
                )
            if not sums.ndim:
                sums = logits.new_zeros(num_classes, logits.shape[1])
            sums.index_add_(0, targets, torch.softmax(logits / temperature, dim=1))
            count += torch.bincount(targets, minlength=num_classes)
    if not sums.ndim:
        raise ValueError("no batch in the loader: the relationship of the classes needs at least one sample")
    means = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], sums.sum(dim=0) / count.sum())
    return means.to(kind)


def _wide_copy(head: nn.Module) -> nn.Module:
    """A copy in float32 at least, in eval mode, for features (N, D) in float32 at least."""
    return copied(head).to(wide_dtype(next(head.parameters()))).eval()


class CoTuning(OnFeatures):
    """strength * mean_n -sum_s p(y_s = s | y_n) log softmax(G_s(f_n))_s, G_s a copy of the source head.

    The copy is trained with the network: it is in ``parameters()``, which the optimizer must get too
    (``pof.Regularized(...).trainable_parameters()`` has them).

    Args:
        source_head: the head that the network was pre-trained with, logits (N, S) from features (N, D); copied.
        relationship: p(y_s | y_t), (K, S), rows of sum 1, of :func:`category_relationship`.
        strength: lambda, the weight of the penalty, >= 0; 2.3 in the paper.  At 0 the head is not copied.

    Raises:
        ValueError: if ``strength`` < 0, or the relationship is no such matrix.
    """

    relationship: Tensor

    def __init__(self, source_head: nn.Module, relationship: Tensor, *, strength: float = 2.3) -> None:
        super().__init__(strength)
        sums = relationship.sum(dim=1) if relationship.ndim == 2 else torch.zeros(1)
        if not bool((relationship >= 0).all()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise ValueError(
                "relationship must be p(y_s | y_t), (K, S) with rows >= 0 of sum 1; got"
                f" {tuple(relationship.shape)} with sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
            )
        self.register_buffer("relationship", relationship.detach().clone())
        if self.strength > 0:
            self.source_head = _wide_copy(source_head).requires_grad_(True)

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        source_head: nn.Module,
        loader: Iterable[Any],
        *,
        num_classes: int,
        strength: float = 2.3,
        temperature: float = 1.0,
    ) -> Self:
        """Learn the relationship from one pass of the pre-trained model over the training set.

        Args:
            model: as :func:`category_relationship`.
            source_head: the head that the network was pre-trained with.
            loader: the whole training set, in every process.
            num_classes: K.
            strength: lambda, >= 0.
            temperature: of the source head's probabilities, > 0.

        Returns:
            The regulariser, on the device of the model.

        Raises:
            ValueError: if the relationship cannot be computed or a setting is out of range.
        """
        found = category_relationship(model, source_head, loader, num_classes=num_classes, temperature=temperature)
        return cls(source_head, found, strength=strength)

    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty of features (N, D) with graph, for targets (N,)."""
        targets = check_targets(targets, features, self.relationship.shape[0])
        logits = self.source_head(features)
        each = F.cross_entropy(logits, self.relationship[targets].to(logits.dtype), reduction="none")
        return self.strength * mean_over(kept(each, counted), counted)
