"""What a batch is: ``(inputs, targets)``, or a dict with the targets under ``labels``.

Inputs are one tensor (N, ...), a mapping of tensors passed to the model as keywords (the Hugging Face convention), or
several in a tuple.  Every other module takes batches apart by these functions: a new kind of batch is one change.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

from pof._support.precision import widest_dtype

Inputs = Tensor | Mapping[str, Any]
TARGET_KEYS = ("labels", "label", "targets", "target")
T = TypeVar("T")


def unpack(batch: Any) -> tuple[Inputs, Tensor]:
    """Split a batch into inputs, a tensor (N, ...) or a mapping of tensors, and targets, (N,) indices or (N, C).

    A mapping has its targets under one of ``TARGET_KEYS``; so have named tuples and dataclasses of more than two
    fields, and of two where the first has such a name.  Targets are as :func:`class_targets` makes them.
    """
    inputs, targets = unpack_item(batch)
    if isinstance(targets, (int, float)) or getattr(targets, "ndim", None) == 0:
        raise ValueError(
            f"targets must have a row for each sample; got {_kind(targets)}: of a Dataset, which gives single samples,"
            " make a torch.utils.data.DataLoader(dataset, batch_size=...)"
        )
    return inputs, targets


def unpack_item(batch: Any) -> tuple[Inputs, Tensor]:
    """As :func:`unpack`, of an item of a Dataset too, whose target has no rows."""
    inputs, targets = halves_of(batch)
    if targets is None:
        raise ValueError("targets must be a tensor of class indices or probabilities; got None")
    return inputs, class_targets(targets)


def halves_of(batch: Any) -> tuple[Inputs, Any]:
    """Inputs and what stands for their targets, whatever that is."""
    fields = None if type(batch) in {list, tuple} else _fields(batch)
    if fields is not None:
        pair = tuple(fields.values())
        if len(pair) != 2:
            return halves_of(fields)
        first, second = (name in TARGET_KEYS for name in fields)
        batch = pair[::-1] if first and not second else pair
    if isinstance(batch, (list, tuple, Sequence)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) != 1:
            raise ValueError(f"a dict batch needs exactly one of the keys {TARGET_KEYS}; got the keys {sorted(batch)}")
        return {key: value for key, value in batch.items() if key != found[0]}, batch[found[0]]
    size = f" of length {len(batch)}" if isinstance(batch, Sequence) else ""
    raise ValueError(f"a batch must be (inputs, targets) or a dict with 'labels'; got {type(batch).__name__}{size}")


def _fields(batch: Any) -> dict[str, Any] | None:
    """The fields of a named tuple or dataclass."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in dataclass_fields(batch)}
    named = isinstance(batch, tuple) and hasattr(batch, "_fields")
    return dict(zip(batch._fields, batch, strict=True)) if named else None


def samples_of(targets: Any) -> int:
    """Count the samples of a mini-batch by its targets, which for a custom loss may be several tensors."""
    if isinstance(targets, Tensor) and targets.ndim:
        return targets.size(0)
    found = next((tensor for tensor in tensors_of(targets) if tensor.ndim), None)
    if found is None:
        raise ValueError(f"targets must be a tensor with a row for each sample, or hold one; got {_kind(targets)}")
    return found.size(0)


def _kind(targets: Any) -> str:
    if isinstance(targets, Tensor):
        return f"a tensor of shape {tuple(targets.shape)}"
    return f"{type(targets).__name__}{f' of length {len(targets)}' if isinstance(targets, (list, tuple)) else ''}"


def class_targets(targets: Any, classes: int | None = None) -> Any:
    """Write class indices of any kind as (N,) int64: other integers, bool, a column (N, 1), an array, a list.

    torch takes uint8 for a mask, and refuses the rest in its own words.  All other targets pass unchanged; where the
    number of classes C is known, integers (N, C) are one-hot rows and become indices too.
    """
    if not isinstance(targets, Tensor):
        targets = _as_tensor(targets)
    elif targets.dtype is torch.int64 and targets.ndim == 1:
        return targets
    if classes is not None:
        refuse_several(targets, "cross-entropy")
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return targets
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim == 2 and targets.shape[1] == classes:
        return _from_one_hot(targets)
    return targets.long() if targets.ndim < 2 else targets


def refuse_several(targets: Any, name: str) -> None:
    """Refuse what only a loss of the user's own can take."""
    if not isinstance(targets, Tensor):
        raise ValueError(f"{name} takes targets in one tensor; got {_kind(targets)}: that is for a loss of your own")


def _as_tensor(targets: Any) -> Any:
    """Numbers in lists or arrays, and scalar tensors in a list; a list of other tensors is several targets."""
    first = targets
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, str):
        raise ValueError(f"targets are texts ({first!r}, ...): give class indices, integers from 0")
    several = isinstance(targets, (list, tuple))
    numbers = several and (isinstance(first, float) or getattr(first, "ndim", -1) == 0)
    if isinstance(first, int) or numbers or hasattr(targets, "__array__"):
        if not getattr(getattr(targets, "dtype", None), "isnative", True):
            targets = targets.astype(targets.dtype.newbyteorder("="))  # torch has the machine's order of bytes alone
        with suppress(ValueError, TypeError):  # rows of different lengths are for a loss that takes lists
            return torch.as_tensor(targets)
    return targets


def _from_one_hot(targets: Tensor) -> Tensor:
    wrong = ((targets != 0) & (targets != 1)).any(dim=1) | (targets.sum(dim=1) != 1)
    if bool(wrong.any()):
        raise ValueError(
            f"integer targets {tuple(targets.shape)} are not one-hot (row {int(wrong.nonzero()[0])}): several"
            " labels per sample are for loss='bce' (a Dataset gives them in floating point); else give class indices"
            " or probabilities"
        )
    return targets.int().argmax(dim=1)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` on inputs (N, ...): a mapping as keywords, several inputs as its ``forward`` takes them."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs)


def arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call ``model`` with: one by one, inputs that ``forward`` cannot do without several of."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    several: Any = inputs
    if isinstance(several, (tuple, list)) and not isinstance(several, PackedSequence):
        inner = getattr(model, "_orig_mod", model)  # of torch.compile
        inner = inner.module if isinstance(inner, DataParallel | DistributedDataParallel) else inner
        wanted = inspect.signature(inner.forward).parameters.values()
        needed = [p for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(needed) > 1 or any(p.kind is p.VAR_POSITIONAL for p in wanted):
            return tuple(several), {}
    return (inputs,), {}


def outputs_in(output: Any) -> dict[int | str, Tensor]:
    """Find the tensors of a model's output that could be its logits.

    Of a tensor itself, an object with ``.logits`` (transformers, torchvision's auxiliary outputs) and a mapping with
    ``"logits"`` that is one; of any other mapping, tuple or list all floating-point tensors with two axes.
    (N, C, 1, 1) of a convolution is taken as (N, C), and (N, C, 1) beside other tensors.

    Returns:
        Position or key in the output -> tensor; ``"logits"`` where there is one only.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(named, Tensor):
        return {"logits": _as_rows(named, 4)}
    listed: Iterable[tuple[Any, Any]] = enumerate(output) if isinstance(output, (tuple, list)) else ()
    items = output.items() if isinstance(output, Mapping) else listed
    rows = {k: _as_rows(v, 3) for k, v in items if isinstance(v, Tensor) and v.is_floating_point()}
    return {k: v for k, v in rows.items() if v.ndim == 2}


def _as_rows(output: Tensor, axes: int) -> Tensor:
    return output.flatten(1) if output.ndim >= axes and output.shape[2:].numel() == 1 else output


ALONE = "let it return them alone, or in an object with .logits"


def logits_of(output: Any, place: int | str | None = None) -> Tensor:
    """Take the logits (N, C) out of a model's output; ``place`` is one of :func:`outputs_in`, None the only one."""
    found = outputs_in(output)
    if place in found or len(found) == 1:
        return found[place] if place in found else next(iter(found.values()))
    if found:
        raise ValueError(f"which are the logits? The network returns {described_outputs(found)}; {ALONE}")
    raise ValueError(f"no logits in the model's output of type {type(output).__name__}; {ALONE}")


def described_outputs(found: Mapping[int | str, Tensor]) -> str:
    """List the tensors in an output with their shapes, for an error."""
    return ", ".join(f"{tuple(tensor.shape)} at {place!r}" for place, tensor in found.items())


def first_samples(inputs: Inputs, targets: Any, count: int) -> tuple[Inputs, Any]:
    """View the first ``count`` samples of a mini-batch of N: those of every tensor with N rows."""
    if not has_rows(inputs):
        raise ValueError("packed sequences, sparse and nested tensors cannot be cut into samples: use them whole")
    samples = samples_of(targets)
    return first_inputs(inputs, count, samples), rows_of(targets, slice(count), samples)


def rows_of(value: T, rows: slice, samples: int) -> T:
    """View some samples of a (nested) batch of so many: those rows of every tensor that has one per sample."""
    return cast("T", _mapped(value, lambda t: t[rows] if t.shape[:1] == (samples,) else t))


def has_rows(inputs: Inputs) -> bool:
    """Whether inputs can be cut into samples: packed sequences, sparse and nested tensors cannot."""
    return not isinstance(inputs, PackedSequence) and all(map(is_plain, tensors_of(inputs)))


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor can be indexed: it is neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def first_inputs(inputs: Inputs, count: int, samples: int | None = None) -> Inputs:
    """View the inputs of the first ``count`` of so many ``samples``; whole where they cannot be cut."""
    if not has_rows(inputs):
        return inputs
    if samples is None:
        lengths = [len(tensor) for tensor in tensors_of(inputs) if tensor.ndim]
        samples = max(lengths, key=lengths.count, default=0)  # a table beside the samples has another length
    return rows_of(inputs, slice(count), samples)


def joined(values: Sequence[Any], sizes: Sequence[int]) -> Any:
    """One after the other: inputs or targets of several mini-batches of so many samples, tensors or nested.

    Tensors without a row for each sample, and what is no tensor, are those of the first; lists of anything else are
    concatenated.
    """
    first = values[0]
    if isinstance(first, Mapping):
        return {key: joined([value[key] for value in values], sizes) for key in first}
    if isinstance(first, Tensor):
        if any(value.shape[:1] != (size,) for value, size in zip(values, sizes, strict=True)):
            return first
        other = next((value.shape for value in values if value.shape[1:] != first.shape[1:]), None)
        if other is not None:
            raise ValueError(f"mini-batches of {tuple(first.shape)} and {tuple(other)} do not join: pad them alike")
        return torch.cat(list(values))
    if isinstance(first, (list, tuple)) and tensors_of(first) and len({len(value) for value in values}) == 1:
        return tuple(joined(list(items), sizes) for items in zip(*values, strict=True))
    return [item for value in values for item in value] if isinstance(first, (list, tuple)) else first


def to_device(value: T, device: torch.device | str) -> T:
    """Move every tensor in a (nested) batch; other values pass unchanged."""
    # To the CPU torch would give memory that is not written yet.
    place = torch.device(device)
    return cast("T", _mapped(value, lambda tensor: _moved(tensor, place, later=place.type != "cpu")))


def cloned(value: T) -> T:
    """Copy every tensor in a (nested) batch, with its graph."""
    return cast("T", _mapped(value, torch.clone))


def for_training(value: T, device: torch.device) -> T:
    """A (nested) batch as training can take it: on the device, without graph, and not of ``torch.inference_mode``."""
    if isinstance(value, Tensor):
        return _for_training(value, device)  # type: ignore[return-value]
    return cast("T", _mapped(value, lambda tensor: _for_training(tensor, device)))


def _for_training(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device != device:
        tensor = _moved(tensor, device, later=True)
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach() if tensor.requires_grad else tensor


def _moved(tensor: Tensor, device: torch.device, *, later: bool) -> Tensor:
    if tensor.dtype == torch.float64:  # which not every device has
        tensor = tensor.to(widest_dtype(device))
    return tensor.to(device, non_blocking=later)


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


def check_inputs(inputs: Inputs) -> None:
    """Refuse NaN and infinity, which would make every figure NaN or a matter of chance."""
    for tensor in tensors_of(inputs):
        values = _values(tensor)
        # Among several tensors there may be a mask of -inf.
        wrong = ~values.isfinite() if tensor is inputs else values.isnan()
        if bool(wrong.any()):
            count = f"{int(wrong.sum())} of {values.numel()} values"
            raise ValueError(f"inputs hold NaN or infinity ({count}): mend the data")


def _values(tensor: Tensor) -> Tensor:
    """Those that a tensor stores, also a sparse or nested one, which torch does not ask whether they are finite."""
    if tensor.is_nested:
        none = torch.empty(0, dtype=tensor.dtype, device=tensor.device)  # of a tensor without parts
        return torch.cat([none, *(part.detach().flatten() for part in tensor.unbind())])
    if tensor.layout is torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in a (nested) batch."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, keep)
    return found
