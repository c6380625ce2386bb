"""DDP inside Lightning and the Trainer of transformers: two processes take the steps of one on the global batch."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import pof
from tests.integrations.test_same_steps import adarand, co_tuning, sam
from tests.integrations.trainers import (
    hugging_face_trainer,
    in_fit,
    lightning_module,
    lightning_trainer,
    net,
    samples,
)
from tests.processes import Process

METHODS: dict[str, Any] = {"pof": pof.PoF, "sam": sam, "adarand": adarand, "co-tuning": co_tuning}
SHARE = 4
"""Samples of a process's mini-batch; 2 of 8 in one process."""


def saving(file: Path) -> Any:
    """A callback that saves after the third mini-batch, 2 to a step."""
    from lightning.pytorch.callbacks import Callback

    class Saving(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 0 and batch_idx == 2:
                trainer.save_checkpoint(file)

    return Saving()


def train(home: str, rank: int, size: int, port: int, folder: str) -> int:
    """One rank, as torchrun would start it; all methods after each other."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    found = {}
    for name, make in METHODS.items():
        method = make(net())
        if home == "lightning":
            # AdaRand's references go by the place in the global mini-batch: first those of rank 0.
            own: Any = [row for number, row in enumerate(samples(64)) if number // SHARE % size == rank]
            options: Any = {"strategy": "ddp", "devices": size, "use_distributed_sampler": False}
            data, file = DataLoader(own, batch_size=SHARE), Path(folder, f"{name}.ckpt")
            trainer = lightning_trainer(max_epochs=2, callbacks=[saving(file)], **options)
            trainer.fit(lightning_module(method), data)
            again = make(net())
            lightning_trainer(max_epochs=2, **options).fit(lightning_module(again), data, ckpt_path=file)
        else:
            options = {"per_device_train_batch_size": SHARE, "ddp_backend": "gloo", "weight_decay": 0.0}
            options |= {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
            hugging_face_trainer(method, method.model, Path(folder, name), data=samples(64), **options).train()
            # In the middle of an epoch, whose first mini-batch is another one on each rank.
            again, options["save_strategy"] = make(net()), "no"
            resumed = hugging_face_trainer(again, again.model, Path(folder, name), data=samples(64), **options)
            resumed.train(str(Path(folder, name, "checkpoint-3")))
        found[name] = method.model.state_dict()
        for key, value in again.model.state_dict().items():
            # Between two mini-batches of a step gradients are the mean already: rounded at another place.
            torch.testing.assert_close(value, found[name][key], rtol=1e-5, atol=1e-6, msg=f"resumed {name}: {key}")
    torch.save(found, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()
    return 0


@pytest.mark.parametrize("home", ["lightning", "transformers"])
def test_two_processes_take_the_steps_of_one(home: str, tmp_path: Path) -> None:
    pytest.importorskip(home, reason=f"{home} is not installed")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [Process(train, home, rank, 2, port, str(tmp_path)) for rank in range(2)]
    ended = [process.wait() for process in processes]
    assert [end.code for end in ended] == [0, 0], [end.err[-2000:] for end in ended]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    decay = 1e-3 if home == "lightning" else 0.0
    for name, make in METHODS.items():
        for key, value in in_fit(make, net(), epochs=2, n=64, decay=decay).weights.items():
            first, second = (found[name][key] for found in ranks)
            assert torch.equal(first, second)
            # float32: gradients are summed in another order.
            torch.testing.assert_close(first, value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
