"""Lanczos' method on a matrix known by its products: the largest eigenvalues (ARPACK), and the tridiagonal form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pof._support.random import seeded
from pof.flatness._measure import Progress, report
from pof.flatness._operator import Operator

# Relative; products in float32 are not good for more.
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues and vectors, largest first; see :class:`pof.flatness.Eigenvalues` for the fields."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


def largest(operator: Operator, k: int, *, tolerance: float | None, seed: int, progress: Progress | None) -> Pairs:
    """Run Lanczos' method, or the dense one where the matrix is no larger than Lanczos' basis.

    Args:
        operator: the matrix.
        k: how many.
        tolerance: relative; None by the dtype.
        seed: of the start vector.
        progress: called after each product.

    Returns:
        The eigenvalues, with residuals from one further product each.

    Raises:
        ValueError: for a k outside 1..P, or a product that is not finite.
    """
    if not 1 <= k <= operator.size:
        raise ValueError(f"k must be between 1 and the number of parameters {operator.size}; got {k}")
    import numpy as np

    count = 0

    def product(vector: Any) -> Any:
        nonlocal count
        result = operator.product(torch.from_numpy(np.ravel(vector)).to(operator.device, operator.dtype))
        if not bool(torch.isfinite(result).all()):
            raise ValueError(
                "the Hessian of the loss is not finite: check the network's weights and the inputs for NaN"
            )
        count += 1
        report(progress, "Hessian products", count, None)
        return result.double().cpu().numpy()

    basis = 2 * k + 6
    if operator.size <= basis:
        matrix = np.stack([product(column) for column in np.eye(operator.size)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        values, vectors = _lanczos(product, operator.size, k, basis, tolerance or _TOLERANCES[operator.dtype], seed)
    order = np.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] < 0, -1.0, 1.0)
    residuals = [np.linalg.norm(product(v) - value * v) for v, value in zip(vectors.T, values, strict=True)]
    return Pairs(
        values=torch.from_numpy(values.copy()),
        vectors=torch.from_numpy(vectors.copy()),
        residuals=torch.tensor(residuals, dtype=torch.float64),
        products=count,
    )


def _lanczos(product: Any, size: int, k: int, basis: int, tolerance: float, seed: int) -> tuple[Any, Any]:
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


def tridiagonal(operator: Operator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Tridiagonal form of H in the Krylov space of ``start``, with full reorthogonalisation.

    Args:
        operator: H, of size P.
        start: (P,), any length.
        steps: m at most; fewer where the Krylov space is exhausted.

    Returns:
        diagonal (m,) and off-diagonal (m - 1,), float64 on the CPU.
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
