"""A new head for a pre-trained backbone, instead of the old one."""

from __future__ import annotations

from torch import nn

from pof._support.checks import whole_number
from pof.head.split import split


def replace_head(model: nn.Module, num_classes: int, head: str | None = None) -> nn.Module:
    """Replace a linear head by a freshly initialised one for other classes, in place.

    Args:
        model: any network with a linear head.
        num_classes: C of the new head.
        head: qualified name of the head; found by :func:`pof.find_head` if None.

    Returns:
        The new head; torch's own initialisation, from the global generator.

    Raises:
        ValueError: if the head is not linear.
    """
    whole_number("num_classes", num_classes, 1)
    network = split(model, head)
    weight, bias = network.weight, network.bias is not None
    old = network.head
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(weight.shape[1], num_classes, 1, bias=bias)
    else:
        new = nn.Linear(weight.shape[1], num_classes, bias=bias)
    new.to(weight.device, weight.dtype)
    parent, _, name = network.head_name.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
    return new
