"""Networks of timm: its names, and its folders by ``local-dir:FOLDER`` and ``hf-hub:NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from pof._support.preprocessing import Preprocessing
from pof.models.sources.base import PRETRAINED, Request, Source, argument_of_size, check_order, side_of

ELSEWHERE = ("local-dir:", "hf-hub:", "hf_hub:")


def _knows(name: str) -> bool:
    import timm

    return name.startswith(ELSEWHERE) or bool(timm.is_model(name))


def _names() -> Sequence[str]:
    import timm

    return cast("Sequence[str]", timm.list_models())


def _config(request: Request) -> Mapping[str, Any]:
    """What timm says of a network: sizes, preprocessing, where its weights are."""
    import timm
    from timm.models import get_pretrained_cfg

    if request.name.startswith(ELSEWHERE):
        with torch.device("meta"):
            made: Any = timm.create_model(request.name)
        found: Mapping[str, Any] = made.pretrained_cfg
    else:
        registered: Any = get_pretrained_cfg(request.name)
        found = {} if registered is None else registered.to_dict()
    given = request.args.get("pretrained_cfg")
    own = given if isinstance(given, Mapping) else {}
    return {**found, **own, **(request.args.get("pretrained_cfg_overlay") or {})}


def _build(request: Request) -> nn.Module:
    import timm

    size: dict[str, Any] = {}
    remedy = ""
    try:
        config = _config(request)
        if config.get("fixed_input_size") and not request.args.get("dynamic_img_size"):
            own = config["input_size"][-1]
            size = argument_of_size(request, "img_size", own)
            remedy = f"; its own size is {own} px: --image_size {own}" if size else ""
        model: nn.Module = timm.create_model(
            request.name,
            pretrained=request.pretrained,
            num_classes=request.num_classes,
            in_chans=request.in_channels,
            **size,
            **request.args,
        )
    except Exception as error:  # timm's constructors and its download raise many kinds
        others = "".join(f", {name}={value!r}" for name, value in {**size, **request.args}.items())
        raise ValueError(
            f"timm cannot build {request.name!r} with num_classes={request.num_classes},"
            f" in_chans={request.in_channels}, pretrained={request.pretrained}{others}: {type(error).__name__}:"
            f" {error}{remedy}"
        ) from error
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    if request.pretrained and len(names) == request.num_classes:
        check_order(f"timm:{request.name}", names, request)
    return model


def _preprocessing(request: Request) -> Preprocessing:
    return preprocessing_in(_config(request), f"timm's {request.name!r}", side_of(request.args.get("img_size")))


def preprocessing_in(described: Mapping[str, Any], name: str, size: int | None = None) -> Preprocessing:
    """The preprocessing that a ``pretrained_cfg`` of timm describes; ``size`` in pixels is that of other images."""
    from timm.data import config

    resolve: Any = config.resolve_data_config
    found = resolve({"img_size": size}, pretrained_cfg=dict(described))
    *_, height, width = found["input_size"]
    if height != width or found["crop_mode"] not in {"center", "squash"}:
        raise ValueError(
            f"{name} takes images of {height} x {width} px, crop mode {found['crop_mode']!r}; images"
            " are made square here: give --image_size, --mean, --std, --interpolation and --crop"
        )
    return Preprocessing(
        height, found["mean"], found["std"], found["interpolation"], found["crop_pct"], found["crop_mode"] == "squash"
    )


def _classes(request: Request) -> int | None:
    if isinstance(request.args.get("pretrained_cfg"), str):  # a tag, of which timm alone knows more
        return None
    found = _config(request).get("num_classes")
    return None if found is None else int(found)


TIMM = Source(_build, _knows, PRETRAINED.__eq__, _names, _preprocessing, classes=_classes)
