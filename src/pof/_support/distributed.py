"""Several processes as one: rows of a mini-batch that is spread over the ranks, and parameters that are sharded.

Mini-batches are gathered on every rank.  Parameters that FSDP2 has sharded (DTensors) are gathered where the head's
are needed whole.  The classes of FSDP2 are looked up only where they were imported: that takes long.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pof._support.batches import joined, samples_of, to_device

T = TypeVar("T")
_AVAILABLE = dist.is_available()


def active() -> bool:
    """Tell whether more than one process takes part, under an initialised process group."""
    return _AVAILABLE and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 for the first or only one."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def weighted_mean(values: Tensor, weights: Tensor) -> tuple[list[list[float]], list[float]]:
    """Average numbers over the processes, each by its weight.

    ``values`` (K, M) are the process's own means, ``weights`` (K,) what each of its K rows counts.
    Gives K lists of M means, and the K sums of the weights.
    """
    if active():
        parts = torch.cat([values * weights.unsqueeze(1), weights.unsqueeze(1)], dim=1)
        dist.all_reduce(parts)
        tiny = torch.finfo(parts.dtype).tiny
        values, weights = parts[:, :-1] / parts[:, -1:].clamp_min(tiny), parts[:, -1]
    return values.tolist(), weights.tolist()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Add each tensor up over the processes, in place."""
    if active():
        for tensor in tensors:
            if is_sharded(tensor):
                raise ValueError("the parameters are sharded already: do this before fully_shard(model)")
            dist.all_reduce(tensor)


def average(tensors: Collection[Tensor]) -> None:
    """Make each tensor its mean over the processes, in place."""
    add_up(tensors)
    for tensor in tensors:
        tensor.div_(world_size())


def gather_objects(value: T) -> list[T]:
    """Collect a small Python value of each process, in the order of the ranks."""
    if not active():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Concatenate the rows of each tensor (N_rank, ...) over all ranks, in their order; N_rank may differ and be 0.

    Every rank gets the same bits, so whatever is computed from them is the same everywhere.  Each rank sends 16
    bytes (its number of rows and a checksum of dtypes and shapes), and of each tensor as many rows as the largest
    rank has.  All ranks raise if their rows differ in dtype or shape.
    """
    return _gathered(*tensors) if active() else tensors


def gather_batch(features: Tensor, targets: Any) -> tuple[Tensor, Any]:
    """As :func:`gather_rows`, of features (N_rank, ...) and targets; several targets per sample take a pickle each."""
    if not active():
        return features, targets
    if isinstance(targets, Tensor):
        features, targets = _gathered(features, targets)
        return features, targets
    (features,) = _gathered(features)
    found = gather_objects(to_device(targets, "cpu"))
    return features, to_device(joined(found, [samples_of(each) for each in found]), features.device)


@torch.no_grad()
def _gathered(*tensors: Tensor) -> tuple[Tensor, ...]:
    rows = ", ".join(f"{tensor.dtype} {tuple(tensor.shape[1:])}" for tensor in tensors)
    own = torch.tensor([tensors[0].shape[0], zlib.crc32(rows.encode())], device=tensors[0].device)
    everywhere = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, own)
    counts, sums = zip(*(each.tolist() for each in everywhere), strict=True)
    if len(set(sums)) > 1:
        raise ValueError(
            f"the processes hold mini-batches that do not fit together: rows of process {rank()} are {rows}, others are"
            " not; give every process the same model and targets of one dtype and shape"
        )
    return tuple(_gather(tensor.contiguous(), counts) for tensor in tensors)


def _gather(tensor: Tensor, counts: tuple[int, ...]) -> Tensor:
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def is_sharded(tensor: Tensor) -> bool:
    """Tell a DTensor, of which this process holds a part."""
    return hasattr(tensor, "full_tensor")


def is_fsdp(module: nn.Module) -> bool:
    """Tell a module that ``fully_shard`` was applied to."""
    return makes_fsdp(type(module))


def makes_fsdp(kind: type) -> bool:
    """Tell a class that ``fully_shard`` gives to what it is applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and issubclass(kind, fsdp.FSDPModule)


def has_fsdp(module: nn.Module) -> bool:
    """Tell a module that ``fully_shard`` was applied to, or to a part of it."""
    return dist.is_available() and dist.is_initialized() and any(map(is_fsdp, module.modules()))


def reshard(module: nn.Module) -> None:
    """Put the sharded parameters in their places, which FSDP2 leaves to whole copies after a forward pass."""
    for part in module.modules():
        if is_fsdp(part):
            unit: Any = part
            unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded parameter, without graph, on all ranks that share it; others as they are, graph included."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():
        gathered: Tensor = sharded.detach().full_tensor()
    return gathered


def call_with(module: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> Any:
    """Call a module with other parameters (name -> tensor) instead of its own.

    Hooks run too, except those of FSDP2, which would put the module's own parameters back.
    """
    if not is_fsdp(module):
        part = next((name for name, m in module.named_modules() if is_fsdp(m)), None)
        if part is not None:
            raise ValueError(
                f"fully_shard was applied to {part!r} inside of the head: the head is evaluated as one module, so apply"
                " it to the whole head, or leave the head to the unit around it"
            )
        return torch.func.functional_call(module, parameters, (inputs,))
    named = {f"module.{name}": tensor for name, tensor in parameters.items()}
    return torch.func.functional_call(_WithoutHooks(module), named, (inputs,))


class _WithoutHooks(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Any:
        return self.module.forward(inputs)


def tied(output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Let a backward pass from intermediate tensors of a forward begin at its output, to which they send zeros.

    FSDP2 gathers parameters, and reduces gradients, when the backward pass reaches the output of a unit.  A loss that
    is taken of tensors heard on the way may never reach it: gradients would then silently stay those of one rank.
    """
    found: tuple[Tensor, ...] = _Tied.apply(output, *tensors)
    return found


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.output = output.new_empty(0), output.shape
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        like, shape = ctx.output
        return like.new_zeros(shape), *gradients
