"""Processes that were started with different settings are told so, each of them, before the first step."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import pof
from pof._support import agreement
from pof.training.schedules import Schedule
from tests.cases import batch, mlp
from tests.processes import Process, pof_ranks, ranks


def sgd(lr: float = 0.1, **options: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1)


# What the second process does otherwise, and what all are told.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"optimizer": sgd(0.2)}, "learning_rates is [0.1] in process 0 and [0.2] in process 1"),
    "decay": ({"optimizer": sgd(weight_decay=0.5)}, "SGD.weight_decay is 0 in process 0 and 0.5 in process 1"),
    "momentum": ({"optimizer": sgd(momentum=0.5)}, "SGD.momentum is 0 in process 0 and 0.5 in process 1"),
    "optimizer": ({"optimizer": adam}, "optimizer is 'SGD' in process 0 and 'AdamW' in process 1"),
    "schedule": ({"schedule": Schedule("constant")}, "schedule.kind is 'cosine' in process 0 and 'constant' in"),
    "epochs": ({"epochs": 3}, "epochs is 2 in process 0 and 3 in process 1"),
    "precision": ({"precision": "bf16"}, "precision is 'None' in process 0 and 'torch.bfloat16' in process 1"),
    "accumulation": ({"accumulation": 2}, "steps_per_epoch is 2 in process 0 and 1 in process 1"),
    "clip_norm": ({"clip_norm": 1.0}, "clip_norm is None in process 0 and 1.0 in process 1"),
    "checkpoint_every": ({"checkpoint_every": 1}, "checkpoint_every is None in process 0 and 1 in process 1"),
    "validation": ({"val_loader": [batch(8)]}, "val_loader is False in process 0 and True in process 1"),
    "method": ({"method": pof.PoF}, "method is 'Finetune' in process 0 and 'PoF' in process 1"),
    "smoothing": ({"label_smoothing": 0.1}, "label_smoothing is 0.0 in process 0 and 0.1 in process 1"),
    "head": ({"frozen": True}, "parameters.fc.weight is 'torch.float64 (4, 6), trained' in process 0 and 'torch"),
    "length": ({"length": 3}, "the length of train_loader is 2 in process 0 and 3 in process 1"),
}


def told(rank: int, folder: str) -> list[str]:
    """What this process is told in each case."""
    messages = []
    for options, _ in CASES.values():
        own = dict(options) if rank == 1 else {}
        model = mlp()
        model.fc.requires_grad_(not own.pop("frozen", False))
        method = own.pop("method", pof.Finetune)(model, label_smoothing=own.pop("label_smoothing", 0.0))
        loader = [batch(8, seed=number) for number in range(own.pop("length", 2))]
        with pytest.raises(ValueError, match="the processes disagree") as caught:
            pof.fit(method, loader, **{"epochs": 2, "optimizer": sgd(), "device": "cpu", **own})
        messages.append(str(caught.value))
    for seed in (rank, 0):
        method = pof.PoF(mlp(), seed=seed)
        state = {"checkpoint_dir": folder, "resume": True} if rank == 1 or seed else {"checkpoint_dir": folder}
        with pytest.raises(ValueError, match="the processes disagree") as caught:
            pof.fit(method, [batch(8)], epochs=1, device="cpu", **state)
        messages.append(str(caught.value))
    return messages


def test_settings_that_differ_are_named_on_every_process(tmp_path: Path) -> None:
    first, second = ranks(told, 2, tmp_path, str(tmp_path / "state"))
    assert first == second
    *said, seed, resume = first
    for message, (_, expected) in zip(said, CASES.values(), strict=True):
        assert expected in message
    assert "seed is 0 in process 0 and 1 in process 1" in seed
    assert "resume is False in process 0 and True in process 1" in resume


def state_elsewhere(rank: int, folder: str) -> str:
    """The second process has no state to resume from: its folder is another one."""
    options: Any = {"epochs": 1, "device": "cpu", "resume": True}
    pof.fit(pof.Finetune(mlp()), [batch(8)], checkpoint_dir=f"{folder}/0", **options)
    with pytest.raises(ValueError, match="the processes disagree") as caught:
        pof.fit(pof.Finetune(mlp()), [batch(8)], checkpoint_dir=f"{folder}/{rank}", **options)
    return str(caught.value)


def test_a_state_that_one_process_does_not_see(tmp_path: Path) -> None:
    for message in ranks(state_elsewhere, 2, tmp_path, str(tmp_path / "states")):
        assert "the step to resume from is 1 in process 0 and None in process 1" in message


def other_data(rank: int, folder: str) -> list[str]:
    """The second process goes on with other data."""
    messages = []
    for seed in (0, rank):
        options: Any = {"epochs": 1, "device": "cpu", "checkpoint_dir": folder, "resume": True}
        try:
            pof.fit(pof.Finetune(mlp()), [batch(8, seed=seed)], **options)
        except pof.CheckpointError as error:
            messages.append(str(error))
    return messages


def test_data_that_are_others_on_one_process_are_refused_on_all(tmp_path: Path) -> None:
    for messages in ranks(other_data, 2, tmp_path, str(tmp_path / "state")):
        assert len(messages) == 1 and "the first mini-batch of epoch 1 is another one" in messages[0]


RUN = ["train", "--data", "digits", "--model", "small-cnn", "--train_size", "110", "--batch_size", "20"]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--seed", "1"], "training.seed is 0 in process 0 and 1 in process 1"),
        (["--split_seed", "1"], "data.split_seed is 0 in process 0 and 1 in process 1"),
        (["--method", "sam"], "training.method is 'finetune' in process 0 and 'sam' in process 1"),
    ],
)
def test_command_lines_that_differ(option: list[str], expected: str, tmp_path: Path) -> None:
    command = [*RUN, "--epochs", "1", "--out", str(tmp_path / "run")]
    done = pof_ranks(2, *command, of_last=option)
    assert [each.code for each in done] == [2, 2]
    for each in done:
        assert each.err == f"pof: error: the processes disagree: {expected}; give all of them the same\n"
    assert not (tmp_path / "run").exists()


# A process that is lost


def waiting(rank: int, port: int, what: str) -> int:
    """Of three processes the second does not come, or ends while the others wait for it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    agreement.TIME_LIMIT = timedelta(seconds=2 if what != "killed" else 60)
    if what == "not started" and rank == 1:
        return 0

    def log(row: Any) -> None:
        if row["event"] == "step" and row["step"] == 2 and rank == 1:
            if what == "hangs":
                time.sleep(4)
            os._exit(9)

    pof.fit(pof.Finetune(mlp()), [batch(8)], epochs=4, device="cpu", log=log)
    return 0


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("killed", "ConnectionError: process 1 of 3 has ended, and process {} cannot go on without"),
        ("hangs", "TimeoutError: process {} has waited 2 s for the others: one of them hangs"),
        ("not started", "TimeoutError: this process has waited 2 s for the others: one of them hangs, was not started"),
    ],
)
def test_a_lost_process_is_named(what: str, expected: str) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [Process(waiting, rank, port, what) for rank in range(3)]
    done = [process.wait() for process in processes]
    told = [rank for rank in (0, 2) if expected.format(rank) in done[rank].err]
    assert told, done[0].err[-600:] + done[2].err[-600:]
    for rank in (0, 2):
        # The one that waited longer may find that the other has given up.
        also = f"has ended, and process {rank} cannot go on without" in done[rank].err
        assert done[rank].code > 0 and (rank in told or also), done[rank].err[-600:]
