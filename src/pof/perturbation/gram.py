"""The head gradient of few samples and its response, without the gradient.

g_W = dZ^T F has a rank of at most M, the number of samples.  With the Gram matrix K = F F^T (+ 1, for the bias)

    ||g||^2 = sum(dZ * K dZ),    R = K dZ / ||g||,    R~ = (F~ F^T + 1) dZ / ||g||:

O(M (C + D)) operations per sample instead of O(C D), and no (C, D) tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pof._support.precision import without_autocast


def pays(samples: int, features: int, classes: int) -> bool:
    """Whether this form of M samples needs fewer operations than the gradient (C, D) itself."""
    return samples * (classes + features) < classes * features


@dataclass(frozen=True, eq=False)
class GramGradient:
    """g_hat = A^T F, of unit joint norm; 0 where ||g|| is 0."""

    rows: Tensor
    """(M, D): the features, each sample scaled by its largest entry."""
    offset: Tensor | None
    """(M,): the 1 of the bias, scaled alike; None for a head without bias."""
    shares: Tensor
    """(M, C): A, what each sample adds."""
    norm: Tensor
    """||g||, scalar."""

    @classmethod
    @torch.no_grad()
    def along(cls, features: Tensor, residual: Tensor, *, bias: bool) -> tuple[Self, Tensor]:
        """Take features (M, D) and the gradient dZ (M, C) of the logits; gives the response (M, C) of both too."""
        tiny = torch.finfo(features.dtype).tiny
        with without_autocast(features.device):
            # Both are scaled to entries of at most 1: products of small ones underflow, of large ones overflow.
            largest = torch.linalg.vector_norm(features, torch.inf, dim=1, keepdim=True).clamp_min(
                1.0 if bias else tiny
            )
            rows, offset = features / largest, largest.reciprocal().squeeze(1) if bias else None
            shares = residual * largest
            scale = torch.linalg.vector_norm(shares, torch.inf).clamp_min(tiny)
            shares = shares / scale
            response = F.linear(features, rows, offset) @ shares
            length = (shares * (response / largest)).sum().clamp_min(0.0).sqrt()
            inverse = torch.where(length > 0, length.reciprocal(), 0.0)
            return cls(rows, offset, shares * inverse, length * scale), response * inverse

    def respond(self, features: Tensor) -> Tensor:
        """Response R (N, C) of the logits of features (N, D) to g_hat, with their graph."""
        with without_autocast(features.device):
            return F.linear(features.to(self.rows.dtype), self.rows, self.offset) @ self.shares
