"""One process fails: all end with a message, none waits for ever."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

import pof
from tests.cases import batch, mlp
from tests.processes import PATIENCE, Process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


class Loader:
    """Four mini-batches; something is wrong with the third one of the second process."""

    def __init__(self, rank: int, wrong: str) -> None:
        self.wrong = wrong if rank == 1 else ""

    def __len__(self) -> int:
        return 5 if self.wrong == "length" else 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            inputs, targets = batch(8, seed=number)
            if number == 2 and self.wrong == "exception":
                raise OSError("the disk is gone")
            if number == 2 and self.wrong == "label":
                targets = targets + 3
            if number == 2 and self.wrong == "dtype":
                targets = torch.nn.functional.one_hot(targets, 4).double()
            if number == 2 and self.wrong == "nothing":
                inputs, targets = inputs[:0], targets[:0].float()
            yield inputs, targets


def fit(rank: int, port: int, wrong: str) -> int:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    pof.fit(pof.PoF(mlp()), Loader(rank, wrong), epochs=2, device="cpu")
    return 0


@pytest.mark.parametrize(
    ("wrong", "message", "everywhere"),
    [
        ("exception", "OSError: the disk is gone", False),
        # Targets of the reference mini-batch, and numbers of mini-batches, are known to all.
        ("label", "ValueError: class indices must be in [0, 3]; got values from 0 to 6", True),
        ("dtype", "ValueError: the processes hold mini-batches that do not fit together", True),
        ("nothing", "ValueError: the processes hold mini-batches that do not fit together", True),
        ("length", "the processes disagree: the length of train_loader is 4 in process 0 and 5 in process 1", True),
    ],
)
def test_fit_in_plain_processes(wrong: str, message: str, everywhere: bool) -> None:
    """Nobody watches over these processes; `wait` fails the test after 300 s."""
    port = free_port()
    processes = [Process(fit, rank, port, wrong) for rank in range(2)]
    first, second = (process.wait() for process in processes)
    assert first.code > 0 and second.code > 0
    assert message in second.err
    # The first process loses its connection.
    lost = "process 1 of 2 has ended, and process 0 cannot go on without: the output of that one says why"
    assert (message if everywhere else f"ConnectionError: {lost}") in first.err


def loop_of_ones_own() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    method = pof.PoF(mlp())
    module: Any = DistributedDataParallel(method)
    for number in range(3):
        if number == 2 and rank == 1:
            raise ValueError("a bad sample")
        if number == 2:
            # Like a process that waits inside a collective of NCCL.
            time.sleep(2 * PATIENCE)
        module(*batch(8, seed=number), *batch(8, seed=number + 1)).loss.backward()


def launch() -> int:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    options: dict[str, Any] = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0}
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{free_port()}", "monitor_interval": 0.1}
    # What torchrun does, with processes that are warm.
    elastic_launch(LaunchConfig(**options, **rendezvous, start_method="fork"), loop_of_ones_own)()
    return 0


def test_loop_of_ones_own_under_torchrun() -> None:
    done = Process(launch).wait()
    assert done.code > 0
    assert "ValueError: a bad sample" in done.err and "rank      : 1" in done.err
