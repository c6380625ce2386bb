"""FNP, the feature norm penalty: random feature regularisation with the reference z = 0.

Yamaguchi et al., CVPR 2024 (arXiv 2403.10097) use it as a baseline of AdaRand.
"""

from __future__ import annotations

from torch import Tensor

from pof._support.batches import Inputs
from pof._support.precision import at_least_float32, without_autocast
from pof.regularizers._base import Regularizer
from pof.regularizers._tensors import check_features, zero


def feature_norm(features: Tensor) -> Tensor:
    """Compute mean_n 1/D ||f_n||^2 for features (N, D).

    Returns:
        A scalar.
    """
    return features.square().mean()


class FNP(Regularizer):
    """strength * mean_n 1/D ||f_n||^2.

    Args:
        strength: lambda, the weight of the penalty, >= 0.

    Raises:
        ValueError: if ``strength`` is negative or not finite.
    """

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__(strength)

    def forward(self, features: Tensor, targets: Tensor | None = None, inputs: Inputs | None = None) -> Tensor:
        """Compute the penalty; ``targets`` and ``inputs`` are not read.

        Args:
            features: (N, D) with graph.
            targets: not read.
            inputs: not read.

        Returns:
            A scalar, float32 (float64 for float64 features).

        Raises:
            ValueError: if ``features`` is not (N, D).
        """
        if self.strength == 0:
            return zero(features)
        check_features(features)
        with without_autocast(features.device):
            return self.strength * feature_norm(at_least_float32(features))
