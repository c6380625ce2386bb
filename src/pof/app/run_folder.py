"""A run is a folder: config.yaml, environment.json, metrics.jsonl, model.safetensors, state/, tensorboard/.

Nothing in it is overwritten by another run: a folder that holds a run is taken up again with its own configuration,
or refused.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pof._support.devices import name_of_device
from pof._support.files import LOCK, PARTIAL, append, lock, naming, replacing
from pof.app.loggers import scalars
from pof.app.places import START, start_from
from pof.app.run_files import SECTIONS, RunError, config_here, read_config, read_rows
from pof.training.checkpoint import check_same, has_state, load_state
from pof.training.fit import FitResult
from pof.training.selection import Judged
from pof.weights import NETWORK_FILE, save_model

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILES = ("config.yaml", "environment.json", "metrics.jsonl", "result.json", NETWORK_FILE)
MARKS = ("config.yaml", "improve.json")
OF_A_RUN = {*FILES, "state", "tensorboard", "report.html", "flatness.json"}
"""What a run and the commands about it write into its folder: all that is removed where it is overwritten."""
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")


CONTENT, NETWORK, COMMIT = "weights_sha256", "network", "commit"
"""Sections of config.yaml beside the options: the incoming weights, the card of the network, the package's commit."""


def environment() -> dict[str, Any]:
    """Describe where a run takes place, in plain values: versions, hardware, commit, command line, time."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("pof", *PACKAGES)},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": name_of_device(),
        "commit": commit(),
        "command": sys.argv,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class Run:
    """Opens a run folder for writing, or with ``resume`` the run that is there, if it had the same ``config``.

    Nothing is written before the first figures: a run whose options, data or network turn out to be bad before its
    first step leaves nothing behind.  From then on, or from the start of a resume, no other process writes to the
    folder, until :meth:`close`.  A run that died before its first step, and with ``overwrite`` any run, makes room for
    this one (:meth:`make_room`).
    """

    def __init__(
        self, folder: str | Path, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.state = self.folder / "state"
        self._config = dict(config)
        self._metrics = self.folder / "metrics.jsonl"
        self._start: Mapping[str, Any] | None = None
        self._board: SummaryWriter | None = None
        self._release: Callable[[], None] | None = None
        self._replaced = False
        if overwrite and resume:
            raise RunError("give --resume or --overwrite, not both: one goes on with the run, the other removes it")
        if (self.folder / "config.yaml").exists():
            known = is_run(read_config(self.folder))
            if overwrite and not known:
                raise RunError(f"{self.folder} exists and holds no run: give --out a new or empty folder")
            if known and (overwrite or has_no_step(self.folder)):
                self._replaced = True
                check_removable(self.folder, self._config.get("model", {}).get("weights"))
                self._release = lock(self.folder)
                return
            if not resume:
                raise RunError(
                    f"{self.folder} holds a run already: give another --out, or go on with --resume true, or remove"
                    " that run with --overwrite"
                )
            check_same(_known(config_here(self.folder), self._config), self._config, self.folder)
            if (self.folder / "result.json").exists() and not has_state(self.state):
                raise RunError(f"{self.folder} is finished, and holds no state to go on from: give another --out")
            self._release = lock(self.folder)
        elif self.folder.exists() and not _is_empty(self.folder):
            raise RunError(f"{self.folder} exists and holds no run: give --out a new or empty folder")

    def make_room(self) -> None:
        """Remove the run that this one takes the place of; nothing where there is none."""
        if self._replaced:
            clear(self.folder)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of ``pof.fit``'s log to metrics.jsonl and TensorBoard.

        A ``start`` row is not written: it takes back the rows behind its step, which an interrupted run had
        written after its last checkpoint.
        """
        if row["event"] == "start":
            self._start = row
            return
        if self._start is not None:
            self._begin(self._start)
            self._start = None
        every = self._config.get("training", {}).get("checkpoint_every")
        # A state is saved after these: what it counts as done is on the disk before it.
        saved = row["event"] != "step" or (every is not None and row["step"] % every == 0)
        append(self._metrics, (json.dumps(row) + "\n").encode(), sync=saved)
        if self._board is not None:
            with naming(self.folder / "tensorboard"):
                self._show(self._board, row)

    def _show(self, board: SummaryWriter, row: Mapping[str, Any]) -> None:
        for name, value in scalars(row).items():
            board.add_scalar(name, value, row["step"])
        # On the disk before the state that it belongs to: a resume does not repeat it.
        board.flush()
        if row["event"] == "end":
            board.close()
            self._board = None

    def _begin(self, start: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._release is None:
            self._release = lock(self.folder)
            if not _is_empty(self.folder):
                raise RunError(f"{self.folder} was empty when this run was started, and now another has begun in it")
        for partial in self.folder.rglob(f".*{PARTIAL}"):  # a kill while a file was written
            partial.unlink()
        config, surroundings = self.folder / "config.yaml", self.folder / "environment.json"
        # The configuration first: it makes the folder a run, should a kill come between the two.
        if not config.exists():
            write_yaml(config, {**self._config, START: start_from(self.folder)})
        if not surroundings.exists():
            precision = self._config.get("training", {}).get("precision")
            write_json(surroundings, {**environment(), "precision": precision})
        resumed = has_state(self.state)
        self._rewind(start, read_rows(self.folder) if resumed else [])
        from torch.utils.tensorboard import SummaryWriter

        _without_tracebacks()
        board = self.folder / "tensorboard"
        with naming(board):
            self._board = SummaryWriter(board, purge_step=start["step"] + 1 if resumed else 0)

    def _rewind(self, start: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        kept = [row for row in rows if row["event"] in {"step", "epoch"} and row[row["event"]] <= start[row["event"]]]
        missing = start["step"] - sum(row["event"] == "step" for row in kept)
        if missing > 0:
            warnings.warn(
                f"{self._metrics} has lost {missing} of the {start['step']} steps before this one: the run goes on, its"
                " figures have a gap",
                stacklevel=2,
            )
        with replacing(self._metrics) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def finish(self, model: nn.Module, figures: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
        """Write the delivered network and the run's final figures."""
        save_model(model, self.folder / NETWORK_FILE, metadata=metadata)
        write_json(self.folder / "result.json", figures)

    def close(self) -> None:
        """Let other processes write to the folder."""
        if self._release is not None:
            self._release()
            self._release = None


def figures_of(result: FitResult, before: Judged | None, after: Judged) -> dict[str, Any]:
    """What result.json says of a fit."""
    rows = {row["epoch"]: row for row in result.history}
    last = result.history[-1]
    return {
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "steps": result.steps,
        "stopped": result.stopped,
        "message": result.message,
        "seconds": round(sum(row["seconds"] for row in result.history), 3),
        "test_before": None if before is None else before.named(),
        "test_after": after.named(),
        "validation_before": _named("val_", rows[0]),
        "validation_after": _named("val_", rows[result.best_epoch]),
        "validation_last": _named("val_", last),
        "train_last": _named("train_", last),
    }


def _named(prefix: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of an epoch's row whose names start so, without that; None if there are none."""
    return {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)} or None


def content_of(weights: str | None) -> str | None:
    """Weights by their content, as a file may be replaced by another of the same name; None where there is no file."""
    path = Path(weights or "")
    file = path / NETWORK_FILE if path.is_dir() else path
    if not weights or not file.is_file():
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_run(config: Mapping[str, Any]) -> bool:
    """Whether a config.yaml is of a run: others have files of that name too."""
    return config.keys() >= {*SECTIONS, "processes"}


def has_no_step(folder: Path) -> bool:
    """Tell a run that died before its first step: it has no network, and nothing is lost with it."""
    if (folder / "result.json").exists() or (folder / NETWORK_FILE).exists():
        return False
    if any(row["event"] == "step" for row in read_rows(folder)):
        return False
    state = load_state(folder / "state")
    return state is None or state["steps"] == 0


def check_removable(folder: Path, weights: str | None, known: Collection[str] = OF_A_RUN) -> None:
    """Refuse to remove what a command wrote if there is anything else beside it, or the network to start from."""
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in known and not _is_passing(entry))
    if others:
        raise RunError(
            f"{folder} holds other files too ({', '.join(others[:5])}), and nothing is removed: move them away, or give"
            " another --out"
        )
    if weights is not None and folder.resolve() in {Path(weights).resolve(), Path(weights).resolve().parent}:
        raise RunError(f"{folder} holds the weights to start from, and nothing is removed: give another --out")


def clear(folder: Path, known: Collection[str] = OF_A_RUN) -> None:
    """Remove what a command wrote from its folder, which stays; last the file that says what the folder is."""
    for path in (folder / name for name in sorted(known, key=lambda name: (name in MARKS, name))):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_replaceable(path: Path, mark: str) -> None:
    """Refuse to write over what a command has not written: files of a run, links, and any file without its mark."""
    if path.name in FILES:
        raise RunError(f"{path}: a file of this name belongs to a run; give another name")
    if path.is_symlink():
        raise RunError(f"{path} is a link, and what it points to would stay as it is: give another name")
    if path.exists():
        with path.open("rb") as file:
            if mark.encode() not in file.read(1000):
                raise RunError(f"{path} is there, and not of this command: give another name")


def _known(saved: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The saved settings, with what an older version did not write down, and whatever commit goes on with them."""
    own = {key: config[key] for key in (CONTENT, NETWORK, COMMIT) if key in config}
    known = {**own, **saved, **{key: own[key] for key in (COMMIT,) if key in own}}
    return {key: value for key, value in known.items() if key != START}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write values as YAML, atomically."""
    import yaml

    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@cache
def _without_tracebacks() -> None:
    """Let the thread of TensorBoard's writer die quietly (full disk): the next flush raises its error again."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            before(arguments)

    threading.excepthook = hook


def _is_empty(path: Path) -> bool:
    """Tell a folder with nothing in it, but for what a kill left of a file that was being written."""
    return path.is_dir() and all(map(_is_passing, path.iterdir()))


def _is_passing(entry: Path) -> bool:
    """Tell the file of a lock, and what a kill left of one that was being written."""
    return entry.name == LOCK or entry.name.endswith(PARTIAL)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def commit() -> str | None:
    """The commit of the package's own checkout, with a mark if it is changed; None for an installed wheel.

    Asked once: what is imported stays what it was when the checkout moves on.
    """
    return commit_of(Path(__file__).resolve())


def commit_of(file: Path) -> str | None:
    """The commit that a file is of; None if no repository tracks it, as in the environment inside of a project."""
    asked = (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--abbrev=12"])
    options: Any = {"capture_output": True, "text": True, "check": False, "timeout": 10}
    try:
        tracked, described = (subprocess.run(["git", "-C", file.parent, *each], **options) for each in asked)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (described.stdout.strip() or None) if tracked.returncode == 0 else None
