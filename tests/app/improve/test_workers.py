"""The runs of a rung in two processes: the same result bitwise, however it ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pof
from pof.app.engine.base import packed
from pof.app.engine.processes import Processes
from pof.app.run_folder import RunError
from tests.app.improve.test_improve import FAST, loaders, network


def rows_of(folder: Path) -> list[str]:
    return sorted((folder / "journal.jsonl").read_text().splitlines())


def test_two_processes_find_the_same_bitwise(tmp_path: Path) -> None:
    found = []
    three = {"sgd": {"method": "finetune", "lr": 0.1}, "pof": {"lr": 0.01}, "sam": {"sam": {"rho": "auto"}, "lr": 0.1}}
    for jobs in (1, 2):
        torch.manual_seed(11)
        options = {"candidates": three, "out": tmp_path / str(jobs), "jobs": jobs, "budget": 4.0}
        found.append(pof.improve(network(), *loaders(), **FAST | options))
    assert found[0].table == found[1].table and found[0].message == found[1].message
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "2")
    written = [json.loads((tmp_path / name / "result.json").read_text()) for name in "12"]
    assert written[0] == written[1]
    values = zip(found[0].model.state_dict().values(), found[1].model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def test_a_process_that_dies_is_said(tmp_path: Path) -> None:
    class Died(Processes):
        """Whatever is asked of a process, it is gone."""

        def workers(self, sent: bytes, *rest: Any) -> Any:
            return super().workers(packed(dying), *rest)

    with pytest.raises(RunError, match=r"a run of the search was lost: .*SIGKILL\): out of memory\?.* fewer jobs"):
        pof.improve(network(), *loaders(), candidates=["sgd", "pof"], engine=Died(1), out=tmp_path, **FAST)


def dying() -> Any:
    return lambda task: os.kill(os.getpid(), signal.SIGKILL)


def test_what_cannot_be_sent_is_named() -> None:
    model = network()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"the network and its loaders, which cannot be pickled: .* give jobs 1"):
        pof.improve(model, *loaders(), candidates=["sgd", "pof"], jobs=2, **FAST)
    with pytest.raises(ValueError, match="jobs must be a whole number >= 1; got 0"):
        pof.improve(nn.Linear(6, 3), *loaders(), jobs=0, **FAST)
