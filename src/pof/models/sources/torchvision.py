"""Classifiers of torchvision, with the published weights that torchvision calls ``DEFAULT``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from pof._support.preprocessing import Preprocessing
from pof.models.sources.base import PRETRAINED, Request, Source, argument_of_size, side_of


def _names() -> Sequence[str]:
    import torchvision

    return cast("Sequence[str]", torchvision.models.list_models(module=torchvision.models))


def _size_argument(name: str) -> str | None:
    """How a network that takes images of one size only calls it."""
    return "image_size" if name.startswith("vit_") else "input_size" if name.startswith("maxvit") else None


def _build(request: Request) -> nn.Module:
    if request.in_channels != 3:
        raise ValueError(
            f"torchvision's {request.name!r} takes images of 3 channels, not of {request.in_channels}: timm has"
            " networks for any number"
        )
    options: dict[str, Any] = {**(_decided(request) if request.pretrained else {}), **request.args}
    if (argument := _size_argument(request.name)) is not None:
        published = _transforms(request.name).crop_size[0]
        if request.pretrained and request.image_size not in {None, published}:
            raise ValueError(
                f"torchvision's weights of {request.name!r} are for images of {published} px, not of"
                f" {request.image_size}: give --image_size {published}, or use timm, which fits them to other sizes"
            )
        found = argument_of_size(request, argument, 224)
        options |= {name: (size, size) if argument == "input_size" else size for name, size in found.items()}
    try:
        model = _network(request.name, request.num_classes, **options)
        return _with_published_weights(model, request) if request.pretrained else model
    except Exception as error:  # the constructors and the download raise many kinds
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        raise ValueError(
            f"torchvision cannot build {request.name!r} with num_classes={request.num_classes}{given},"
            f" pretrained={request.pretrained}: {type(error).__name__}: {error}"
        ) from error


def _network(name: str, num_classes: int, **options: Any) -> nn.Module:
    import torchvision

    return cast("nn.Module", torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options))


def _with_published_weights(model: nn.Module, request: Request) -> nn.Module:
    """The network with the published weights; what has another shape, the head and auxiliary ones, stays new."""
    import torchvision

    # The constructor with weights sets more than weights: how GoogLeNet and Inception normalise.
    published: nn.Module = torchvision.models.get_model(request.name, weights="DEFAULT", **request.args)
    new = dict(model.named_parameters())
    for name, parameter in published.named_parameters():
        if parameter.shape != new[name].shape:
            parent, _, attribute = name.rpartition(".")
            layer: Any = published.get_submodule(parent)
            setattr(layer, attribute, new[name])
            for size in ("out_features", "out_channels"):
                if hasattr(layer, size):
                    setattr(layer, size, request.num_classes)
    return published


def _transforms(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT.transforms()


def _preprocessing(request: Request) -> Preprocessing:
    found = _transforms(request.name)
    crop, resized = found.crop_size[0], found.resize_size[0]
    size = side_of(request.args.get(_size_argument(request.name) or ""))
    return Preprocessing(size or crop, found.mean, found.std, found.interpolation.value, crop / resized)


def _classes(request: Request) -> int:
    import torchvision

    return len(torchvision.models.get_model_weights(request.name).DEFAULT.meta["categories"])


def _decided(request: Request) -> dict[str, Any]:
    """What the constructors of these two set with weights alone: without it the same weights are another network."""
    if request.name not in {"googlenet", "inception_v3"}:
        return {}
    return {"transform_input": True, "aux_logits": request.name == "inception_v3", "init_weights": False}


TORCHVISION = Source(
    _build,
    lambda name: name in _names(),
    PRETRAINED.__eq__,
    _names,
    _preprocessing,
    classes=_classes,
    decided=_decided,
)
