"""Zero-shot classifiers made of networks like CLIP (Radford et al., ICML 2021, arXiv 2103.00020, section 3.1).

The head is linear: its rows are the normalised embeddings of the classes' names in a sentence, times the scale of the
logits.  WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903) fine-tunes such a network, and averages it with itself
as it was: :func:`pof.interpolate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pof._support.text import first_of, reason
from pof.models.sources.base import Request, position_options

KINDS = ("clip", "siglip")
TEMPLATE = "a photo of a {}."
ARGUMENTS = ("templates",)


class ZeroShotClassifier(nn.Module):
    """The image tower of a network of images and texts, and a linear head on its normalised embeddings.

    Attributes:
        vision_model: from images (N, 3, H, W).
        visual_projection: to embeddings (N, D).
        head: to logits (N, C).
    """

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module, head: nn.Linear, **options: Any) -> None:
        super().__init__()
        self.vision_model, self.visual_projection, self.head = vision_model, visual_projection, head
        self.options = options

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        embeddings = self.visual_projection(self.vision_model(pixel_values=images, **self.options).pooler_output)
        logits: Tensor = self.head(embeddings / embeddings.norm(dim=-1, keepdim=True))
        return logits


def is_zero_shot(config: Any) -> bool:
    """Whether a configuration of Transformers is one of a network of images and texts."""
    known = any(str(name).endswith("ForImageClassification") for name in config.architectures or ())
    return config.model_type in KINDS and hasattr(config, "vision_config") and not known


def build(request: Request, config: Any, origin: str | None) -> ZeroShotClassifier:
    """Make the classifier: without names of classes, or without weights, its head is a new one."""
    from transformers import AutoModelForZeroShotImageClassification

    kind: Any = AutoModelForZeroShotImageClassification
    if request.in_channels != 3:
        raise ValueError(f"hf:{request.name} takes images of 3 channels, not of {request.in_channels}")
    try:
        both: Any = (
            kind.from_config(config)
            if origin is None
            else kind.from_pretrained(origin, config=config, trust_remote_code=False)
        )
    except Exception as error:  # the hub and damaged files raise many kinds
        raise ValueError(f"hf:{request.name} cannot be built: {reason(error)}") from error
    projection = getattr(both, "visual_projection", nn.Identity())
    shift = getattr(both, "logit_bias", None)
    width = config.vision_config.hidden_size if isinstance(projection, nn.Identity) else projection.out_features
    head = nn.Linear(width, request.num_classes, bias=shift is not None)
    if origin is not None and request.classes:
        rows = _text_embeddings(both.eval(), origin, request)
        with torch.no_grad():
            head.weight.copy_(both.logit_scale.exp() * rows)
            if shift is not None:
                head.bias.copy_(shift.expand(len(rows)))
    options = position_options(both.vision_model, config.vision_config, request.image_size)
    return ZeroShotClassifier(both.vision_model, projection, head, **options).train()


@torch.no_grad()
def _text_embeddings(both: Any, origin: str, request: Request) -> Tensor:
    """Normalised embeddings of the classes' names (C, D): means over the templates, normalised again."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(origin, trust_remote_code=False)
    except Exception as error:  # files that are missing or damaged raise many kinds
        raise ValueError(
            f"hf:{origin} has no tokenizer that can be read, which the names of the classes need: {reason(error)}"
        ) from error
    rows, seen = [], set()
    for name in request.classes:
        texts = [template.format(name.replace("_", " ")) for template in _templates(request)]
        padding = "max_length" if both.config.model_type == "siglip" else True  # as each was trained
        tokens = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")
        seen.add(str(tokens["input_ids"].tolist()))
        found = both.get_text_features(**{key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens})
        embeddings = getattr(found, "pooler_output", found)
        rows.append((embeddings / embeddings.norm(dim=-1, keepdim=True)).mean(dim=0))
    # Without its files Transformers makes a tokenizer of no words.
    if len(seen) < len(rows):
        raise ValueError(f"hf:{origin}: its tokenizer does not tell the classes apart: {first_of(request.classes)}")
    stacked = torch.stack(rows)
    normalised: Tensor = stacked / stacked.norm(dim=-1, keepdim=True)
    return normalised


def _templates(request: Request) -> list[str]:
    given = request.args.get("templates", TEMPLATE)
    templates = [given] if isinstance(given, str) else list(given)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"templates are sentences with one {{}} for the name of a class; got {template!r}")
    return templates
