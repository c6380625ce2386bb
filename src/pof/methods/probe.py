"""LP-FT (Kumar et al., ICLR 2022, arXiv 2202.10054): the head alone first, on features that stay; then everything.

Fine-tuning from a random head distorts the features while the head is still wrong (section 3 of the paper).
:func:`linear_probe` is the first stage; the second is plain training, :class:`pof.Finetune`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support import distributed
from pof._support.checks import finite
from pof._support.modules import evaluating
from pof._support.random import preserved
from pof.head.search import has_own_weight
from pof.head.split import split
from pof.perturbation.loss import CrossEntropy, LossFunction
from pof.regularizers.statistics import features_and_targets

STEPS = 1000
"""At most; with a penalty some hundred are enough."""


@torch.inference_mode(False)  # there are no gradients in it
def linear_probe(
    model: nn.Module,
    loader: Iterable[Any],
    head: str | None = None,
    *,
    l2: float = 1e-2,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> float:
    """Train the head of a network to convergence on the features of a training set, in place; nothing else changes.

    One pass in eval mode stores the features; then L-BFGS minimises the mean cross-entropy + l2/2 ||W||^2 from W = 0,
    b = 0, in float64.  The problem is convex, so no seed and no learning rate matter, and the old head does not.

    Args:
        model: a network with a linear head; its modes stay.
        loader: the whole training set, in every process, as it is evaluated; class indices, -100 to be left out.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        l2: weight of the penalty, > 0: without one there is no minimum where the features separate the classes.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.

    Returns:
        The mean cross-entropy at the end, in nats.

    Raises:
        ValueError: if an option is out of range, the head is not linear, frozen, sharded or computed from other
            parameters, or a sample does not fit.
    """
    finite("l2", l2, above=0)
    loss = CrossEntropy(label_smoothing, class_weights)
    network = split(model, head)
    classes = network.weight.shape[0]
    own = list(network.head.parameters())
    if not all(p.requires_grad for p in own) or any(map(distributed.is_sharded, own)):
        raise ValueError(
            f"linear_probe trains the head {network.head_name!r}, which is frozen or sharded: call it before that"
        )
    if not has_own_weight(network.head):
        raise ValueError(
            f"linear_probe sets the weight of the head {network.head_name!r}, which is computed from other parameters"
            " (weight norm, spectral norm, pruning): call it before that, or remove the parametrization"
        )
    with evaluating(network), torch.no_grad(), preserved(loader):
        stored = [(features, targets) for features, targets, _ in features_and_targets(network, loader, classes)]
    if not stored:
        raise ValueError("no batch in the loader: a head cannot be trained without samples")
    loss = loss.cpu().double()
    features, targets = (torch.cat(parts) for parts in zip(*stored, strict=True))
    weight, bias, value = minimised(loss, features, targets, classes, l2=l2, with_bias=network.bias is not None)
    with torch.no_grad():
        network.weight.copy_(weight)
        if network.bias is not None:
            network.bias.copy_(bias)
    return value


def minimised(
    loss: LossFunction, features: Tensor, targets: Tensor, classes: int, *, l2: float, with_bias: bool
) -> tuple[Tensor, Tensor, float]:
    """Minimise loss(F W^T + b, targets) + l2/2 ||W||^2 for features F (N, D) and targets (N,), by L-BFGS.

    Returns:
        W (C, D), b (C,), which is 0 without a bias, and the loss there.
    """
    # Around 0 it takes fewer steps; with a bias, which has no penalty, the minimum is the same.
    centre = features.mean(dim=0) if with_bias else torch.zeros_like(features[0])
    centred = features - centre
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=with_bias)
    optimizer = torch.optim.LBFGS(
        [weight, bias] if with_bias else [weight],
        max_iter=STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        total = loss(F.linear(centred, weight, bias), targets) + 0.5 * l2 * weight.square().sum()
        torch.autograd.backward(total)
        return float(total.detach())

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return weight, bias - weight @ centre, float(loss(F.linear(centred, weight, bias), targets))
