"""What a source of networks is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pof._support.preprocessing import Preprocessing
from pof._support.text import first_of

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Request:
    """Which network is asked for.

    Args:
        name: as its source calls it.
        num_classes: number of classes C.
        in_channels: channels of the inputs.
        image_size: side of square images in pixels; None if there are none, or it is not known.
        weights: ``"pretrained"``, a file, or a folder; None for a random initialisation.
        args: further arguments, as the source takes them.
        classes: names of the classes, in the order of the outputs; empty if the head will be replaced.
        in_features: width of feature vectors, instead of images; None for images.
    """

    name: str
    num_classes: int = 2
    in_channels: int = 3
    image_size: int | None = None
    weights: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    in_features: int | None = None

    @property
    def pretrained(self) -> bool:
        """Whether the published weights are asked for."""
        return self.weights == PRETRAINED


@dataclass(frozen=True)
class Source:
    """Where networks come from; all of it imports what it needs when it is called.

    Args:
        build: makes a network.
        knows: whether a name is one of a network of this source.
        reads: whether ``build`` puts these weights into the network itself.
        names: those that can be listed.
        preprocessing: of images, as the network was trained with; None if that is not known.
        of_images: whether a network takes images alone, and no vectors.
        classes: number of classes of the published head, 0 where there is none; None if that is not known.
        decided: arguments that the published weights set beyond those given.
    """

    build: Callable[[Request], nn.Module]
    knows: Callable[[str], bool]
    reads: Callable[[str], bool] = PRETRAINED.__eq__
    names: Callable[[], Sequence[str]] = tuple
    preprocessing: Callable[[Request], Preprocessing | None] = lambda request: None
    of_images: Callable[[Request], bool] = lambda request: True
    classes: Callable[[Request], int | None] = lambda request: None
    decided: Callable[[Request], Mapping[str, Any]] = lambda request: {}


def argument_of_size(request: Request, argument: str, own: int) -> dict[str, int]:
    """The argument by which a network of a fixed size is built for the images, if it is needed.

    Args:
        request: which network.
        argument: how the source calls the size.
        own: side of the network's images in pixels if nothing is said.

    Returns:
        The argument with its value; empty if the network is right as it is.

    Raises:
        ValueError: if the user's arguments say another size than the images have.
    """
    size, given = request.image_size, request.args.get(argument)
    if given is not None and size is not None and side_of(given) != size:
        raise ValueError(
            f"{request.name}: the argument {argument} is {given}, but the images have {size} px: give the same size for"
            f" both (--image_size), or leave {argument} out"
        )
    return {} if size is None or given is not None or size == own else {argument: size}


def side_of(size: Any) -> int | None:
    """The side of square images, of a number or of both sides; None of anything else."""
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None


def check_order(name: str, own: Sequence[str], request: Request) -> None:
    """Refuse a head that is kept, and has a class of the data in another place; names may be written another way."""
    places = {_plain(text): place for place, text in enumerate(own)}
    if any(places.get(_plain(text), place) != place for place, text in enumerate(request.classes)):
        raise ValueError(
            f"{name} has its classes in the order {first_of(own)}, the data in another ({first_of(request.classes)}):"
            " name the class folders so that they sort like that"
        )


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", str(text)).strip().casefold()


def position_options(model: nn.Module, config: Any, image_size: int | None) -> dict[str, bool]:
    """The option by which a network of Transformers fits its position embeddings to images of another size."""
    own = side_of(getattr(config, "image_size", None))
    other = image_size is not None and own not in {None, image_size}
    name = "interpolate_pos_encoding"
    return {name: True} if other and name in inspect.signature(model.forward).parameters else {}
