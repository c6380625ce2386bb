"""Loss on a plane through the network, spanned by two random filter-normalised directions (Li et al., NeurIPS 2018).

Each filter of a direction has the norm of the network's own filter, so that networks whose scales differ can be
compared; biases and normalisation parameters are left out, as in the paper.  Weights are never modified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pof._support.batches import samples_of
from pof._support.checks import finite, whole_number
from pof._support.random import seeded
from pof.flatness import plots
from pof.flatness._measure import (
    Loss,
    Progress,
    Weights,
    check_mean,
    check_wide,
    counting,
    mean_loss,
    measuring,
    read,
    report,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LossPlane:
    """Mean loss on a square grid around the network."""

    offsets: Tensor
    """(G,) along each direction, float64; 1 is the norm of the network's own filters."""
    loss: Tensor
    """(G, G) float64; ``loss[i, j]`` at offsets[i] along the first direction and offsets[j] along the second."""
    samples: int
    """N, samples in the mean."""

    def plot(self, ax: Axes | None = None, *, levels: int = 10) -> Axes:
        """Draw labelled contours of the loss; arguments as in ``pof.flatness.plots.contours``."""
        return plots.contours(ax, self.offsets, self.loss, levels=levels)


def loss_plane(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    *,
    reach: float = 1.0,
    points: int = 21,
    head: str | None = None,
    batches: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LossPlane:
    """Evaluate the mean loss on a filter-normalised plane around the network, in eval mode.

    Batch norms use the network's own running statistics at every point.

    Arguments that all measurements share are described in ``pof.flatness``.

    Args:
        reach: the grid goes from -reach to reach in both directions.
        points: G per direction, odd so that the network itself is on the grid; G^2 passes over the data.
        seed: of the directions, and of the order a shuffling loader gives; the same for networks to be compared.

    Returns:
        The plane.

    Raises:
        ValueError: for an even or too small ``points``, a ``reach`` that is not positive, an empty loader, a
            loss that is no mean, or weights in half precision.
    """
    whole_number("points", points, 3, 999)
    if points % 2 == 0:
        raise ValueError(f"points must be odd and at least 3; got {points}")
    finite("reach", reach, above=0)
    check_mean(loss)
    check_wide(model)
    offsets = torch.linspace(-reach, reach, points, dtype=torch.float64)
    offsets[points // 2] = 0.0
    values = torch.zeros(points, points, dtype=torch.float64)
    with measuring(model, seed, head) as device:
        data = list(counting(loss, read(loader, batches, device, "data", progress)))
        generator = seeded(seed)
        first, second = filter_direction(model, generator), filter_direction(model, generator)
        weights = {name: p.detach() for name, p in model.named_parameters() if name in first}
        for i, a in enumerate(offsets.tolist()):
            for j, b in enumerate(offsets.tolist()):
                moved = {name: w + a * first[name] + b * second[name] for name, w in weights.items()}
                values[i, j] = mean_loss(model, loss, moved, data)
                report(progress, "loss plane", i * points + j + 1, points**2)
    return LossPlane(offsets, values, sum(samples_of(targets) for _, targets in data))


def filter_direction(model: nn.Module, generator: torch.Generator) -> Weights:
    """Draw a random direction whose filters have the norms of the model's.

    The first axis of a parameter counts its filters; parameters of one axis are left out.

    Returns:
        Parameter name -> tensor.
    """
    direction = {}
    for name, p in model.named_parameters():
        if p.ndim < 2:
            continue
        d = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype).to(p.device)
        w = p.detach()
        lengths = torch.linalg.vector_norm(w.flatten(1), dim=1) / torch.linalg.vector_norm(d.flatten(1), dim=1)
        direction[name] = d * lengths.view(-1, *[1] * (p.ndim - 1))
    return direction
