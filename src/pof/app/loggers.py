"""Rows of a run's log for experiment trackers: Weights & Biases, MLflow and Trackio, each through the ``log`` hook.

Nothing is started before the first row: a run whose options turn out to be bad leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

Row = Mapping[str, Any]
Logger = Literal["wandb", "mlflow", "trackio"]
PROJECT = "pof"
NAMES = {"event", "step", "epoch", "best"}
"""Entries of a row that are no figures."""


def scalars(row: Row) -> dict[str, float]:
    """The figures of a row by their names in a tracker, such as ``epoch/val_nll``; none but of steps and epochs."""
    event = row["event"]
    if event not in {"step", "epoch"}:
        return {}
    numbers = {name: row[name] for name in row if name not in NAMES and isinstance(row[name], (int, float))}
    return {f"{event}/{name}": value for name, value in numbers.items()}


@contextmanager
def tracking(logger: Logger | None, name: str, config: Mapping[str, Any]) -> Iterator[Callable[[Row], None]]:
    """Give what sends the rows of a log to a tracker, as a run of this name in the project ``pof``; None to none.

    Args:
        logger: which tracker; its library is imported here, so that it is missed before anything is computed.
        name: of the run.
        config: its options, plain values.

    Raises:
        ImportError: if the library is not installed.
    """
    if logger is None:
        yield lambda row: None
        return
    try:
        module = import_module(logger)
    except ImportError as error:
        raise ImportError(f"--logger {logger} needs {logger}, which is not installed: pip install {logger}") from error
    tracker = (_Mlflow if logger == "mlflow" else _Wandb)(module, name, config)
    done = False
    try:
        yield tracker
        done = True
    finally:
        tracker.close(done)


class _Wandb:
    """Weights & Biases, and Trackio, which has its interface."""

    def __init__(self, module: Any, name: str, config: Mapping[str, Any]) -> None:
        self._module, self._start = module, {"name": name, "config": dict(config)}
        self._run: Any = None

    def __call__(self, row: Row) -> None:
        if self._run is None:
            self._run = self._module.init(project=PROJECT, **self._start)
        if found := scalars(row):
            self._run.log(found, step=row["step"])

    def close(self, done: bool) -> None:
        if self._run is not None:
            self._run.finish(**({} if done or self._module.__name__ != "wandb" else {"exit_code": 1}))


class _Mlflow:
    def __init__(self, module: Any, name: str, config: Mapping[str, Any]) -> None:
        self._module, self._name, self._config, self._open = module, name, config, False

    def __call__(self, row: Row) -> None:
        if not self._open:
            self._module.set_experiment(PROJECT)
            self._module.start_run(run_name=self._name)
            self._open = True
            from pof._support.described import flat  # not before: it needs torch

            self._module.log_params(flat(self._config))
        if found := scalars(row):
            self._module.log_metrics(found, step=row["step"])

    def close(self, done: bool) -> None:
        if self._open:
            self._module.end_run("FINISHED" if done else "FAILED")
