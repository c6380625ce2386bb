"""SIGTERM and Ctrl-C as a request to stop after the current step; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from pof._support import distributed


class Interrupts:
    """Context in which SIGTERM and SIGINT only leave a note; outside the main thread it changes nothing."""

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def requested(self) -> bool:
        """Tell whether any process was asked to stop, so that all stop after the same step."""
        if not distributed.active():
            return bool(self.name)
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        noted = torch.tensor([int(bool(self.name))], device=device)
        dist.all_reduce(noted, op=dist.ReduceOp.MAX)
        self.name = self.name or ("a signal on another process" if int(noted) else "")
        return bool(self.name)
