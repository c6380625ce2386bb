"""The accelerator of this machine, and the threads of its processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def accelerator() -> torch.device | None:
    """Find the kind of accelerator that is there, such as ``cuda``, ``mps`` or ``xpu``; None without one."""
    # Torch 2.6 does not ask by itself whether it is there.
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def name_of_device() -> str:
    """The name of the accelerator, or its kind where torch knows no name (``mps``); ``cpu`` without one."""
    kind = accelerator()
    if kind is None:
        return "cpu"
    named = getattr(torch.get_device_module(kind), "get_device_name", None)
    return kind.type if named is None else str(named())


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads on the processor for the body; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
