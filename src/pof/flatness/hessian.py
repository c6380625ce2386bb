"""Largest eigenvalues of the Hessian of the mean loss, for the head alone or for all parameters.

Lanczos' method (scipy's ARPACK) on products with the Hessian: curvlinops for any network, the closed form on
features stored once for a linear head with cross-entropy.  Both are the same matrix.  The largest eigenvalue is
the "largest Hessian component" that PoF is reported to halve (Sato et al., ICML 2022, slides).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pof._support.batches import Inputs, call, logits_of
from pof.flatness._lanczos import Pairs, largest
from pof.flatness._measure import (
    Loss,
    Progress,
    at_least_float32,
    check_mean,
    cross_entropy_options,
    draw,
    measuring,
    store,
)
from pof.flatness._operator import Operator, head_operator, network_operator
from pof.flatness.plots import STYLES, axes_or_new
from pof.head.split import SplitModel, split
from pof.perturbation.linear import encode_targets, respond

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Parameters = Literal["head", "all"]


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
        """Draw the values over their rank.

        Args:
            ax: where to; None makes a figure.
            label: legend entry.
            series: 0, 1, ...: a style of its own for each network on the same axes.

        Returns:
            The axes.
        """
        ax = axes_or_new(ax)
        style = STYLES[series % len(STYLES)]
        rank = range(1, len(self.values) + 1)
        ax.plot(rank, self.values.tolist(), color=style.color, ls=style.line, marker=style.marker, label=label or None)
        ax.set_xlabel("rank")
        ax.set_ylabel("Hessian eigenvalue")
        ax.set_xticks(list(rank))
        if label:
            ax.legend()
        return ax


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
        loader: batches, see :mod:`pof._support.batches`.
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
    with measuring(model, seed):
        operator = hessian_operator(
            model, loss, loader, parameters, head=head, batches=batches, seed=seed, progress=progress
        )
        return _named(operator, largest(operator, k, tolerance=tolerance, seed=seed, progress=progress))


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
    operator = _linear_head_operator(features, weight, bias, sample_weights)
    return _named(operator, largest(operator, k, tolerance=tolerance, seed=seed, progress=progress))


@torch.no_grad()
def head_hessian(
    features: Tensor, weight: Tensor, bias: Tensor | None, *, sample_weights: Tensor | None = None
) -> Tensor:
    """Hessian of the cross-entropy in the parameters of a linear head, as a matrix.

    H = sum_n w_n (diag p_n - p_n p_n^T) kron (a_n a_n^T), a_n = (f_n, 1).  It does not depend on the targets;
    class weights enter through ``sample_weights``.  For checks and small heads: P^2 numbers.

    Args:
        features: (N, D).
        weight: (C, D).
        bias: (C,) or None.
        sample_weights: (N,); None for the mean, 1/N each.

    Returns:
        (P, P), P = C D (+ C): the weight row by row, then the bias, as in ``nn.Linear.parameters()``.
    """
    n, d = features.shape
    c = weight.shape[0]
    p = torch.softmax(respond(features, weight, bias), dim=1)
    w = features.new_full((n,), 1.0 / n) if sample_weights is None else sample_weights
    a = features if bias is None else torch.cat([features, features.new_ones(n, 1)], dim=1)
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    full = torch.einsum("n,nij,nk,nl->ikjl", w, blocks, a, a)
    order = torch.arange(c * a.shape[1], device=features.device).view(c, -1)
    order = torch.cat([order[:, :d].flatten(), order[:, d:].flatten()])
    return full.reshape(c * a.shape[1], -1)[order][:, order]


def hessian_operator(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    parameters: Parameters,
    *,
    head: str | None,
    batches: int | None,
    seed: int,
    progress: Progress | None,
) -> Operator:
    """Choose the cheapest exact product with the Hessian; call it inside :func:`measuring`.

    Args:
        model: in eval mode.
        loss: the mean over a batch.
        loader: batches.
        parameters: "head" or "all".
        head: the head's name or None.
        batches: bound or None.
        seed: for modules that draw in eval mode.
        progress: hook or None.

    Returns:
        The operator.

    Raises:
        ValueError: for an unknown ``parameters``, an empty loader or a loss that is no mean.
    """
    check_mean(loss)
    device = next(model.parameters()).device
    data = draw(loader, batches, device, "data", progress)
    if parameters == "all":
        return network_operator(model, loss, list(data), dict(model.named_parameters()), seed)
    if parameters != "head":
        raise ValueError(f"parameters must be 'head' or 'all'; got {parameters!r}")
    parts = split(model, head)
    first = next(data)
    options = cross_entropy_options(loss)
    names = {f"{parts.head_name}.{name}".lstrip("."): p for name, p in parts.head.named_parameters()}
    if options is None or not parts.linear or not _ends_with_head(parts, model, first[0]):
        return network_operator(model, loss, [first, *data], names, seed)
    stored = store(parts.features_and_logits, chain([first], data))
    smoothing, class_weights = options
    encoded = encode_targets(stored.targets, stored.logits, smoothing, class_weights=class_weights)
    return head_operator(stored.features, stored.logits, parts.bias is not None, encoded.weights, tuple(names))


@torch.no_grad()
def _ends_with_head(parts: SplitModel, model: nn.Module, inputs: Inputs) -> bool:
    # A softmax after the head, say, is part of the loss that the caller asks about.
    return torch.equal(logits_of(call(model, inputs)), parts.features_and_logits(inputs)[1])


def _linear_head_operator(
    features: Tensor, weight: Tensor, bias: Tensor | None, sample_weights: Tensor | None
) -> Operator:
    features = at_least_float32(features.detach())
    logits = respond(features, weight.detach(), None if bias is None else bias.detach()).to(features.dtype)
    w = features.new_full((len(features),), 1.0 / len(features)) if sample_weights is None else sample_weights
    names = ("weight",) if bias is None else ("weight", "bias")
    return head_operator(features, logits, bias is not None, w.to(features), names)


def _named(operator: Operator, pairs: Pairs) -> Eigenvalues:
    return Eigenvalues(
        values=pairs.values,
        vectors=pairs.vectors,
        residuals=pairs.residuals,
        names=operator.names,
        samples=operator.samples,
        products=pairs.products,
    )
