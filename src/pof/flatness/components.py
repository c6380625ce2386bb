"""Principal components of the features: a picture of how the extractor separates the classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof.flatness._measure import Progress, draw, hard_labels, measuring, store
from pof.flatness.plots import MARKERS, axes_or_new
from pof.head.split import split

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of features."""

    projection: Tensor
    """(N, k) float64, centred."""
    components: Tensor
    """(k, D) float64, unit rows; the entry of largest magnitude is positive."""
    explained: Tensor
    """(k,) share of the variance."""
    mean: Tensor
    """(D,) float64."""
    labels: Tensor
    """(N,) int64."""

    def plot(self, ax: Axes | None = None, *, samples: int = 2000) -> Axes:
        """Draw the first two components, a marker and a shade for each class.

        Args:
            ax: where to; None makes a figure.
            samples: at most so many points, evenly taken.

        Returns:
            The axes.
        """
        from matplotlib import colormaps

        ax = axes_or_new(ax)
        step = max(1, -(-len(self.labels) // samples))
        points, labels = self.projection[::step].cpu(), self.labels[::step].cpu()
        classes = torch.unique(labels).tolist()
        for i, c in enumerate(classes):
            x = points[labels == c]
            color = colormaps["viridis"](i / max(1, len(classes) - 1))
            marker = MARKERS[i % len(MARKERS)]
            ax.plot(
                x[:, 0].tolist(), x[:, 1].tolist(), ls="", marker=marker, ms=3, mew=0.3, mec="0.2", c=color, label=c
            )
        ax.set_xlabel(f"component 1 ({float(self.explained[0]):.0%} of variance)")
        ax.set_ylabel(f"component 2 ({float(self.explained[1]):.0%})")
        if len(classes) <= len(MARKERS):
            ax.legend(fontsize="x-small", ncols=2, title="class")
        return ax


def feature_components(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    components: int = 2,
    batches: int | None = None,
    head: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PrincipalComponents:
    """Find the principal components of the features of a data set, in eval mode.

    Args:
        model: any module with a linear head; unchanged afterwards.
        loader: batches.
        components: k, at least 2.
        batches: at most so many; None for all.
        head: the head's qualified name; None finds it.
        seed: of the order a shuffling loader gives.
        progress: called after each batch.

    Returns:
        The components.

    Raises:
        ValueError: if the head is not linear, the loader is empty or ``components`` is out of range.
    """
    parts = split(model, head)
    with measuring(model, seed) as device:
        stored = store(parts.features_and_logits, draw(loader, batches, device, "features", progress))
    return principal_components(stored.features, hard_labels(stored.targets), components)


def principal_components(features: Tensor, labels: Tensor, components: int = 2) -> PrincipalComponents:
    """Principal components from the eigenvectors of the covariance, in float64.

    Args:
        features: (N, D).
        labels: (N,) class indices, for the picture.
        components: k, between 2 and D.

    Returns:
        The components, largest variance first.

    Raises:
        ValueError: if ``components`` is out of range.
    """
    if not 2 <= components <= features.shape[1]:
        raise ValueError(
            f"components must be between 2 and the feature dimension {features.shape[1]}; got {components}"
        )
    x = features.detach().double()
    mean = x.mean(dim=0)
    x = x - mean
    values, vectors = torch.linalg.eigh(x.T @ x)
    top = vectors.flip(1)[:, :components].T
    signs = torch.sign(top.gather(1, top.abs().argmax(dim=1, keepdim=True)))
    top = top * signs
    explained = values.flip(0)[:components].clamp_min(0.0) / values.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return PrincipalComponents(x @ top.T, top, explained, mean, labels.long())
