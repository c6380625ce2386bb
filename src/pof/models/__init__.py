"""Models by name: wide and CIFAR ResNets, a small CNN, timm's models, and any ``package.module:factory``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from pof._support.checks import MOST_CLASSES, whole_number
from pof._support.factory import call_factory, import_factory
from pof.models.cifar_resnet import CifarResNet, Shortcut
from pof.models.new_head import replace_head
from pof.models.small_cnn import SmallCNN
from pof.models.wide_resnet import WideResNet
from pof.weights import load_weights

__all__ = [
    "CifarResNet",
    "Shortcut",
    "SmallCNN",
    "WideResNet",
    "build_model",
    "call_factory",
    "import_factory",
    "replace_head",
]

OWN_NAMES = ("wrn-28-10", "wrn-16-4", "resnet20", "resnet56", "resnet20x2", "resnet20-projection", "small-cnn")
PRETRAINED = "pretrained"


def build_model(
    name: str, *, num_classes: int, in_channels: int = 3, weights: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Build a classifier by name.

    Args:
        name: ``wrn-DEPTH-WIDTH``; ``resnet20`` (32, 44, 56, 110) with ``x2`` for double width and
            ``-projection`` for 1x1-convolution shortcuts, as in ``resnet20x2-projection``; ``small-cnn``;
            ``timm:NAME`` or a timm name; ``package.module:factory``, called with ``num_classes`` and
            ``in_channels`` if it takes them.
        num_classes: number of classes C.
        in_channels: channels of the images.
        weights: a file for :func:`pof.weights.load_weights`; for timm models also ``"pretrained"``, the
            published weights with a new head.

    Returns:
        The model, in training mode, on the CPU.

    Raises:
        ValueError: if the name is unknown (similar names are listed), the model cannot be built with these
            numbers, or the weights do not fit.
    """
    if num_classes < 1:
        raise ValueError(f"a network needs at least 1 output; got num_classes={num_classes}")
    whole_number("num_classes", num_classes, 1, MOST_CLASSES)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    families: dict[str, Callable[..., nn.Module]] = {
        r"wrn-(\d+)-(\d+)": lambda depth, width: WideResNet(int(depth), int(width), **sizes),
        r"resnet(20|32|44|56|110)(?:x(\d+))?(-projection)?": lambda depth, width, projection: CifarResNet(
            int(depth), width=int(width or 1), shortcut="projection" if projection else "pad", **sizes
        ),
        r"small-cnn": lambda: SmallCNN(**sizes),
    }
    pretrained = weights == PRETRAINED
    matches = ((re.fullmatch(pattern, name), build) for pattern, build in families.items())
    found = next(((match, build) for match, build in matches if match), None)
    if pretrained and (found or (":" in name and not name.startswith("timm:"))):
        raise ValueError(f"weights='pretrained' is known for timm models only; for {name!r} give a file")
    if found:
        model = found[1](*found[0].groups())
    elif ":" in name and not name.startswith("timm:"):
        model = _from_factory(name, sizes)
    else:
        model = _from_timm(name, num_classes=num_classes, in_channels=in_channels, pretrained=pretrained)
    if weights is not None and not pretrained:
        load_weights(model, weights)
    return model


def _from_factory(name: str, sizes: dict[str, Any]) -> nn.Module:
    model = call_factory(name, offered=sizes, wanted=("num_classes",))
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name!r} must return a torch.nn.Module; it returned a {type(model).__name__}")
    return model


def _from_timm(name: str, *, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"unknown model {name!r}; ours are {', '.join(OWN_NAMES)}; for timm's: pip install timm"
        ) from error
    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        similar = difflib.get_close_matches(plain, [*OWN_NAMES, *timm.list_models()], n=3)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise ValueError(
            f"unknown model {name!r}{hint}; known are {', '.join(OWN_NAMES)} and their relatives, "
            "timm's names, and package.module:factory"
        )
    try:
        model: nn.Module = timm.create_model(
            plain, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
        )
    except Exception as error:  # timm's constructors and its download raise many kinds
        raise ValueError(
            f"timm cannot build {plain!r} with num_classes={num_classes}, in_chans={in_channels}, "
            f"pretrained={pretrained}: {type(error).__name__}: {error}"
        ) from error
    return model
