"""Modules kept and put back: temporary changes, undone when the body raises; copies; all that a network holds."""

from __future__ import annotations

import copy
import ctypes
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

TRACKED = ("running_mean", "running_var", "num_batches_tracked")
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|\b_orig_mod\.")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def every(module: nn.Module) -> list[nn.Module]:
    """All submodules and the module itself, each once; in a step ``modules()`` costs as much as a small layer."""
    found, waiting = {module: None}, [module]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter, the CPU where there is none: without the generators of ``parameters()``."""
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for parameter in current._parameters.values():
            if parameter is not None:
                return parameter.device
        waiting += [child for child in reversed(list(current._modules.values())) if child is not None]
    return torch.device("cpu")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule into eval mode; afterwards each has its own mode again."""
    with modes_kept(module):
        module.eval()
        yield


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    """Put submodules into training mode, but for frozen norms; afterwards each has its own mode again."""
    with modes_kept(module):
        train(module, frozen_norms(module))
        yield


def train(module: nn.Module, frozen: list[nn.Module]) -> None:
    """Put every submodule into training mode, but for some norms."""
    module.train()
    for norm in frozen:
        norm.training = False


def frozen_norms(module: nn.Module) -> list[nn.Module]:
    """Batch norms that the user froze: in eval mode inside of a network in training mode."""
    inside: dict[nn.Module, None] = {}
    for m in module.modules():
        if m.training:
            inside.update(dict.fromkeys(m.modules()))
    return [m for m in inside if not m.training and _normalises_batches(m)]


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever the body does, each submodule has its own train or eval mode again afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, mode in modes:
            # One of the module's own may do more than set a flag: LoRA merges its weights in eval mode.
            if m.training != mode and type(m).train is not nn.Module.train:
                m.train(mode)
        for m, mode in modes:
            m.training = mode


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forward passes in the body leave all running statistics untouched; normalisation itself is as before.

    Batch norms of torch (SyncBatchNorm too) and of timm stop tracking; nothing is copied for them.  All other buffers
    are copied before and written back after, so that a custom batch norm is covered whatever it calls its statistics,
    and one that tracks whatever it is told.
    """
    norms: list[Any] = []
    saved: list[tuple[nn.Module, str, Tensor, int, Tensor]] = []
    for m in every(module):
        if m._buffers and m.training:
            norms += [m] if isinstance(m, BATCH_NORMS) and m.track_running_stats else []
            obeys = _stops_tracking(m)
            for name, buffer in m._buffers.items():
                if buffer is not None and not (obeys and name in TRACKED) and _can_change(buffer):
                    saved.append((m, name, buffer, version_of(buffer), buffer.clone()))
    # Not by setattr, which asks whether the value is a parameter, a buffer or a module.
    for norm in norms:
        vars(norm)["track_running_stats"] = False
    try:
        yield
    finally:
        for norm in norms:
            vars(norm)["track_running_stats"] = True
        if saved:
            _write_back(saved)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """All buffers are afterwards as before, whatever the mode of their modules."""
    buffers = [(m, *pair) for m in every(module) for pair in m._buffers.items()]
    saved = [(m, n, b, version_of(b), b.clone()) for m, n, b in buffers if b is not None and _can_change(b)]
    try:
        yield
    finally:
        _write_back(saved)


@torch.no_grad()
def _write_back(saved: list[tuple[nn.Module, str, Tensor, int, Tensor]]) -> None:
    for m, name, own, version, value in saved:
        if getattr(m, name, None) is own and version_of(own) == version:
            # A graph may hold it, which takes any write that counts for a change; some write like this too.
            own.data.copy_(value)
        else:
            # Some write into their buffer, some put a new tensor in its place.
            setattr(m, name, own.copy_(value))


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms in the body normalise with their running statistics; everything else stays in its own mode."""
    norms = [m for m in module.modules() if _normalises_batches(m) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, but for batch norms, which have their own mode and leave their statistics alone."""
    with frozen_statistics(module), modes_kept(module):
        for m in module.modules():
            m.training = m.training and _normalises_batches(m)
        yield


def _can_change(tensor: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or not tensor.is_inference()


def version_of(value: Any) -> int:
    """How often a tensor was written to; -1 for tensors that do not count."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else -1


def _normalises_batches(module: nn.Module) -> bool:
    """Tell batch norms by class, custom ones by their buffers."""
    return isinstance(module, BATCH_NORMS) or isinstance(getattr(module, "running_mean", None), Tensor)


def _stops_tracking(module: nn.Module) -> bool:
    """Tell norms that obey ``track_running_stats``: a custom ``forward`` may not."""
    # A TorchScript module has no such class, and a forward that cannot be asked.
    return isinstance(module, BATCH_NORMS) and type(module).forward.__module__.split(".")[0] in {"torch", "timm"}


def check_values(model: nn.Module) -> None:
    """Refuse a network whose parameters have no values."""
    name = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if name is not None:
        raise ValueError(
            f"{name!r} is on the meta device and has no values: build the network on another, or to_empty() first"
        )


def refuse_no_grad(who: str) -> None:
    """Refuse to train where gradients are switched off."""
    if not torch.is_grad_enabled():
        raise ValueError(f"{who} needs gradients: call it outside of torch.no_grad() and torch.inference_mode()")


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a network with parameters that have no shape before its first forward."""
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise ValueError(f"{lazy!r} has no shape yet: run the model once on a mini-batch before")


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; a parameter's gradient is not copied."""
    refuse_lazy(model)
    # Tensors that hooks compute (torch's older weight norm, pruning) have a graph, with which they cannot be copied.
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    except Exception as error:  # whatever a user's objects raise
        raise ValueError(
            f"{type(model).__name__} holds what cannot be copied ({error}), and a copy of it is needed: keep locks,"
            " open files and generators outside of the network, or give it a __deepcopy__"
        ) from error


def contents(module: nn.Module, *, copies: bool = True, without: Sequence[nn.Module] = ()) -> dict[str, dict[str, Any]]:
    """Everything that a module holds, whatever its ``state_dict`` says: parameters, all buffers, extra states."""
    left_out = {id(p) for part in without for p in part.parameters()}
    own = _modules_of(module, without)
    found: dict[str, dict[str, Any]] = {
        "parameters": {name: p.detach() for name, p in module.named_parameters() if id(p) not in left_out},
        "buffers": {_join(n, key): b for n, m in own.items() for key, b in m._buffers.items()},
        "extra": {n: m.get_extra_state() for n, m in own.items() if _has_extra_state(m)},
    }
    if not copies:
        return found
    return {kind: {name: _copy(value) for name, value in each.items()} for kind, each in found.items()}


def _modules_of(module: nn.Module, without: Sequence[nn.Module]) -> dict[str, nn.Module]:
    left_out = {m for part in without for m in part.modules()}
    return {name: m for name, m in module.named_modules() if m not in left_out}


def packed(state: Any) -> Tensor:
    """An extra state as bytes (n,), uint8: writers that know tensors alone, as Accelerate's is, save it too."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpacked(state: Any) -> Any:
    """What :func:`packed` was given, on the CPU; a state that is not packed is an older one."""
    if not isinstance(state, Tensor):
        return state
    state = state.cpu().contiguous()
    file = io.BytesIO(ctypes.string_at(state.data_ptr(), state.numel()))
    return torch.load(file, map_location="cpu", weights_only=True)


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


@torch.no_grad()
def put_back(module: nn.Module, saved: Mapping[str, Mapping[str, Any]], *, without: Sequence[nn.Module] = ()) -> None:
    """Put what :func:`contents` gave into a module of the same kind, in place where shapes are as they were."""
    for name, parameter in module.named_parameters():
        value = saved["parameters"].get(name)
        if value is not None and value.shape == parameter.shape:
            parameter.copy_(value)
        elif value is not None:
            parameter.data = value.to(parameter.device, parameter.dtype, copy=True)
    buffers: dict[str, dict[str, Tensor | None]] = defaultdict(dict)
    for path, value in saved["buffers"].items():
        prefix, _, name = path.rpartition(".")
        buffers[prefix][name] = value
    device = device_of(module)
    for prefix, m in _modules_of(module, without).items():
        put_buffers(m, buffers[prefix], device)
        if prefix in saved["extra"] and _has_extra_state(m):
            m.set_extra_state(_copy(saved["extra"][prefix]))


@torch.no_grad()
def put_buffers(module: nn.Module, wanted: Mapping[str, Tensor | None], device: torch.device) -> None:
    """Give one module these buffers, by name: some may have appeared, vanished, or changed their shape."""
    for name in module._buffers.keys() - wanted.keys():
        delattr(module, name)
    for name, value in wanted.items():
        old = module._buffers.get(name)
        if value is not None and old is not None and (old.shape, old.dtype) == (value.shape, value.dtype):
            old.copy_(value)
            continue
        new = None if value is None else value.to(device if old is None else old.device, copy=True)
        if name in module._buffers:
            module._buffers[name] = new
        else:
            module.register_buffer(name, new)


def layer_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by the outermost module that does not hold all of them, such as ``layer1``."""
    paths = {tuple(name.split(".")): p for name, p in model.named_parameters()}
    depth = 1
    while len({path[:depth] for path in paths}) == 1 and all(len(path) > depth for path in paths):
        depth += 1
    groups: dict[str, list[nn.Parameter]] = {}
    for path, parameter in paths.items():
        groups.setdefault(".".join(path[:depth]), []).append(parameter)
    return groups


def whole_name(model: nn.Module, name: str) -> str | None:
    """The name of a module as the network has it: what ``torch.compile`` and DDP put into it may be left out.

    None if there is no such module.
    """
    names = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
    return name if name in names else next((n for n in names if WRAPPERS.sub("", n) == name), None)


def convolutions_channels_last(network: nn.Module) -> nn.Module:
    """Change the order of convolutions' weights in memory, in place: they are faster, in bf16 on a CPU by two times.

    Other tensors of four dimensions stay as they are: somebody may ``view`` them.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
    return network
