"""Classifiers of Hugging Face Transformers, of images and of texts: a folder, or a name on the hub.

Sharded files and the names of older versions are Transformers' own business: it reads them.  No code that comes with a
network is executed.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from glob import escape as glob_escape
from glob import glob
from typing import Any

from torch import Tensor, nn

from pof._support.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pof._support.text import reason
from pof.models.sources import zero_shot
from pof.models.sources.base import PRETRAINED, Request, Source, check_order, position_options, side_of
from pof.models.sources.image_processor import read_processor
from pof.models.sources.timm import preprocessing_in

CONFIG = "config.json"
OF_CLASSES = re.compile(r"For(Sequence|Image)Classification")
"""How Transformers names what has a head of classes; a user's own class may have any other name."""
OF_TIMM = "pretrained_cfg"
"""In the configuration of a network of timm: its preprocessing and classes."""
SAVED = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
"""Names of the files that hold the weights of such a folder; another one beside them is somebody's own."""


class Classifier(nn.Module):
    """A classifier of Transformers that returns its logits (N, C) alone.

    Attributes:
        model: of Transformers, for ``save_pretrained``.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, inputs: Tensor | None = None, **named: Any) -> Tensor:
        """Logits (N, C) of images (N, K, H, W) or token numbers (N, T), or of inputs by name."""
        first = () if inputs is None else (inputs,)
        logits: Tensor = self.model(*first, **named, **self.options).logits
        return logits


def saved_by_transformers(weights: str) -> bool:
    """Whether weights are a folder of Transformers, or the file in one that Transformers reads."""
    folder, name = (weights, "") if os.path.isdir(weights) else os.path.split(weights)
    if not os.path.isfile(os.path.join(folder, CONFIG)):
        return False
    preferred = glob(os.path.join(glob_escape(folder), "model*.safetensors*"))
    return not name or (SAVED.fullmatch(name) is not None and (".safetensors" in name or not preferred))


def _reads(weights: str) -> bool:
    return weights == PRETRAINED or saved_by_transformers(weights)


def _origin(request: Request) -> str | None:
    """The folder or name that the weights come from; None if from elsewhere."""
    weights = request.weights
    if weights is None or not _reads(weights):
        return None
    return request.name if weights == PRETRAINED else weights if os.path.isdir(weights) else os.path.dirname(weights)


def _config(request: Request, name: str) -> Any:
    """The configuration, with the user's changes."""
    from transformers import AutoConfig

    args = {key: value for key, value in request.args.items() if key not in zero_shot.ARGUMENTS}
    if forbidden := {"trust_remote_code", "num_labels", "id2label", "label2id"} & args.keys():
        raise ValueError(f"hf:{request.name}: {min(forbidden)} is no argument here; leave it out")
    try:
        config, unused = AutoConfig.from_pretrained(name, return_unused_kwargs=True, trust_remote_code=False, **args)
    except Exception as error:  # the hub and damaged files raise many kinds
        raise ValueError(
            f"hf:{name} cannot be read: {reason(error)}; give a folder that save_pretrained wrote"
        ) from error
    if unused:
        raise ValueError(f"hf:{request.name}: its configuration has no {min(unused)!r}")
    return config


def _build(request: Request) -> nn.Module:
    origin = _origin(request)
    config = _config(request, origin or request.name)
    if zero_shot.is_zero_shot(config):
        with quiet():
            return zero_shot.build(request, config, origin)
    kept = config.num_labels == request.num_classes and origin is not None
    if kept:
        check_order(f"hf:{request.name}", [config.id2label[index] for index in sorted(config.id2label)], request)
    _set_classes(request, config)
    if (channels := getattr(config, "num_channels", None)) not in {None, request.in_channels}:
        if origin is not None:
            raise ValueError(
                f"hf:{request.name} takes images of {channels} channels, not of {request.in_channels}: without its"
                " weights it can be built for them"
            )
        config.num_channels = request.in_channels
    with quiet():
        model, _ = _model(request, config, origin)
    return Classifier(model, **position_options(model, config, request.image_size)).train()


def _model(request: Request, config: Any, origin: str | None) -> tuple[Any, bool]:
    """The network of Transformers, with a new head where the old one is of other classes; and whether it has one."""
    kind: Any = _kind(request, config)
    if origin is None:
        return kind.from_config(config), True
    try:
        model, found = kind.from_pretrained(
            origin, config=config, ignore_mismatched_sizes=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # the hub and damaged files raise many kinds
        raise ValueError(f"hf:{origin}: its weights cannot be read: {reason(error)}") from error
    new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if lost := sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.")):
        raise ValueError(f"hf:{origin}: {len(lost)} of its weights are missing or have another shape: {lost[0]}, ...")
    return model, bool(new)


def _kind(request: Request, config: Any) -> Any:
    """Which class of Transformers reads it."""
    import transformers
    from transformers.models.auto import modeling_auto as known

    kinds = {
        "ForSequenceClassification": (
            transformers.AutoModelForSequenceClassification,
            known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        ),
        "ForImageClassification": (
            transformers.AutoModelForImageClassification,
            known.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        ),
    }
    said = [ending for ending in kinds if any(name.endswith(ending) for name in config.architectures or ())]
    for ending in (*said, *kinds):
        if type(config) in kinds[ending][1]:
            return kinds[ending][0]
    raise ValueError(
        f"hf:{request.name} is a {config.model_type}, of which Transformers has no classifier of images or texts"
    )


def _set_classes(request: Request, config: Any) -> None:
    config.num_labels = request.num_classes
    if request.classes:
        config.id2label = dict(enumerate(request.classes))
        config.label2id = {name: index for index, name in enumerate(request.classes)}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of Transformers: what is wrong is an error here."""
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _of_images(request: Request) -> bool:
    return _takes_images(_config(request, _origin(request) or request.name))


def _takes_images(config: Any) -> bool:
    return any(hasattr(config, setting) for setting in ("image_size", "num_channels", "vision_config", OF_TIMM))


def _preprocessing(request: Request) -> Preprocessing | None:
    """As published; of weights without a processor that of the network they were trained from."""
    origin = _origin(request) or request.name
    config = _config(request, origin)
    if not _takes_images(config):
        return None
    if isinstance(getattr(config, OF_TIMM, None), dict):
        return preprocessing_in(config.pretrained_cfg, f"hf:{origin}")
    size, found, other = (
        side_of(getattr(config, "image_size", None)),
        read_processor(origin),
        "image_size" in request.args,
    )
    if found is None and origin != request.name and (found := read_processor(request.name)) is not None:
        before = _config(request, request.name)  # such as 224 px, fine-tuned to 384
        other = other or size != side_of(getattr(before, "image_size", None))
    if found is not None and size is not None and other:
        found = replace(found, size=size)
    if found is None and size is not None:
        warnings.warn(
            f"hf:{origin} comes without preprocessor_config.json, so images get the {size} px of its configuration and"
            " ImageNet's mean and standard deviation: if it was trained otherwise, give --mean, --std, --interpolation"
            " and --crop",
            stacklevel=2,
        )
        return Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD)
    return found


def _classes(request: Request) -> int | None:
    origin = _origin(request)
    config = _config(request, origin or request.name)
    if zero_shot.is_zero_shot(config):  # its head is made of the names of the classes
        return None
    return int(config.num_labels) if _has_head(request, config, origin) else 0


def _has_head(request: Request, config: Any, origin: str | None) -> bool:
    """Whether the weights have a head of classes: by their class's name, or else by what they lack."""
    import transformers

    names = config.architectures or ()
    if any(OF_CLASSES.search(name) for name in names):
        return True
    if any(hasattr(transformers, name) for name in names):
        return False
    with quiet():
        return not _model(request, config, origin)[1]


HUGGING_FACE = Source(
    _build, lambda name: True, _reads, preprocessing=_preprocessing, of_images=_of_images, classes=_classes
)
