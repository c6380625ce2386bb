"""What a batch is: ``(inputs, targets)``, or a dict with the targets under ``labels``.

Inputs are one tensor (N, ...), or a mapping of tensors passed to the model as keywords (the Hugging Face
convention).  Every other module takes batches apart through these functions, so a new kind of batch is one change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Any]
TARGET_KEYS = ("labels", "label", "targets", "target")
T = TypeVar("T")


def unpack(batch: Any) -> tuple[Inputs, Tensor]:
    """Split a batch into inputs, a tensor (N, ...) or a mapping of tensors, and targets, (N,) indices or (N, C).

    A mapping has its targets under one of ``TARGET_KEYS``.  Targets are as :func:`class_targets` makes them.
    """
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) != 1:
            raise ValueError(f"a dict batch needs exactly one of the keys {TARGET_KEYS}; got the keys {sorted(batch)}")
        return {key: value for key, value in batch.items() if key != found[0]}, class_targets(batch[found[0]])
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0], class_targets(batch[1])
    size = f" of length {len(batch)}" if isinstance(batch, Sequence) else ""
    raise ValueError(f"a batch must be (inputs, targets) or a dict with 'labels'; got {type(batch).__name__}{size}")


def class_targets(targets: Any, classes: int | None = None) -> Any:
    """Write class indices of any kind as (N,) int64: other integers, bool, a column (N, 1), an array, a list.

    torch takes uint8 for a mask, and refuses the rest in its own words.  All other targets pass unchanged; where the
    number of classes C is known, integers (N, C) are one-hot rows and become indices too.
    """
    if not isinstance(targets, Tensor):
        targets = _as_tensor(targets)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return targets
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim == 2 and targets.shape[1] == classes:
        return _from_one_hot(targets)
    return targets.long() if targets.ndim < 2 else targets


def _as_tensor(targets: Any) -> Any:
    first = targets[0] if isinstance(targets, (list, tuple)) and targets else targets
    if isinstance(first, str):
        raise ValueError(f"targets are texts ({first!r}, ...): give class indices, integers from 0")
    return torch.as_tensor(targets) if isinstance(first, (int, Tensor)) or hasattr(targets, "__array__") else targets


def _from_one_hot(targets: Tensor) -> Tensor:
    wrong = ((targets != 0) & (targets != 1)).any(dim=1) | (targets.sum(dim=1) != 1)
    if bool(wrong.any()):
        raise ValueError(
            f"integer targets {tuple(targets.shape)} are not one-hot (row {int(wrong.nonzero()[0])}): for several"
            " labels per sample give a loss of your own (loss=...), else class indices or probabilities"
        )
    return targets.int().argmax(dim=1)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` on inputs (N, ...): a mapping is passed as keywords."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def logits_of(output: Any) -> Tensor:
    """Take the logits (N, C) out of a model's output.

    That is a tensor, an object with ``.logits`` (transformers, torchvision's auxiliary outputs), a mapping with
    ``"logits"``, or a tuple whose first entry is the logits.
    """
    if isinstance(output, Tensor):
        return output
    candidate = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if candidate is None and isinstance(output, tuple) and output:
        candidate = output[0]
    if isinstance(candidate, Tensor):
        return candidate
    raise ValueError(f"no logits in the model's output of type {type(output).__name__}")


def first_samples(inputs: Inputs, targets: Tensor, count: int) -> tuple[Inputs, Tensor]:
    """View the first ``count`` samples of a mini-batch of N; of a mapping, those of every tensor with N rows."""
    if isinstance(inputs, Tensor):
        return inputs[:count], targets[:count]
    samples = len(targets)
    rows = {key: isinstance(value, Tensor) and value.shape[:1] == (samples,) for key, value in inputs.items()}
    return {key: value[:count] if rows[key] else value for key, value in inputs.items()}, targets[:count]


def to_device(value: T, device: torch.device | str) -> T:
    """Move every tensor in a (nested) batch; other values pass unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value
