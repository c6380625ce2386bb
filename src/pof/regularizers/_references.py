"""Random references z for features, and the distance to them (Yamaguchi et al., CVPR 2024, arXiv 2403.10097).

References are drawn for the global batch and each process takes its own rows, so several processes see what
one process on the global batch would: every process then draws N references for the N_r it uses.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from pof._support.random import mix, seeded
from pof.regularizers._base import kept, mean_over, own_rows


class Sampler(Protocol):
    """``torch.rand``, ``torch.randn``: independent numbers of a given shape."""

    def __call__(self, *size: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor: ...


def squared_distance(features: Tensor, references: Tensor, counted: Tensor | None) -> Tensor:
    """Distance mean_n 1/D ||f_n - z_n||^2 over the samples counted; the mean over D keeps strengths comparable."""
    return mean_over(kept(features - references, counted).square(), counted)


def class_references(mean: Tensor, std: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """References z_n = mean[y_n] + std[y_n] * noise_n (N, D), from mean and std (K, D), in the dtype of the noise."""
    centre, width = (table.index_select(0, targets).to(noise.dtype) for table in (mean, std))
    return torch.addcmul(centre, width, noise)


class ReferenceStream(nn.Module):
    """Independent random numbers for every sample of every step, from a seed and a count.

    The n-th draw depends on (seed, n) alone, so the whole state is two integers: it fits into ``state_dict``,
    resumes exactly on any device of the same kind, and copies like any value.  The global generators are left
    alone.

    Args:
        seed: in [0, 2**63).

    Raises:
        ValueError: if the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must lie in [0, 2**63); got {seed!r}")
        self.seed = seed
        self.draws = 0

    def forward(self, features: Tensor, sampler: Sampler) -> Tensor:
        """Draw the next references (N, D) from ``sampler``, on the device and in the dtype of features (N, D)."""
        rows, total = own_rows(features)
        generator = seeded(mix(self.seed, self.draws), features.device)
        self.draws += 1
        drawn = sampler(total, features.shape[1], generator=generator, device=features.device, dtype=features.dtype)
        return drawn[rows]

    def get_extra_state(self) -> Tensor:
        """Put seed and count into ``state_dict``: (2,) int64, on the CPU."""
        return torch.tensor([self.seed, self.draws], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue where the saved stream stopped."""
        self.seed, self.draws = (int(v) for v in state.tolist())
