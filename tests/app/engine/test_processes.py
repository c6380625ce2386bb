"""Local workers: what they answer, raise and leave behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pof.app.engine.base import Numerics, Workers, packed
from pof.app.engine.options import EngineOptions, opened
from pof.app.engine.processes import Processes

FOUR = Numerics(3, torch.float64, "medium")


class Odd(Exception):
    """Cannot be pickled again: it wants two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def make(base: int) -> Callable[[Any], Any]:
    def act(task: Any) -> Any:
        match task:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise KeyError("no such layer")
            case "odd":
                raise Odd("one", "two")
            case "numerics":
                return os.environ["OMP_NUM_THREADS"], Numerics.here()
            case ("wait", path):
                wait_for_sigterm(Path(path))
        return base + task

    return act


def wait_for_sigterm(path: Path) -> None:
    """As a training does: it is noted, and answered after the step."""
    noted: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
    path.write_text(str(os.getpid()))
    while not noted:
        time.sleep(0.01)
    path.write_text("saved")


SENT = packed(make, 10)


def ended(workers: Workers, *tasks: Any) -> dict[Any, Any]:
    return {end.task: end.lost or end.value for end in workers.run(partial(next, iter(tasks), None))}


def test_what_dies_costs_its_task_and_errors_come_back(tmp_path: Path) -> None:
    with Processes(1).workers(SENT, FOUR, tmp_path) as workers:
        assert ended(workers, 1, "die", 2, "numerics") == {
            1: 11,
            "die": "its process was killed (SIGKILL): out of memory?",
            2: 12,
            "numerics": ("3", FOUR),
        }
        with pytest.raises(KeyError, match="no such layer") as caught:
            ended(workers, "raise")
        assert any("in act" in note for note in caught.value.__notes__)
        with pytest.raises(RuntimeError, match="Odd: one"):
            ended(workers, "odd")
        assert ended(workers, 3) == {3: 13}
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "3"


def test_what_raises_inside_interrupts_the_workers(tmp_path: Path) -> None:
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt), Processes(1).workers(SENT, Numerics(1), tmp_path) as workers:
        workers.submit(("wait", str(file)))
        while not file.exists() or not file.read_text():
            time.sleep(0.01)
        pid = int(file.read_text())
        raise KeyboardInterrupt
    assert file.read_text() == "saved"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_options_of_the_other_engine_are_refused() -> None:
    with opened(EngineOptions(), local=3, jobs=None) as engine:
        assert (engine, engine.slots(), engine.call(divmod, 7, 2)) == (Processes(3), 3, (3, 1))
    for options in ({"address": "auto"}, {"num_cpus": 2.0}, {"num_gpus": 0.0}):
        with (
            pytest.raises(ValueError, match=f"--{next(iter(options))} is of the engine ray"),
            opened(EngineOptions(**options), local=1, jobs=None),  # type: ignore[arg-type]
        ):
            pass
