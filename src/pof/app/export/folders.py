"""Folders that Transformers and timm read, written by these libraries, with the preprocessing as each has it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pof._support.preprocessing import Preprocessing
from pof.models.card import NetworkCard
from pof.models.sources.huggingface import Classifier, quiet
from pof.models.sources.image_processor import FILTERS

Network = Callable[[Tensor], Any]


class ExportError(ValueError):
    """A network that a format cannot hold, or that came back as another one."""


def to_hf(network: nn.Module, card: NetworkCard, folder: Path) -> Network:
    """Write a folder for ``from_pretrained``, and read it again."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("the format hf needs another package: pip install 'pof[transformers]'") from error
    if _is_of_timm(network):
        to_timm(network, card, folder)
        return _read(transformers.AutoModelForImageClassification, folder)
    inner: Any = of_transformers(network)
    if not isinstance(inner, transformers.PreTrainedModel):
        raise _cannot_hold("hf", "Transformers and timm", network, card)
    names = card.classes if card.outputs is None else tuple(map(str, range(card.outputs)))
    inner.config.id2label = dict(enumerate(names))
    inner.config.label2id = {name: c for c, name in enumerate(names)}
    with quiet():
        inner.save_pretrained(folder)
    if card.preprocessing is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor(card.preprocessing), indent=2) + "\n")
    return _read(type(inner), folder)


def of_transformers(network: nn.Module) -> nn.Module:
    """The network of Transformers inside of the one that gives its logits alone; any other network as it is."""
    return network.model if isinstance(network, Classifier) else network


def to_timm(network: nn.Module, card: NetworkCard, folder: Path) -> Network:
    """Write a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``, and read it again."""
    if not _is_of_timm(network):
        raise _cannot_hold("timm", "timm", network, card)
    import timm

    described: Any = copy.copy(network)
    described.pretrained_cfg = _timm_config(dict(described.pretrained_cfg), card)
    labels = {} if card.outputs is not None else {"label_names": list(card.classes)}
    arguments = dict(card.model_args)
    timm.models.save_for_hf(described, str(folder), model_config=labels, model_args=arguments, safe_serialization=True)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    # Said at the top too, where both libraries look; Transformers' wrapper trips over the second one.
    config.get("model_args", {}).pop("num_classes", None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    found: Network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return found


def _read(kind: Any, folder: Path) -> Network:
    with quiet():
        found: Network = kind.from_pretrained(folder).eval()
    return found


def processor(how: Preprocessing) -> dict[str, Any]:
    """The preprocessing as an image processor of Transformers, in its ``preprocessor_config.json``."""
    down, across = how.resized(1, 1)
    return {
        "image_processor_type": "CLIPImageProcessor",  # the one whose resize, crop and normalisation can all be set
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": down, "width": across} if how.squash else {"shortest_edge": down},
        "resample": FILTERS.index(how.interpolation),
        "do_center_crop": True,
        "crop_size": {"height": how.size, "width": how.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


def _timm_config(config: dict[str, Any], card: NetworkCard) -> dict[str, Any]:
    """Describe weights and their input as timm does, for what this network was trained with."""
    kept = {key: value for key, value in config.items() if not key.startswith("test_")}
    kept |= {"num_classes": card.outputs or len(card.classes), "input_size": card.input_shape, "pool_size": None}
    how = card.preprocessing
    if how is None:  # inputs come as tensors, and are taken as they are
        channels = card.input_shape[0]
        return kept | {"mean": card.mean or (0.0,) * channels, "std": card.std or (1.0,) * channels}
    values = {"mean": how.mean, "std": how.std, "interpolation": how.interpolation, "crop_pct": how.crop}
    return kept | values | {"crop_mode": "squash" if how.squash else "center"}


def _is_of_timm(network: nn.Module) -> bool:
    return "architecture" in (getattr(network, "pretrained_cfg", None) or {})


def _cannot_hold(name: str, of: str, network: nn.Module, card: NetworkCard) -> ExportError:
    return ExportError(
        f"the format {name} holds networks of {of}, and {card.model} is a {type(network).__name__}: onnx, torch-export"
        " and safetensors hold it"
    )
