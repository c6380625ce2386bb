"""FNP, the feature norm penalty: random feature regularisation with the reference z = 0.

Yamaguchi et al., CVPR 2024 (arXiv 2403.10097) use it as a baseline of AdaRand.
"""

from __future__ import annotations

from torch import Tensor

from pof.regularizers._base import OnFeatures, kept, mean_over


class FNP(OnFeatures):
    """strength * mean_n 1/D ||f_n||^2.

    Args:
        strength: lambda, the weight of the penalty, >= 0.

    Raises:
        ValueError: if ``strength`` is negative or not finite.
    """

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__(strength)

    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty of features (N, D)."""
        return self.strength * mean_over(kept(features, counted).square(), counted)
