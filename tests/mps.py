"""Apple's MPS instead of the CPU, as far as it is another device: it has no float64, and generators of its own.

The tensors are the CPU's, of a class that calls its device ``mps``.  An operation on them whose result would be float64
is the error that it is there.  Which operations MPS lacks, and what it rounds otherwise, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

MPS, CPU = torch.device("mps"), torch.device("cpu")


class OnMPS(Tensor):
    """A tensor of the CPU that calls its device ``mps``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return MPS
        if func in {Tensor.is_mps.__get__, Tensor.is_cpu.__get__}:
            return func == Tensor.is_mps.__get__
        if func is Tensor.__reduce_ex__:
            return _plain(args[0]).__reduce_ex__(*args[1:])
        if func is Tensor.__deepcopy__:
            return _copied(*args)
        if func is Tensor.to:
            return _moved(args[0], *args[1:], **kwargs)
        if func in {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__}:
            with torch._C.DisableTorchFunctionSubclass():
                return func(_plain(args[0]), *args[1:], **kwargs)
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            kwargs["device"] = CPU
            if device != MPS:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*tree_map_only(OnMPS, _plain, args), **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        return tree_map_only(Tensor, _on_mps, found)


class _Factories(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return _moved(*args, **kwargs)
        made = kwargs.get("device") is not None and torch.device(kwargs["device"]) == MPS
        if made:
            kwargs["device"] = CPU
        found = func(*args, **kwargs)
        return tree_map_only(Tensor, _on_mps, found) if made else found


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _on_mps(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return tensor if isinstance(tensor, OnMPS) else tensor.as_subclass(OnMPS)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        with torch._C.DisableTorchFunctionSubclass():
            found = tensor.detach().clone().as_subclass(OnMPS).requires_grad_(tensor.requires_grad)
            found._is_param = getattr(tensor, "_is_param", False)
            if tensor.grad is not None:
                found.grad = tensor.grad.detach().clone()
        memo[id(tensor)] = found
    return memo[id(tensor)]


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``tensor.to``: the device is where it stands among the arguments, a tensor's is its own."""
    device = tensor.device
    for value in (*args, *kwargs.values()):
        if isinstance(value, (torch.device, str)):
            device = torch.device(value)
        elif isinstance(value, Tensor):
            device = value.device
    if device.type not in {"mps", "cpu"}:
        raise AssertionError(device)
    there = {"cpu": CPU, "mps": CPU}
    args = tuple(there[torch.device(v).type] if isinstance(v, (torch.device, str)) else v for v in args)
    kwargs = {k: CPU if k == "device" else v for k, v in kwargs.items()}
    with torch._C.DisableTorchFunctionSubclass():
        found = tensor.as_subclass(Tensor).to(*args, **kwargs)
        return _on_mps(found) if device == MPS else found.as_subclass(Tensor)


_apply_of_torch = nn.Module._apply


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Parameters stay the objects that they are, as those of torch."""
    _apply_of_torch(module, fn, recurse)
    there = isinstance(fn(torch.zeros(())), OnMPS)
    for parameter in module.parameters(recurse=False):
        parameter.__class__ = OnMPS if there else nn.Parameter
        parameter._is_param = True
    return module


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, device="cpu")


def generators() -> ModuleType:
    """What ``torch.mps`` has for its generator."""
    own = torch.Generator()
    found = ModuleType("torch.mps")
    found.__dict__.update(get_rng_state=own.get_state, set_rng_state=own.set_state, manual_seed=own.manual_seed)
    found.__dict__.update(is_available=lambda: True)
    return found


@contextmanager
def mps() -> Iterator[torch.device]:
    """Put it in for the body, as this machine's only accelerator."""
    there = generators()
    with (
        patch.object(torch.accelerator, "is_available", lambda: True),
        patch.object(torch.accelerator, "device_count", lambda: 1),
        patch.object(torch.accelerator, "current_accelerator", lambda: MPS),
        patch.object(torch, "get_device_module", lambda device: there),
        patch.object(torch, "Generator", _Generator),
        patch("accelerate.state.is_mps_available", lambda *_, **__: True),
        patch.object(nn.Module, "_apply", _apply),
        _Factories(),
    ):
        yield MPS
