"""What a batch is: ``(inputs, targets)``, or a dict with the targets under ``labels``.

Inputs are one tensor (N, ...), a mapping of tensors passed to the model as keywords (the Hugging Face convention), or
several in a tuple.  Every other module takes batches apart through these functions, so a new kind of batch is one change.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Inputs = Tensor | Mapping[str, Any]
TARGET_KEYS = ("labels", "label", "targets", "target")
T = TypeVar("T")


def unpack(batch: Any) -> tuple[Inputs, Tensor]:
    """Split a batch into inputs, a tensor (N, ...) or a mapping of tensors, and targets, (N,) indices or (N, C).

    A mapping has its targets under one of ``TARGET_KEYS``; so have named tuples and dataclasses of other than two fields.
    """
    fields = _fields(batch)
    if fields is not None:
        batch = tuple(fields.values()) if len(fields) == 2 else fields
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) != 1:
            raise ValueError(f"a dict batch needs exactly one of the keys {TARGET_KEYS}; got the keys {sorted(batch)}")
        return {key: value for key, value in batch.items() if key != found[0]}, _tensor(batch[found[0]])
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0], _tensor(batch[1])
    size = f" of length {len(batch)}" if isinstance(batch, Sequence) else ""
    raise ValueError(f"a batch must be (inputs, targets) or a dict with 'labels'; got {type(batch).__name__}{size}")


def _fields(batch: Any) -> dict[str, Any] | None:
    """The fields of a named tuple or dataclass."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclass_fields(batch)}
    named = isinstance(batch, tuple) and hasattr(batch, "_fields")
    return dict(zip(batch._fields, batch, strict=True)) if named else None


def _tensor(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"targets must be a tensor; got {type(targets).__name__}: let the loader's collate_fn make one"
        )
    return targets


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` on inputs (N, ...): a mapping is passed as keywords, several inputs as its ``forward`` takes them."""
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs)


def arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call ``model`` with: one by one, inputs that ``forward`` cannot do without several of."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if type(inputs) in (tuple, list):
        inner = getattr(model, "module", getattr(model, "_orig_mod", model))  # of DDP, of torch.compile
        wanted = inspect.signature(inner.forward).parameters.values()
        needed = [p for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(needed) > 1 or any(p.kind is p.VAR_POSITIONAL for p in wanted):
            return tuple(inputs), {}
    return (inputs,), {}


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
    """View the first ``count`` samples of a mini-batch of N: those of every tensor with N rows."""
    samples = len(targets)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:count] if tensor.shape[:1] == (samples,) else tensor

    if isinstance(inputs, PackedSequence):
        raise ValueError("a PackedSequence cannot be cut into samples: use the whole mini-batch")
    return _mapped(inputs, cut), targets[:count]


def to_device(value: T, device: torch.device | str) -> T:
    """Move every tensor in a (nested) batch; other values pass unchanged."""
    return _mapped(value, lambda tensor: tensor.to(device, non_blocking=True))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, PackedSequence):  # whose batch sizes stay on the CPU
        rest = (None if each is None else change(each) for each in value[2:])
        return PackedSequence(change(value.data), value.batch_sizes, *rest)
    fields = _fields(value)
    if fields is not None and is_dataclass(value):
        moved = copy.copy(value)
        for name, item in fields.items():
            object.__setattr__(moved, name, _mapped(item, change))
        return moved
    if isinstance(value, (list, tuple)):
        items = (_mapped(item, change) for item in value)
        return type(value)(*items) if fields is not None else type(value)(items)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in a (nested) batch."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, keep)
    return found
