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


def outputs_in(output: Any) -> dict[int | str, Tensor]:
    """Find the tensors of a model's output that could be its logits.

    Of a tensor itself, an object with ``.logits`` (transformers, torchvision's auxiliary outputs) and a mapping with
    ``"logits"`` that is one; of any other mapping, tuple or list all floating-point tensors with two axes.

    Returns:
        Position or key in the output -> tensor; ``"logits"`` where there is one only.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(named, Tensor):
        return {"logits": named}
    items = (
        output.items()
        if isinstance(output, Mapping)
        else enumerate(output)
        if isinstance(output, (tuple, list))
        else ()
    )
    return {k: v for k, v in items if isinstance(v, Tensor) and v.is_floating_point() and v.ndim == 2}


def logits_of(output: Any, place: int | str | None = None) -> Tensor:
    """Take the logits (N, C) out of a model's output; ``place`` is one of :func:`outputs_in`, None the only one."""
    found = outputs_in(output)
    if place in found or len(found) == 1:
        return found[place] if place in found else next(iter(found.values()))
    if found:
        raise ValueError(
            f"which are the logits? The network returns {described_outputs(found)}; let it return them alone, or in an"
            " object with .logits"
        )
    raise ValueError(f"no logits in the model's output of type {type(output).__name__}")


def described_outputs(found: Mapping[int | str, Tensor]) -> str:
    """List the tensors in an output with their shapes, for an error."""
    return ", ".join(f"{tuple(tensor.shape)} at {place!r}" for place, tensor in found.items())


def first_samples(inputs: Inputs, targets: Tensor, count: int) -> tuple[Inputs, Tensor]:
    """View the first ``count`` samples of a mini-batch of N; of a mapping, those of every tensor with N rows."""
    return first_inputs(inputs, count), targets[:count]


def first_inputs(inputs: Inputs, count: int) -> Inputs:
    """View the inputs of the first ``count`` samples."""
    if isinstance(inputs, Tensor):
        return inputs[:count]
    lengths = [len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim]
    samples = max(lengths, key=lengths.count, default=0)  # a table beside the samples has another length
    rows = {key: isinstance(value, Tensor) and value.shape[:1] == (samples,) for key, value in inputs.items()}
    return {key: value[:count] if rows[key] else value for key, value in inputs.items()}


def to_device(value: T, device: torch.device | str) -> T:
    """Move every tensor in a (nested) batch; other values pass unchanged."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value
