"""Largest eigenvalues of the Hessian of the mean loss, for the head alone or for all parameters.

Lanczos' method (scipy's ARPACK) on products with the Hessian: double backward for any network, the closed form on
features stored once for a linear head with cross-entropy.  Both are the same matrix.  The largest eigenvalue is
the "largest Hessian component" that PoF is reported to halve (Sato et al., ICML 2022, slides).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.checks import finite, whole_number
from pof._support.precision import without_autocast
from pof._support.random import seeded
from pof.flatness import plots
from pof.flatness._measure import Loss, Progress, measuring, report
from pof.flatness.hessian import Operator, Parameters, hessian_operator, linear_head_operator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Relative; products in float32 are not good for more.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Eigenvalues:
    """The k largest eigenvalues (algebraically) of a Hessian, largest first."""

    values: Tensor
    """(k,) float64."""
    vectors: Tensor
    """(P, k) float64, unit columns; the entry of largest magnitude is positive."""
    residuals: Tensor
    """(k,) ||H v - lambda v||: each value lies within this distance of a true eigenvalue."""
    names: tuple[str, ...]
    """Parameters in the order of a vector's entries, each flattened."""
    samples: int
    """N, samples in the mean."""
    products: int
    """Products with the Hessian that were needed."""

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the values over their rank; arguments as in ``pof.flatness.plots.eigenvalues``."""
        return plots.eigenvalues(ax, self.values, label=label, series=series)


def top_eigenvalues(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    k: int = 1,
    parameters: Parameters = "head",
    *,
    head: str | None = None,
    batches: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenvalues:
    """Find the k largest eigenvalues and vectors of the Hessian of the mean loss over the data, in eval mode.

    Each batch is drawn from the loader once, so that all products see the same data.  Batches are kept in memory,
    or only their features (N, D) where the head is linear and the loss a cross-entropy of its logits.

    Args:
        model: any module; unchanged afterwards.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        loader: batches ``(inputs, targets)``, or dicts with ``labels``.
        k: how many, at least 1.
        parameters: "head" for those of the head, "all" for every parameter of the model, frozen or not.
        head: the head's qualified name; None finds it.
        batches: at most so many batches; None for all.
        tolerance: relative to each eigenvalue; None for 1e-10 in float64 and 1e-4 in float32.
        seed: of Lanczos' start vector, and of the order a shuffling loader gives.
        progress: called after each batch and each product.

    Returns:
        The eigenvalues; memory is that of 2k + 6 vectors of P float64 beside the data.

    Raises:
        ValueError: for a k outside 1..P, an empty loader, a loss that is no mean, or a Hessian that is not finite.
    """
    with measuring(model, seed, head):
        operator = hessian_operator(
            model, loss, loader, parameters, head=head, batches=batches, seed=seed, progress=progress
        )
        return largest(operator, k, tolerance=tolerance, seed=seed, progress=progress)


def head_eigenvalues(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int = 1,
    *,
    sample_weights: Tensor | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenvalues:
    """Find the k largest eigenvalues of :func:`head_hessian` without building the matrix.

    Args:
        features: (N, D), stored.
        weight: (C, D).
        bias: (C,) or None.
        k: how many, at least 1.
        sample_weights: (N,); None for the mean, 1/N each.
        tolerance: as in :func:`top_eigenvalues`.
        seed: of Lanczos' start vector.
        progress: called after each product.

    Returns:
        The eigenvalues.

    Raises:
        ValueError: for a k outside 1..P, or a Hessian that is not finite.
    """
    operator = linear_head_operator(features, weight, bias, sample_weights)
    with without_autocast(features.device):
        return largest(operator, k, tolerance=tolerance, seed=seed, progress=progress)


def largest(
    operator: Operator, k: int, *, tolerance: float | None, seed: int, progress: Progress | None
) -> Eigenvalues:
    """Run Lanczos' method, or the dense one where the matrix is no larger than Lanczos' basis."""
    whole_number("k", k, 1)
    if tolerance is not None:
        finite("tolerance", tolerance, above=0)
    if k > operator.size:
        raise ValueError(f"k must be between 1 and the number of parameters {operator.size}; got {k}")
    import numpy as np

    count = 0

    def product(vector: Any) -> Any:
        nonlocal count
        result = operator.product(torch.from_numpy(np.ravel(vector)).to(operator.dtype).to(operator.device))
        if not bool(torch.isfinite(result).all()):
            raise ValueError(
                "the Hessian of the loss is not finite: check the network's weights and the inputs for NaN"
            )
        count += 1
        report(progress, "Hessian products", count, None)
        return result.cpu().double().numpy()

    basis = 2 * k + 6
    if operator.size <= basis:
        matrix = np.stack([product(column) for column in np.eye(operator.size)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        values, vectors = _arpack(product, operator.size, k, basis, tolerance or _TOLERANCES[operator.dtype], seed)
    order = np.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] < 0, -1.0, 1.0)
    residuals = [np.linalg.norm(product(v) - value * v) for v, value in zip(vectors.T, values, strict=True)]
    return Eigenvalues(
        values=torch.from_numpy(values.copy()),
        vectors=torch.from_numpy(vectors.copy()),
        residuals=torch.tensor(residuals, dtype=torch.float64),
        names=operator.names,
        samples=operator.samples,
        products=count,
    )


def _arpack(product: Any, size: int, k: int, basis: int, tolerance: float, seed: int) -> tuple[Any, Any]:
    import numpy as np

    try:
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
    except ImportError as error:
        raise ImportError("eigenvalues need scipy: pip install 'pof[app]'") from error

    start = torch.randn(size, generator=seeded(seed), dtype=torch.float64).numpy()
    matrix = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        # The generator serves restarts, which a Hessian of low rank needs.
        values, vectors = eigsh(
            matrix, k, which="LA", v0=start, ncv=basis, tol=tolerance, rng=np.random.default_rng(seed)
        )
    except ArpackError:
        if product(start).any():
            raise
        # A random vector is annihilated by the zero matrix only, which ARPACK refuses.
        return np.zeros(k), np.eye(size, k)
    return values, vectors
