"""The expected calibration error, said once for evaluation and reliability diagrams (Guo et al., ICML 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def confidence_bins(confidence: Tensor, bins: int) -> Tensor:
    """Number the bins of confidences (N,): of equal width on (0, 1], closed on the right."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> Tensor:
    """Compute sum_b (n_b / n) |accuracy_b - confidence_b|.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.
        bins: B.

    Returns:
        Scalar in [0, 1].
    """
    gap = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device)
    gap.index_add_(0, confidence_bins(confidence, bins), correct.to(confidence.dtype) - confidence)
    return gap.abs().sum() / confidence.numel()
