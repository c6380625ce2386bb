"""Sharpness: how much the loss rises within a given distance of the weights, to first order.

L(w + eps) - L(w) with eps the steepest ascent of length rho: eps = rho g / ||g|| (SAM, Foret et al., ICLR 2021), or
eps = rho T^2 g / ||T g||, T = |w| + eta (ASAM, Kwon et al., ICML 2021), which does not change when the scale of a
weight moves to the next layer.  Weights are never modified: the perturbed network is a functional call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.batches import Inputs, has_rows, joined, rows_of, samples_of
from pof._support.checks import finite, whole_number
from pof.flatness import plots
from pof.flatness._measure import (
    Data,
    Loss,
    Progress,
    Weights,
    check_mean,
    check_wide,
    counting,
    mean_gradient,
    mean_loss,
    measuring,
    read,
    report,
    weights_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sharpness:
    """Rise of the loss within a radius."""

    value: float
    """Mean of ``rises``, weighed by samples: L(w + eps) - L(w)."""
    loss: float
    """L(w) over all data."""
    rho: float
    rises: Tensor
    """(K,) of each chunk that has a perturbation of its own; K = 1 where the data have one in common."""
    chunk_samples: tuple[int, ...]
    """Samples of each chunk."""

    def plot(self, ax: Axes | None = None, *, label: str = "", series: int = 0) -> Axes:
        """Draw the rise of each chunk and their mean; arguments as in ``pof.flatness.plots.values_and_mean``."""
        labels = "chunk of the data", rf"rise of the loss, $\rho$ = {self.rho:g}"
        return plots.values_and_mean(ax, self.rises, self.value, labels, label=label, series=series)


def sam_sharpness(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    *,
    rho: float = 0.05,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    """SAM's sharpness with one perturbation for all data: L(w + rho g / ||g||) - L(w), g the gradient over the data.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        rho: length of the perturbation over all parameters jointly.

    Returns:
        The sharpness.

    Raises:
        ValueError: for a negative rho, an empty loader, a loss that is no mean, or weights in half precision.
    """
    return _sharpness(model, loss, loader, None, rho, _steepest, head, batches, seed, progress)


def m_sharpness(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    m: int,
    *,
    rho: float = 0.05,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    """m-sharpness: SAM's sharpness of each chunk of m samples with a perturbation of its own, averaged over samples.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        loader: batches; samples are cut into chunks in the loader's order, whatever its batch size.
        m: samples per chunk; the last may have fewer.
        rho: length of each perturbation.

    Returns:
        The sharpness.

    Raises:
        ValueError: for m < 1, a negative rho, an empty loader, a loss that is no mean, or weights in half precision.
    """
    whole_number("m", m, 1)
    return _sharpness(model, loss, loader, m, rho, _steepest, head, batches, seed, progress)


def adaptive_sharpness(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    *,
    rho: float = 0.5,
    eta: float = 0.01,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    """ASAM's sharpness with one perturbation for all data: eps = rho T^2 g / ||T g||, T = |w| + eta.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        rho: length of eps / T over all parameters jointly.
        eta: added to |w|, so that zero weights can move.

    Returns:
        The sharpness.

    Raises:
        ValueError: for a negative rho or eta, an empty loader, a loss that is no mean, or weights in half precision.
    """
    finite("eta", eta, 0)

    def ascent(weights: Weights, gradients: Weights) -> Weights:
        scale = {name: w.abs() + eta for name, w in weights.items()}
        unit = _steepest(weights, {name: scale[name] * g for name, g in gradients.items()})
        return {name: scale[name] * u for name, u in unit.items()}

    return _sharpness(model, loss, loader, None, rho, ascent, head, batches, seed, progress)


def _sharpness(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    m: int | None,
    rho: float,
    ascent: Callable[[Weights, Weights], Weights],
    head: str | None,
    batches: int | None,
    seed: int,
    progress: Progress | None,
) -> Sharpness:
    finite("rho", rho, 0)
    check_mean(loss)
    check_wide(model)
    with measuring(model, seed, head) as device:
        data = read(loader, batches, device, "data", progress)
        chunks = [list(counting(loss, data))] if m is None else [[chunk] for chunk in counting(loss, rechunk(data, m))]
        weights = {name: p.detach() for name, p in model.named_parameters()}
        losses, rises, shares = [], [], []
        for done, chunk in enumerate(chunks, start=1):
            before, gradients = mean_gradient(model, loss, weights, chunk)
            if not math.isfinite(before):
                raise ValueError(f"the loss is {before} before any perturbation: check the weights for NaN")
            moved = {name: weights[name] + rho * e for name, e in ascent(weights, gradients).items()}
            rises.append(mean_loss(model, loss, moved, chunk) - before)
            losses.append(before)
            shares.append(sum(weights_of(loss, chunk)))
            report(progress, "sharpness", done, len(chunks))
    share = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    found = torch.tensor(rises, dtype=torch.float64)
    return Sharpness(
        value=float(share @ found),
        loss=float(share @ torch.tensor(losses, dtype=torch.float64)),
        rho=rho,
        rises=found,
        chunk_samples=tuple(sum(samples_of(y) for _, y in chunk) for chunk in chunks),
    )


def _steepest(weights: Weights, gradients: Weights) -> Weights:
    # Zero where the gradient is zero.
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    return {name: g / safe for name, g in gradients.items()}


def rechunk(data: Iterable[tuple[Inputs, Any]], m: int) -> Data:
    """Cut batches of any sizes into chunks of m samples, in order; the last may have fewer."""
    every = list(data)
    if not all(has_rows(inputs) for inputs, _ in every):
        raise ValueError("packed sequences, sparse and nested tensors cannot be cut into chunks")
    sizes = [samples_of(targets) for _, targets in every]
    pairs, total = tuple(joined(list(part), sizes) for part in zip(*every, strict=True)), sum(sizes)
    return [rows_of(pairs, slice(i, i + m), total) for i in range(0, total, m)]
