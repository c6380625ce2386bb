"""What a network needs to be used, in plain values: stored in the header of its weights, beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pof._support.preprocessing import Preprocessing
from pof.models.build import build_model, input_arguments
from pof.models.new_head import replace_head

KEY = "pof"


@dataclass(frozen=True)
class NetworkCard:
    """How to build a trained network, what it takes, and what its outputs mean.

    Args:
        model: its name, as :func:`pof.models.build_model` takes it.
        classes: names of the C classes, in the order of the outputs.
        input_shape: of one input, (K, H, W) for images.
        model_args: further arguments of the model.
        head: qualified name of the head; None: found by :func:`pof.find_head`.
        preprocessing: of images that come as files; None for inputs that come as tensors.
        outputs: number of outputs, where it is not one for each class.
        source_classes: number of classes to build the model for, before it gets a new head for its C; None: C.
        mean: per channel, of images in memory that are not square, for which there is no preprocessing of files.
        std: the same.
    """

    model: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    model_args: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    preprocessing: Preprocessing | None = None
    outputs: int | None = None
    source_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def build(self) -> nn.Module:
        """Build the network, without its weights."""
        outputs = self.outputs or len(self.classes)
        network = build_model(
            self.model,
            num_classes=self.source_classes or outputs,
            args=self.model_args,
            classes=self.classes if self.source_classes is None and outputs == len(self.classes) else (),
            **input_arguments(self.input_shape),
        )
        if self.source_classes is not None:
            replace_head(network, outputs, self.head)
        return network

    def metadata(self) -> dict[str, str]:
        """The card as the header of a safetensors file holds it."""
        return {KEY: json.dumps(asdict(self))}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> NetworkCard | None:
        """Read the card in a header.

        Args:
            metadata: of a safetensors file.

        Returns:
            The card; None if there is none.

        Raises:
            ValueError: if what is there is no card.
        """
        if KEY not in metadata:
            return None
        try:
            values = json.loads(metadata[KEY])
            prepared = values.pop("preprocessing")
            lists = {name for name in ("mean", "std") if values.get(name) is not None}
            values |= {name: tuple(values[name]) for name in {"classes", "input_shape", *lists}}
            return cls(**values, preprocessing=None if prepared is None else Preprocessing(**prepared))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"the header of the weights holds no description of a network: {error}") from error
