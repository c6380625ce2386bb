"""BSS, batch spectral shrinkage (Chen et al., NeurIPS 2019): no small singular values in a batch of features.

The directions of the smallest ones are taken for what does not transfer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pof._support.checks import whole_number
from pof.regularizers._base import OnFeatures, gather_with_graph


def spectral_shrinkage(features: Tensor, k: int) -> Tensor:
    """Compute sum_{i=1..k} sigma_{-i}^2, the k smallest squared singular values of features (N, D).

    Returns:
        A scalar.

    Raises:
        ValueError: if ``k`` is larger than min(N, D).
    """
    if k > min(features.shape):
        raise ValueError(
            f"k={k} singular values asked of a batch with min(N, D) = {min(features.shape)}: "
            "lower k, or drop the short last batch"
        )
    values: Tensor = torch.linalg.svdvals(features)
    return values[-k:].square().sum()


class BSS(OnFeatures):
    """strength * sum of the k smallest squared singular values of the batch's feature matrix.

    The matrix is that of the global batch: under several processes the features are gathered, 4 N D bytes.

    Args:
        strength: eta, the weight of the penalty, >= 0.
        k: number of singular values, >= 1.

    Raises:
        ValueError: if ``strength`` is negative or ``k`` is not positive.
    """

    def __init__(self, *, strength: float = 1e-3, k: int = 1) -> None:
        super().__init__(strength)
        whole_number("k", k, 1)
        self.k = k

    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty of features (N, D); k must not be larger than min(N, D), N those that count."""
        if counted is not None:
            features = features[counted]
        everywhere = gather_with_graph(features)
        if not len(everywhere):
            return features.sum()
        penalty = self.strength * spectral_shrinkage(everywhere, self.k)
        # The others' rows are constants here, so the average over the processes (weights N_r / N) needs N / N_r.
        weight = everywhere.shape[0] / max(features.shape[0], 1)
        return penalty if weight == 1 else penalty.detach() + weight * (penalty - penalty.detach())
