"""Networks that a user's own function makes, ``package.module:factory``."""

from __future__ import annotations

from torch import nn

from pof._support.factory import call_factory
from pof.models.sources.base import Request, Source


def _build(request: Request) -> nn.Module:
    offered: dict[str, int] = {"num_classes": request.num_classes}
    if request.in_features is not None:
        offered["in_features"] = request.in_features
    else:
        offered["in_channels"] = request.in_channels
        offered |= {} if request.image_size is None else {"image_size": request.image_size}
    model = call_factory(request.name, offered=offered, wanted=("num_classes",), given=dict(request.args))
    if not isinstance(model, nn.Module):
        raise ValueError(f"{request.name!r} must return a torch.nn.Module; it returned a {type(model).__name__}")
    return model


FACTORY = Source(
    build=_build, knows=lambda name: ":" in name, reads=lambda weights: False, of_images=lambda request: False
)
