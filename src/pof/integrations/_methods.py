"""What trainers of other people need to know about a method beyond its interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pof.head.split import SplitModel
from pof.methods import Averaged, Method
from pof.perturbation.loss import CrossEntropy


def inner(method: Method) -> Method:
    """Look through averages.

    Returns:
        The method that reads the network.
    """
    return inner(method.method) if isinstance(method, Averaged) else method


def own_loss(method: Method) -> bool:
    """Tell whether the user gave the method a loss in the place of the cross-entropy."""
    loss = getattr(inner(method), "loss", None)
    return loss is not None and not isinstance(loss, CrossEntropy)


def needs_loss(what: str) -> str:
    """Word an error.

    Args:
        what: is there, for which the cross-entropy does not fit.

    Returns:
        The message, with the remedy.
    """
    return (
        f"{what}: the cross-entropy of one class per sample does not fit; use pof.PoF(model, loss=...), such as"
        " torch.nn.functional.binary_cross_entropy_with_logits for several labels per sample"
    )


@contextmanager
def calling(network: SplitModel, wrapped: nn.Module) -> Iterator[None]:
    """Let a split network call a wrapper of its model, such as DDP, in the body."""
    plain, head = network.model, network.head_name
    prefix = next(name for name, module in wrapped.named_modules() if module is plain)
    network.model, network.head_name = wrapped, f"{prefix}.{head}"
    try:
        yield
    finally:
        network.model, network.head_name = plain, head
