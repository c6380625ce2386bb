"""Our own networks: wide and CIFAR ResNets, and a small CNN."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from pof.models.cifar_resnet import CifarResNet
from pof.models.small_cnn import SmallCNN
from pof.models.sources.base import Request, Source
from pof.models.wide_resnet import WideResNet

NAMES = ("wrn-28-10", "wrn-16-4", "resnet20", "resnet56", "resnet20x2", "resnet20-projection", "small-cnn")
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    r"wrn-(\d+)-(\d+)": lambda depth, width, **options: WideResNet(int(depth), int(width), **options),
    r"resnet(20|32|44|56|110)(?:x(\d+))?(-projection)?": lambda depth, width, projection, **options: CifarResNet(
        int(depth), width=int(width or 1), shortcut="projection" if projection else "pad", **options
    ),
    r"small-cnn": lambda **options: SmallCNN(**options),
}


def _find(name: str) -> tuple[re.Match[str], Callable[..., nn.Module]] | None:
    matches = ((re.fullmatch(pattern, name), make) for pattern, make in FAMILIES.items())
    return next(((match, make) for match, make in matches if match), None)


def _build(request: Request) -> nn.Module:
    found = _find(request.name)
    assert found is not None  # the name was asked for
    match, make = found
    try:
        sizes = {"num_classes": request.num_classes, "in_channels": request.in_channels}
        return make(*match.groups(), **sizes, **request.args)
    except TypeError as error:
        raise ValueError(f"{request.name!r} cannot take the arguments {dict(request.args)}: {error}") from error


OWN = Source(build=_build, knows=lambda name: _find(name) is not None, reads=lambda weights: False, names=lambda: NAMES)
