"""The run folder: what is in it, what a resume takes back, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from pof._support.files import LOCK
from pof.app.places import START
from pof.app.run_files import RunError, read_config, read_rows
from pof.app.run_folder import (
    CONTENT,
    FILES,
    Run,
    check_replaceable,
    commit_of,
    content_of,
    environment,
    figures_of,
)
from pof.training.checkpoint import STATE_FILE, CheckpointError
from pof.weights import load_model, save_model
from tests.processes import Process

CONFIG = {"model": {"model": "small-cnn"}, "training": {"lr": 0.1, "pof": {"gamma": 2.0}}, "processes": 1}
STEPS_PER_EPOCH = 3
END = {"event": "end", "step": 6, "epoch": 2, "stopped": None}


def start(step: int = 0) -> dict[str, Any]:
    return {"event": "start", "step": step, "epoch": step // STEPS_PER_EPOCH, "steps": 6, "epochs": 2}


def rows(steps: int = 6) -> list[dict[str, Any]]:
    """What a run logs up to a step, the epoch's row right after its last step."""
    logged: list[dict[str, Any]] = [{"event": "epoch", "epoch": 0, "step": 0, "best": True}]
    for step in range(1, steps + 1):
        epoch = -(-step // STEPS_PER_EPOCH)
        logged.append({"event": "step", "step": step, "epoch": epoch, "loss": 1 / step})
        if step % STEPS_PER_EPOCH == 0:
            logged.append({"event": "epoch", "epoch": epoch, "step": step, "best": False, "train_loss": 0.5})
    return logged


def opened(folder: Path, logged: list[dict[str, Any]], *, saved: bool = True, **options: Any) -> Run:
    run = Run(folder, CONFIG, **options)
    run.log(start())
    for row in logged:
        run.log(row)
    if saved:
        run.state.mkdir()
        (run.state / STATE_FILE).touch()
    run.close()
    return run


def resumed(folder: Path, step: int = 0) -> None:
    """Take a run up again at a step, and end it there."""
    run = Run(folder, CONFIG, resume=True)
    run.log(start(step))
    run.log(END)
    run.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_of_a_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    run = opened(tmp_path / "a" / "run", rows(), saved=False)
    run.finish(model, {"best_epoch": 2})
    assert {p.name for p in run.folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
        "tensorboard",
    }
    here = {START: os.path.relpath(Path.cwd(), run.folder)}
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == CONFIG | here == read_config(run.folder)
    assert json.loads((run.folder / "result.json").read_text()) == {"best_epoch": 2}
    assert read_rows(run.folder) == rows()
    load_model(other := nn.Linear(2, 3), run.folder / "model.safetensors")
    assert torch.equal(other.weight, model.weight)


def test_environment_says_where_a_figure_comes_from(tmp_path: Path) -> None:
    run = opened(tmp_path, rows(1), saved=False)
    written = json.loads((run.folder / "environment.json").read_text())
    assert written.keys() == {*environment(), "precision"}
    assert written["packages"].keys() == {"pof", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy"}
    assert torch.__version__.startswith(written["packages"]["torch"])
    assert written["threads"] == torch.get_num_threads()
    assert all(isinstance(written[key], str) and written[key] for key in ("python", "platform", "processor", "device"))
    assert written["time"].endswith("+00:00")
    assert isinstance(written["command"], list)


@pytest.mark.parametrize("resume", [False, True])
def test_nothing_is_written_before_the_first_figures(tmp_path: Path, resume: bool) -> None:
    """A bad option is found after the folder was chosen, and must not leave a run that then is in the way."""
    Run(tmp_path / "run", CONFIG, resume=resume).log(start())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", range(7))
def test_resume_takes_back_the_rows_behind_the_saved_step(tmp_path: Path, step: int) -> None:
    opened(tmp_path, rows())
    resumed(tmp_path, step)
    assert read_rows(tmp_path) == [*rows(step), END]


def test_epoch_row_written_before_a_state_that_was_never_saved_is_taken_back(tmp_path: Path) -> None:
    opened(tmp_path, rows(3))
    resumed(tmp_path, 2)
    assert read_rows(tmp_path) == [*rows(2), END]


def test_rows_of_a_run_that_saved_nothing_are_taken_back(tmp_path: Path) -> None:
    opened(tmp_path, rows(2), saved=False)
    resumed(tmp_path)
    assert read_rows(tmp_path) == [END]


def test_end_of_a_finished_run_is_written_anew(tmp_path: Path) -> None:
    opened(tmp_path, [*rows(), END])
    resumed(tmp_path, 6)
    assert read_rows(tmp_path) == [*rows(), END]


@pytest.mark.parametrize(
    "torn", ['{"event": "st', '{"event": "step", "step": 4, "epoch": 2, "loss": 0.25}', '{"a": {}']
)
def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, torn: str) -> None:
    opened(tmp_path, rows(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert read_rows(tmp_path) == rows(3)
    run = Run(tmp_path, CONFIG, resume=True)
    run.log(start(3))
    run.log(rows(4)[-1])
    run.close()
    assert read_rows(tmp_path) == rows(4)
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_leftovers_of_a_kill_are_removed_and_the_first_environment_stays(tmp_path: Path) -> None:
    run = opened(tmp_path, rows(2))
    (run.state / f".{STATE_FILE}.123.partial").write_bytes(b"half")
    first = (tmp_path / "environment.json").read_bytes()
    resumed(tmp_path, 2)
    assert not list(tmp_path.rglob("*.partial"))
    assert (tmp_path / "environment.json").read_bytes() == first


def test_run_killed_while_its_first_files_were_written_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.123.partial").write_text("model:")
    resumed(tmp_path)
    assert read_config(tmp_path).items() >= CONFIG.items()
    (tmp_path / "environment.json").unlink()
    resumed(tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text())["python"]


def test_tensorboard_has_every_value_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened(tmp_path, [*rows(5), END])
    time.sleep(1.0)  # TensorBoard orders the files of a folder by the second in their names
    run = Run(tmp_path, CONFIG, resume=True)
    run.log(start(2))
    for row in [*rows()[3:], END]:
        run.log(row)
    run.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in board.Scalars("step/loss")}
    assert [event.step for event in board.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6]
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows() if row["event"] == "step"})
    assert [event.step for event in board.Scalars("epoch/train_loss")] == [3, 6]


def test_every_row_is_on_the_disk_before_the_state_is_saved(tmp_path: Path) -> None:
    """A kill after a row was logged must not lose it, as the run may go on behind it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = opened(tmp_path, [], saved=False)
    for row in rows():
        run.log(row)
        written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        values = [event for tag in written.Tags()["scalars"] for event in written.Scalars(tag) if event.step]
        assert len(values) == sum(row["event"] != "epoch" or row["epoch"] > 0 for row in read_rows(tmp_path))


def test_a_full_disk_is_an_error_of_the_log_and_no_traceback_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.compat.tensorflow_stub.io.gfile import GFile

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = opened(tmp_path, rows(2))
    monkeypatch.setattr(GFile, "write", full)
    with pytest.raises(OSError, match="cannot write: No space left on device; free some space or") as caught:
        for row in [*rows()[3:], END]:
            run.log(row)
    assert caught.value.filename == str(tmp_path / "tensorboard")
    assert capfd.readouterr().err == ""


def changed(path: str, value: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(CONFIG))
    *parents, last = path.split(".")
    level = config
    for name in parents:
        level = level[name]
    level[last] = value
    return config


OTHERS = {
    "training.lr": (0.2, "training.lr was 0.1 and is now 0.2"),
    "training.pof.gamma": (1.0, "training.pof.gamma was 2.0 and is now 1.0"),
    "training.sam": ({"rho": 0.1}, "training.sam.rho was None and is now 0.1"),
    "model.model": ("resnet20", "model.model was 'small-cnn' and is now 'resnet20'"),
    "processes": (2, "processes was 1 and is now 2"),
}


@pytest.mark.parametrize("setting", OTHERS)
def test_another_configuration_is_refused_and_the_setting_named(tmp_path: Path, setting: str) -> None:
    value, message = OTHERS[setting]
    opened(tmp_path, [*rows(), END])
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"cannot resume from .*: {message}; resume with the same"):
        Run(tmp_path, changed(setting, value), resume=True)
    assert contents(tmp_path) == before


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "run", [*rows(), END])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="run holds a run already: give another --out, or go on with --resume true"):
        Run(tmp_path / "run", CONFIG)
    for name in ("file", "full"):
        for resume in (False, True):
            with pytest.raises(RunError, match=f"{name} exists and holds no run: give --out a new or empty folder"):
                Run(tmp_path / name, CONFIG, resume=resume)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["model: [1\n b", "", "- 1\n- 2\n"])
def test_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml is damaged \("):
        Run(tmp_path, CONFIG, resume=True)


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml"):
        read_config(tmp_path)
    assert read_rows(tmp_path) == []


def test_the_commit_is_the_package_s_own(tmp_path: Path) -> None:
    """Not that of the project in whose environment it is installed."""
    project = tmp_path / "project"
    (project / ".venv").mkdir(parents=True)
    for name in ("mine.py", ".venv/pof.py"):
        (project / name).touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "mine.py"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(project), *command], check=True)
    assert commit_of(project / "mine.py") and commit_of(project / ".venv" / "pof.py") is None
    assert commit_of(tmp_path / "nowhere.py") is None


def test_lost_rows_are_said_and_damaged_ones_named(tmp_path: Path) -> None:
    opened(tmp_path, rows())
    file = tmp_path / "metrics.jsonl"
    complete = file.read_text().splitlines(keepends=True)
    file.write_text("".join(complete[:3]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl has lost 4 of the 6 steps before this one"):
        resumed(tmp_path, 6)
    for line in ("{broken}\n", '{"loss": 1}\n', "[{}]\n".replace("]", "}")):
        file.write_text(complete[0] + line)
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged \(line 2"):
            read_rows(tmp_path)


# Two writers, and what is not theirs


def held(folder: str) -> int:
    """Take up the run of a folder, as another process would; the code says how that went."""
    try:
        Run(folder, CONFIG, resume=True).log(start())
    except ValueError as error:
        print(error)
        return 3
    return 0


def test_one_process_writes_to_a_run_and_the_others_are_told_which(tmp_path: Path) -> None:
    opened(tmp_path, rows(1))
    run = Run(tmp_path, CONFIG, resume=True)
    other = Process(held, str(tmp_path)).wait()
    assert other.code == 3
    assert other.out == f"{tmp_path} is in use by process {os.getpid()} of {socket.gethostname()}: stop it, or wait\n"
    before = contents(tmp_path)
    run.close()
    assert before.keys() - contents(tmp_path).keys() == {LOCK}
    assert Process(held, str(tmp_path)).wait().code == 0


def test_two_new_runs_in_one_folder_are_noticed(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "run", CONFIG), Run(tmp_path / "run", CONFIG)
    first.log(start())
    first.log(rows(0)[0])
    second.log(start())
    with pytest.raises(RunError, match="was empty when this run was started, and now another has begun in it"):
        second.log(rows(0)[0])
    second.close()
    first.close()


def test_a_finished_run_without_a_state_is_not_trained_anew(tmp_path: Path) -> None:
    run = opened(tmp_path, [*rows(), END], saved=False)
    run.finish(nn.Linear(2, 3), {})
    before = contents(tmp_path)
    with pytest.raises(RunError, match="is finished, and holds no state to go on from: give another --out"):
        Run(tmp_path, CONFIG, resume=True)
    assert contents(tmp_path) == before


def test_weights_that_were_replaced_are_another_configuration(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    hashes = []
    for value in (1.0, 2.0):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, value)
        save_model(model, file)
        hashes.append(content_of(str(file)))
    assert hashes[0] != hashes[1] and content_of(None) is None and content_of("pretrained") is None
    opened(tmp_path / "old", rows(1))
    Run(tmp_path / "old", CONFIG | {CONTENT: hashes[0]}, resume=True).close()  # of a version without hashes
    run = Run(tmp_path / "run", CONFIG | {CONTENT: hashes[0]})
    for row in (start(), *rows(1)):
        run.log(row)
    run.close()
    with pytest.raises(CheckpointError, match=f"{CONTENT} was '{hashes[0]}' and is now '{hashes[1]}'"):
        Run(tmp_path / "run", CONFIG | {CONTENT: hashes[1]}, resume=True)


def test_only_what_a_command_has_written_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<p>mine")
    (tmp_path / "ours.html").write_text("<meta name=pof>")
    (tmp_path / "link.html").symlink_to("ours.html")
    for name in ("absent.html", "ours.html"):
        check_replaceable(tmp_path / name, "<meta name=pof>")
    refused = {"mine.html": "not of this command", "link.html": "is a link"} | dict.fromkeys(FILES, "belongs to a run")
    for name, message in refused.items():
        with pytest.raises(RunError, match=f"{name}.*{message}"):
            check_replaceable(tmp_path / name, "<meta name=pof>")


def test_figures_are_of_the_first_the_best_and_the_last_epoch() -> None:
    history = [
        {"event": "epoch", "epoch": n, "seconds": 1.5, "val_error": error} | ({"train_loss": loss} if n else {})
        for n, (error, loss) in enumerate([(0.5, 0.0), (0.2, 2.0), (0.3, 1.0)])
    ]
    fitted: Any = SimpleNamespace(history=history, best_epoch=1, epochs=2, steps=6, stopped=None, message="done")
    test: Any = SimpleNamespace(named=lambda: {"error": 0.4})
    assert figures_of(fitted, None, test) == {
        **{"best_epoch": 1, "epochs": 2, "steps": 6, "stopped": None, "message": "done", "seconds": 4.5},
        **{"test_before": None, "test_after": {"error": 0.4}, "train_last": {"loss": 1.0}},
        **{f"validation_{name}": {"error": e} for name, e in (("before", 0.5), ("after", 0.2), ("last", 0.3))},
    }
