"""Networks by name, from whichever source has them, and the preprocessing that they were trained with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pof._support.checks import MOST_CLASSES, whole_number
from pof._support.preprocessing import Preprocessing
from pof.models.sources import PREFIXED, PRETRAINED, Request, find_source
from pof.weights import load_weights


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    in_features: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    classes: Sequence[str] = (),
) -> nn.Module:
    """Build a classifier by name.

    Args:
        name: ``wrn-DEPTH-WIDTH``; ``resnet20`` (32, 44, 56, 110) with ``x2`` for double width and
            ``-projection`` for 1x1-convolution shortcuts, as in ``resnet20x2-projection``; ``small-cnn`` or
            ``small-cnnx4``; ``timm:NAME``, ``torchvision:NAME``, or a name that one of the two knows; ``hf:FOLDER`` or
            a name on the Hugging Face hub; ``package.module:factory``.  docs/models.md has all of them.
        num_classes: number of outputs C: mostly that of the classes.
        in_channels: channels of the images.
        in_features: width D of feature vectors (N, D), instead of images: of factories, and T of texts (N, T).
        weights: a file for :func:`pof.weights.load_weights`; ``"pretrained"``, the published weights of timm,
            torchvision or Hugging Face, with a new head unless it has as many classes; for ``hf:`` also a folder of
            Transformers.
        args: further arguments of the network, as its source takes them, such as ``{"drop_path_rate": 0.1}``.
        image_size: side of the images in pixels; networks of a fixed size are built for it.
        classes: names of the classes, in the order of the outputs; the head of a zero-shot network is made of them.

    Returns:
        The model, in training mode, on the CPU; its output is logits (N, C).

    Raises:
        ValueError: if the name is unknown (similar names are listed) or known to two sources, the model cannot be
            built with these numbers, or the weights do not fit.
    """
    if num_classes < 1:
        raise ValueError(f"a network needs at least 1 output; got num_classes={num_classes}")
    whole_number("num_classes", num_classes, 1, MOST_CLASSES)
    if classes and len(classes) != num_classes:
        raise ValueError(f"num_classes={num_classes}, but there are {len(classes)} names in classes: give one of each")
    if fixed := sorted({"num_classes", "in_channels"} & set(args or ())):
        raise ValueError(f"{fixed[0]} is no further argument of a network: the data say it; leave it out of args")
    source, own_name = find_source(name)
    given = None if weights is None else os.fspath(weights)
    if given == PRETRAINED and not source.reads(given):
        raise ValueError(
            f"weights='pretrained' is known for {', '.join(f'{prefix}:' for prefix in PREFIXED)} only; for {name!r}"
            " give a file"
        )
    sizes = (num_classes, in_channels, image_size)
    request = Request(own_name, *sizes, given, dict(args or {}), tuple(classes), in_features)
    if in_features is not None and source.of_images(request):
        raise ValueError(
            f"{name!r} takes images, and the data are vectors of {in_features} features: give a factory,"
            " package.module:factory, that takes in_features and num_classes"
        )
    model = source.build(request)
    if given is not None and not source.reads(given):
        load_weights(model, given)
    return model


def preprocessing_of(
    name: str, args: Mapping[str, Any] | None = None, weights: str | os.PathLike[str] | None = None
) -> Preprocessing | None:
    """Tell how images become a network's inputs, as whoever published it says.

    Args:
        name: of the network, as :func:`build_model` takes it.
        args: further arguments of the network; a size among them counts.
        weights: as :func:`build_model` takes them; a folder of Transformers may have a preprocessing of its own.

    Returns:
        timm's ``resolve_data_config``, the transforms of torchvision's weights, the image processor of Hugging Face;
        None for our own networks, factories, and networks of texts.

    Raises:
        ValueError: if the name is unknown, or the preprocessing is none that :class:`Preprocessing` can say.
    """
    source, own_name = find_source(name)
    given = None if weights is None else os.fspath(weights)
    return source.preprocessing(Request(own_name, weights=given, args=dict(args or {})))


def published_classes(name: str, args: Mapping[str, Any], weights: str | os.PathLike[str] | None) -> int | None:
    """Count the classes of a published head; 0 where there is none, None where these weights are of no source."""
    source, own_name = find_source(name)
    given = None if weights is None else os.fspath(weights)
    if given is None or not source.reads(given):
        return None
    return source.classes(Request(own_name, weights=given, args=dict(args)))


def published_arguments(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network with its published weights: those given, and what these weights set beside them."""
    source, own_name = find_source(name)
    return {**source.decided(Request(own_name, weights=PRETRAINED, args=dict(args))), **args}


def input_arguments(shape: Sequence[int]) -> dict[str, Any]:
    """What :func:`build_model` is told of inputs of a shape: (K, H, W) of images, (D,) of vectors."""
    square = len(shape) == 3 and shape[1] == shape[2]
    return {
        "in_channels": shape[0],
        "in_features": shape[0] if len(shape) == 1 else None,
        "image_size": shape[1] if square else None,
    }
