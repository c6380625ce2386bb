"""The training state on disk: verified, with an earlier one to go back to, and one line where it is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pof
from pof.training.checkpoint import PREVIOUS_FILE, STATE_FILE, load_state, save_state
from tests.cases import batches, folder_instead, mlp, pipe_instead


def run(folder: Path | None, *, die_at: int = 0, resume: bool = False, model: Any = None, **options: Any) -> Any:
    """Two epochs of three steps, the state saved after each; dies at a step."""

    def log(row: Any) -> None:
        if row["event"] == "step" and row["step"] == die_at:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    method = pof.PoF(mlp(norm=True) if model is None else model)
    plain: Any = {"epochs": 2, "checkpoint_dir": folder, "resume": resume, "checkpoint_every": 1, "device": "cpu"}
    try:
        return pof.fit(method, batches(3), log=log, **{**plain, **options})
    except KeyboardInterrupt:
        return None


def weights(result: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return weights(run(None))


def assert_same(result: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, wanted[name]) for name, value in weights(result).items())


def flipped(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    place = min(int(share * len(content)), len(content) - 1)
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "emptied": emptied,
    "of something else": foreign,
    "cut": cut,
    "a folder": folder_instead,
    "a pipe": pipe_instead,
}
DAMAGE |= {
    f"a bit at {share:.3f}": lambda path, share=share: flipped(path, share) for share in torch.linspace(0, 1, 24)
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_named_and_the_run_goes_back_to_the_one_before(
    name: str, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    run(tmp_path, die_at=5)
    DAMAGE[name](tmp_path / STATE_FILE)
    with pytest.warns(UserWarning, match=r"state\.pt is .*: the run goes back to step 3, from previous\.pt"):
        assert_same(run(tmp_path, resume=True), whole)


@pytest.mark.parametrize("name", [*DAMAGE][:6])
def test_without_an_earlier_state_one_line_says_how_to_start_anew(name: str, tmp_path: Path) -> None:
    run(tmp_path, die_at=5)
    DAMAGE[name](tmp_path / STATE_FILE)
    (tmp_path / PREVIOUS_FILE).unlink()
    with pytest.raises(pof.CheckpointError) as caught:
        run(tmp_path, resume=True)
    message = str(caught.value)
    assert STATE_FILE in message and f"remove {tmp_path} to start anew" in message and "\n" not in message


def test_a_kill_between_the_two_names_loses_nothing(tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    run(tmp_path, die_at=5)
    (tmp_path / STATE_FILE).unlink()
    assert_same(run(tmp_path, resume=True), whole)


def test_a_state_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, {"epoch": 1})
    with pytest.raises(pof.CheckpointError, match=r"no training state of this version of pof: it lacks 'fingerprint'"):
        load_state(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_state_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    run(tmp_path, die_at=5)
    (tmp_path / STATE_FILE).chmod(0)
    with pytest.raises(pof.CheckpointError, match="cannot be read: Permission denied; resume once it can"):
        run(tmp_path, resume=True)


def test_a_folder_with_a_state_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, die_at=5)
    before = (tmp_path / STATE_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"holds the state of a run: go on with resume=True, give another"):
        run(tmp_path)
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_a_state_of_another_network_names_what_differs(tmp_path: Path) -> None:
    run(tmp_path, die_at=5)
    other = mlp(norm=True)
    other.body = nn.Linear(5, 6, bias=False).double()
    with pytest.raises(
        pof.CheckpointError, match=r"does not fit .*network\.model\.body\.bias was \(6,\) and is now not"
    ):
        run(tmp_path, resume=True, model=other)


class Odd(nn.Linear):
    """Its extra state cannot be read without executing something."""

    def get_extra_state(self) -> Any:
        return Path("anything")

    def set_extra_state(self, state: Any) -> None:
        """Nothing to take back."""


def test_an_extra_state_that_cannot_be_read_again_is_refused_before_training(tmp_path: Path) -> None:
    model = nn.Sequential(Odd(5, 6), nn.Linear(6, 4)).double()
    with pytest.raises(pof.CheckpointError, match=r"cannot be saved for a resume: an extra state .*train without"):
        run(tmp_path, model=model)
    assert not (tmp_path / STATE_FILE).exists()
    run(None, model=model)
