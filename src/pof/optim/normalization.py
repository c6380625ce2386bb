"""Which parameters belong to normalisation layers: what SAM-ON perturbs."""

from __future__ import annotations

import re
from functools import cache

from torch import Tensor, nn

LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
# "Normal" is a distribution or an initialisation, "Normalize" and "Normalization" are what is meant.
NAME = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)


def normalization_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Find the parameters of a model's normalisation layers (their affine weights and biases).

    A module counts as a normalisation layer if it is one of torch's (``LAYERS``, lazy ones and subclasses, such as
    timm's, included).  A custom class counts if it has a buffer ``running_mean``, or if "norm" occurs in
    the name of the class or of one it derives from; its own parameters must then be scales and shifts (at most one
    dimension larger than one), so that a convolution with weight normalisation does not count.  Only a layer's own
    parameters are taken, not those of modules inside it.

    Args:
        model: any module.

    Returns:
        The parameters, each once, in the order of ``model.parameters()``.
    """
    found = {id(p) for module in model.modules() if is_normalization(module) for p in module.parameters(recurse=False)}
    return [p for p in model.parameters() if id(p) in found]


def is_normalization(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer, by the rule of :func:`normalization_parameters`.

    Returns:
        True if it is.
    """
    if isinstance(module, LAYERS):
        return True
    named = any(called_norm(c.__name__) for c in type(module).__mro__)
    if not named and not isinstance(getattr(module, "running_mean", None), Tensor):
        return False
    return all(sum(size > 1 for size in p.shape) <= 1 for p in module.parameters(recurse=False))


@cache
def called_norm(name: str) -> bool:
    """Tell whether the name of a class is that of a norm.

    Returns:
        True if it is.
    """
    return NAME.search(name) is not None
