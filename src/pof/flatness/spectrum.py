"""Trace and spectral density of the Hessian of the mean loss, from random probes, each with its standard error.

Trace: Hutchinson's estimator with Rademacher probes.  Density: stochastic Lanczos quadrature (Ubaru, Chen and Saad,
2017), whose nodes and weights reproduce the moments tr(H^j) / P without bias for j < 2 * steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.checks import MOST_POINTS, whole_number
from pof._support.precision import widest
from pof._support.random import seeded
from pof.flatness import plots
from pof.flatness._measure import Estimate, Loss, Progress, mean_of, measuring, report
from pof.flatness.hessian import Operator, Parameters, hessian_operator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Probes that go through the data together, times the P entries of each: bounds their memory.
_PROBE_ELEMENTS = 2**26


@dataclass(frozen=True)
class Trace:
    """tr H by Hutchinson's estimator."""

    value: float
    """Mean over the probes."""
    standard_error: float
    """Of the mean, from the spread of the probes."""
    probes: Tensor
    """(n,) v^T H v of each probe, float64."""
    size: int
    """P, rows of the Hessian."""
    samples: int
    """N, samples in the mean."""

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the running mean over the probes; arguments as in ``pof.flatness.plots.running_mean``."""
        estimates = [mean_of(self.probes[:n]) for n in range(2, len(self.probes) + 1)]
        means, errors = [e.value for e in estimates], [e.standard_error for e in estimates]
        return plots.running_mean(ax, means, errors, label=label, series=series)


@dataclass(frozen=True)
class SpectralDensity:
    """Density of the eigenvalues, of integral 1: the quadrature's points, and the same widened by a Gaussian."""

    grid: Tensor
    """(G,) eigenvalue, float64."""
    density: Tensor
    """(G,) per unit of eigenvalue."""
    nodes: Tensor
    """(n, m): for each probe the m quadrature nodes."""
    weights: Tensor
    """(n, m): their weights, summing to 1 for each probe."""
    width: float
    """Standard deviation of the Gaussian: finer structure of ``density`` is not resolved."""
    size: int
    """P, rows of the Hessian."""
    samples: int
    """N, samples in the mean."""

    def moment(self, order: int) -> Estimate:
        """Estimate tr(H^order) / P.

        Args:
            order: 1 for the mean eigenvalue, 2 for the mean square, ...

        Returns:
            The mean over the probes and its standard error; without bias up to order 2 m - 1.
        """
        return mean_of((self.weights * self.nodes**order).sum(dim=1))

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the density on a logarithmic axis; arguments as in ``pof.flatness.plots.density``."""
        # Less than a hundredth of an eigenvalue per width is the Gaussians' tail, not the spectrum.
        floor = 0.01 / (self.size * self.width)
        return plots.density(ax, self.grid, self.density, floor, label=label, series=series)


def hessian_trace(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    probes: int = 30,
    parameters: Parameters = "head",
    *,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trace:
    """Estimate the trace of the Hessian of the mean loss over the data, in eval mode.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        probes: n, at least 2; one product with the Hessian each.
        parameters: "head" or "all", as in :func:`pof.flatness.top_eigenvalues`.

    Returns:
        The trace with its standard error.

    Raises:
        ValueError: for fewer than two probes, or as in :func:`pof.flatness.top_eigenvalues`.
    """
    _check_probes(probes)
    with measuring(model, seed, head):
        operator = hessian_operator(
            model, loss, loader, parameters, head=head, batches=batches, seed=seed, progress=progress
        )
        return trace_of(operator, probes, seed=seed, progress=progress)


def spectral_density(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    probes: int = 5,
    parameters: Parameters = "head",
    *,
    steps: int = 60,
    points: int = 512,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of the Hessian of the mean loss over the data, in eval mode.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        probes: n, at least 2.
        parameters: "head" or "all", as in :func:`pof.flatness.top_eigenvalues`.
        steps: m, Lanczos steps, one product with the Hessian each; memory is m vectors of P numbers.
        points: of the grid.

    Returns:
        The density.

    Raises:
        ValueError: for fewer than two probes or one step, or as in :func:`pof.flatness.top_eigenvalues`.
    """
    _check_probes(probes)
    whole_number("steps", steps, 2, MOST_POINTS)
    whole_number("points", points, 2, MOST_POINTS)
    with measuring(model, seed, head):
        operator = hessian_operator(
            model, loss, loader, parameters, head=head, batches=batches, seed=seed, progress=progress
        )
        return density_of(operator, probes, steps=steps, points=points, seed=seed, progress=progress)


def trace_of(operator: Operator, probes: int, *, seed: int, progress: Progress | None) -> Trace:
    """Hutchinson's estimator: the mean of v^T H v over v with entries +-1."""
    generator = seeded(seed)
    found = torch.zeros(probes, dtype=torch.float64)
    together = max(1, _PROBE_ELEMENTS // operator.size)
    for start in range(0, probes, together):
        rows = torch.stack([_signs(operator, generator) for _ in range(min(together, probes - start))])
        for batch, shares in enumerate(operator.shares(rows), start=1):
            values = [widest(v) @ widest(share) for v, share in zip(rows, shares, strict=True)]
            found[start : start + together] += torch.stack(values).cpu()
            report(progress, "trace", start + len(rows) * batch // operator.batches, probes)
    mean = mean_of(found)
    return Trace(mean.value, mean.standard_error, found, operator.size, operator.samples)


def density_of(
    operator: Operator, probes: int, *, steps: int, points: int, seed: int, progress: Progress | None
) -> SpectralDensity:
    """Stochastic Lanczos quadrature with at most P of the m steps."""
    generator = seeded(seed)
    steps = min(steps, operator.size)
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for i in range(probes):
        diagonal, off = tridiagonal(operator, _signs(operator, generator), steps)
        values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
        # Where the Krylov space is exhausted early, the remaining nodes keep weight 0.
        nodes[i, : len(values)], weights[i, : len(values)] = values, vectors[0] ** 2
        report(progress, "spectral density", (i + 1) * steps, probes * steps)
    low, high = float(nodes[weights > 0].min()), float(nodes[weights > 0].max())
    width = 0.01 * (high - low) or 0.01 * max(abs(high), 1.0)
    grid = torch.linspace(low - 6 * width, high + 6 * width, points, dtype=torch.float64)
    bumps = torch.exp(-0.5 * ((grid.view(-1, 1, 1) - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    density = (bumps * weights).sum(dim=2).mean(dim=1)
    return SpectralDensity(grid, density, nodes, weights, width, operator.size, operator.samples)


def tridiagonal(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Tridiagonal form of H in the Krylov space of ``start`` (P,), with full reorthogonalisation.

    Returns:
        Diagonal (m,) and off-diagonal (m - 1,), float64 on the CPU; m < ``steps`` where the space is exhausted.
    """
    basis = (start / torch.linalg.vector_norm(start)).unsqueeze(0)
    diagonal: list[float] = []
    off: list[float] = []
    for _ in range(steps):
        w = operator.product(basis[-1])
        diagonal.append(float(basis[-1] @ w))
        for _ in range(2):  # once leaves rounding errors that grow into spurious copies of eigenvalues
            w = w - basis.T @ (basis @ w)
        length = float(torch.linalg.vector_norm(w))
        scale = max(abs(d) for d in diagonal) + max(off, default=0.0)
        if length <= 100 * torch.finfo(w.dtype).eps * scale or len(diagonal) == steps:
            break
        off.append(length)
        basis = torch.cat([basis, (w / length).unsqueeze(0)])
    return torch.tensor(diagonal, dtype=torch.float64), torch.tensor(off, dtype=torch.float64)


def _signs(operator: Operator, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, (operator.size,), generator=generator)
    return (2 * bits - 1).to(operator.device, operator.dtype)


def _check_probes(probes: int) -> None:
    whole_number("probes", probes, 2)
