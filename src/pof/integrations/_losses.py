"""Whether labels fit the loss of a method, where a trainer takes floating-point ones for several labels per sample."""

from __future__ import annotations

from pof.methods import Averaged, Method
from pof.perturbation.loss import CrossEntropy


def inner(method: Method) -> Method:
    """Look through averages: the method that reads the network."""
    return inner(method.method) if isinstance(method, Averaged) else method


def own_loss(method: Method) -> bool:
    """Tell whether the user gave the method a loss instead of the cross-entropy."""
    loss = getattr(inner(method), "loss", None)
    return loss is not None and not isinstance(loss, CrossEntropy)


def needs_loss(what: str) -> str:
    """Word the error where ``what`` is there, for which the cross-entropy does not fit."""
    return (
        f"{what}: the cross-entropy of one class per sample does not fit; use pof.PoF(model, loss=...), such as"
        " torch.nn.functional.binary_cross_entropy_with_logits for several labels per sample"
    )
