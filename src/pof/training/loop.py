"""The loop itself: epochs, steps, validation, checkpoints."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs
from pof._support.modules import BATCH_NORMS
from pof.methods import Method
from pof.training.checkpoint import check_same, load_state, save_state
from pof.training.evaluation import Metrics, evaluate
from pof.training.interrupt import Interrupts
from pof.training.schedules import Schedule
from pof.training.selection import Selection
from pof.training.step import Stepper, StepResult
from pof.training.stream import Stream, one_pass, windows

Log = Callable[[Mapping[str, Any]], None]


class DivergenceWarning(UserWarning):
    """A run diverged, was stopped, and handed back the best network before."""


@dataclass(frozen=True)
class FitResult:
    """What a run did.  The method's model holds the weights of ``best_epoch``."""

    model: nn.Module
    best_epoch: int
    """0 is the incoming network: no epoch was better on validation."""
    epochs: int
    """Epochs completed."""
    steps: int
    """Optimizer steps taken."""
    stopped: str | None
    """Why the run ended early: None, ``"diverged"`` or ``"interrupted"``."""
    message: str
    """What happened, in a sentence."""
    history: list[dict[str, Any]]
    """One row per epoch, epoch 0 first: losses, validation figures, the method's metrics."""


@dataclass(frozen=True)
class Timetable:
    """The lengths of a run, and what happens when."""

    epochs: int
    steps_per_epoch: int
    accumulation: int
    checkpoint_every: int | None
    schedule: Schedule


class _Diverged(Exception):
    """Its message says when, and the remedy."""


class Loop:
    """One run of ``fit``: epochs of steps, each epoch validated, everything saved that a resume needs."""

    def __init__(
        self,
        method: Method,
        stepper: Stepper,
        stream: Stream[tuple[Inputs, Tensor]],
        times: Timetable,
        val_loader: Iterable[Any] | None,
        folder: Path | None,
        log: Log,
    ) -> None:
        self.method, self.stepper, self.stream, self.times = method, stepper, stream, times
        self.val_loader, self.folder, self.log = val_loader, folder, log
        self.scheduler = times.schedule.attach(stepper.optimizer, times.epochs * times.steps_per_epoch)
        self.selection = Selection()
        self.epoch, self.steps = 0, 0
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.pending: list[tuple[int, float, StepResult]] = []
        # Reading a loss is a host synchronisation: on an accelerator it is done for many steps at once.
        self.flush_every = 1 if stepper.device.type == "cpu" else 20

    def run(self, resume: bool, interrupts: Interrupts) -> FitResult:
        state = load_state(self.folder) if resume and self.folder is not None else None
        within = self._load(state) if state is not None else None
        lengths = {"steps": self.times.epochs * self.times.steps_per_epoch, "epochs": self.times.epochs}
        self.log({"event": "start", "step": self.steps, "epoch": self.epoch, **lengths})
        if state is None:
            self._validate(0, time.perf_counter())
            self._save(None)
        try:
            while self.epoch < self.times.epochs:
                if not self._train_epoch(within, interrupts):
                    saved = "resume to go on from there" if self.folder else "nothing was saved (no checkpoint_dir)"
                    message = f"{interrupts.name} at step {self.steps}: stopped after the step; {saved}"
                    return self._end("interrupted", message)
                within = None
        except _Diverged as diverged:
            warnings.warn(str(diverged), DivergenceWarning, stacklevel=4)
            return self._end("diverged", str(diverged))
        return self._end(None, self._finished())

    def _train_epoch(self, within: dict[str, Any] | None, interrupts: Interrupts) -> bool:
        start = time.perf_counter()
        self.method.train()
        self.method.before_epoch(self.epoch, self.times.epochs, self.stepper.optimizer)
        first = last = 0
        for window in windows(self.stream, self.times.accumulation, self.epoch, within):
            rate = self.stepper.optimizer.param_groups[0]["lr"]
            result = self.stepper.step(window)
            self.scheduler.step()
            self.steps += 1
            self.pending.append((self.steps, rate, result))
            first, last = first or window[0].size, result.samples
            due = self.times.checkpoint_every is not None and self.steps % self.times.checkpoint_every == 0
            stop = interrupts.requested()
            if due or stop or len(self.pending) >= self.flush_every:
                self._flush()
            if due or stop:
                self._save(self.stream.state_dict())
            if stop:
                return False
        self._flush()
        if self.epoch == 0 and 0 < last < first / 4:
            _warn_of_incomplete(self.method.model, first, last)
        inputs = partial(one_pass, self.stream.loader, self.stepper.device)
        self.method.after_epoch(self.epoch, self.times.epochs, inputs)
        self.epoch += 1
        self._validate(self.epoch, start)
        self._save(None)
        return True

    def _flush(self) -> None:
        """Read the losses of the last steps: log them, and stop at the first that is not finite."""
        if not self.pending:
            return
        names = ["loss", *self.pending[0][2].metrics]
        own = torch.stack([torch.stack([r.loss, *r.metrics.values()]) for _, _, r in self.pending])
        samples = torch.tensor([r.samples for _, _, r in self.pending], dtype=own.dtype, device=own.device)
        means, totals = distributed.weighted_mean(own, samples)
        for (step, rate, _), values, total in zip(self.pending, means, totals, strict=True):
            row = dict(zip(names, values, strict=True))
            if not math.isfinite(row["loss"]):
                raise _Diverged(
                    f"the loss became {row['loss']} at step {step} (epoch {self.epoch + 1}, learning rate {rate:g});"
                    f" the network of epoch {self.selection.epoch} was put back. Remedy: {self.method.remedy}"
                )
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * total
            self.sums["samples"] = self.sums.get("samples", 0.0) + total
            self.log({"event": "step", "step": step, "epoch": self.epoch + 1, "lr": rate, **row})
        self.pending.clear()

    def _validate(self, epoch: int, start: float) -> None:
        candidate = self.method.candidate()
        metrics = None
        if self.val_loader is not None:
            head, precision = self.method.head_name, self.stepper.autocast
            found = evaluate(candidate, self.val_loader, head=head, precision=precision)
            metrics = distributed.gather_objects(found)[0]  # one judgement for all processes
        kept = self.selection.consider(epoch, candidate, metrics)
        row: dict[str, Any] = {"event": "epoch", "epoch": epoch, "step": self.steps, "best": kept}
        samples = self.sums.pop("samples", 0.0)
        row |= {f"train_{name}": total / samples for name, total in self.sums.items()}
        if metrics is not None:
            row |= {f"val_{name}": value for name, value in vars(metrics).items()}
        row["seconds"] = round(time.perf_counter() - start, 3)
        self.sums.clear()
        self.history.append(row)
        self.log(row)
        if self.selection.collapsed(metrics):
            before = self.selection.incoming
            raise _Diverged(
                f"validation collapsed: error {_percent(before)} before, {_percent(metrics)} after epoch {epoch}"
                f" (step {self.steps}); the network of epoch {self.selection.epoch} was put back."
                f" Remedy: {self.method.remedy}"
            )

    def _end(self, stopped: str | None, message: str) -> FitResult:
        if stopped != "interrupted":
            self.selection.deliver(self.method.model)
        row = {"event": "end", "stopped": stopped, "best_epoch": self.selection.epoch, "message": message}
        self.log({**row, "step": self.steps, "epoch": self.epoch})
        return FitResult(
            self.method.model, self.selection.epoch, self.epoch, self.steps, stopped, message, self.history
        )

    def _finished(self) -> str:
        best, incoming = self.selection.metrics, self.selection.incoming
        if best is None:
            return f"{self.epoch} epochs; no validation data, so the last network is handed back unjudged"
        if self.selection.epoch == 0:
            reached = min((row["val_error"] for row in self.history[1:]), default=math.nan)
            return (
                f"no epoch was better on validation than the incoming network ({_percent(incoming)} error; the best"
                f" epoch had {100 * reached:.2f} %): the incoming network is handed back unchanged"
            )
        errors = f"{_percent(incoming)} -> {_percent(best)}"
        return f"best of {self.epoch} epochs: epoch {self.selection.epoch}, validation error {errors}"

    def _fingerprint(self) -> dict[str, Any]:
        optimizer = self.stepper.optimizer
        return {
            "method": type(self.method).__name__,
            **self.method.settings(),
            "epochs": self.times.epochs,
            "steps_per_epoch": self.times.steps_per_epoch,
            "accumulation": self.times.accumulation,
            "schedule": vars(self.times.schedule) | {"milestones": list(self.times.schedule.milestones)},
            "optimizer": type(optimizer).__name__,
            "learning_rates": [g.get("initial_lr") for g in optimizer.param_groups],
            "precision": str(self.stepper.autocast),
            "clip_norm": self.stepper.clip_norm,
            "processes": distributed.world_size(),
        }

    def _save(self, within: dict[str, Any] | None) -> None:
        """Save at a step inside an epoch (``within``: the stream's state) or between epochs."""
        if self.folder is None:
            return
        self._flush()
        streams = distributed.gather_objects(within or self.stream.state_dict())
        if distributed.rank() == 0:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            own = {name: getattr(self, name) for name in ("epoch", "steps", "sums", "history")}
            place = {"streams": streams, "within_epoch": within is not None, "selection": self.selection.state_dict()}
            save_state(self.folder, {"fingerprint": self._fingerprint(), **parts, **own, **place})

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in the checkpoint."""
        stepper = self.stepper
        parts = {"method": self.method, "optimizer": stepper.optimizer, "scaler": stepper.scaler}
        return {**parts, "scheduler": self.scheduler}

    def _load(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Put everything back; give the stream's state where the run was inside an epoch."""
        check_same(state["fingerprint"], self._fingerprint(), self.folder or Path())
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.selection.load_state_dict(state["selection"], self.stepper.device)
        self.epoch, self.steps, self.sums = state["epoch"], state["steps"], state["sums"]
        self.history = state["history"]
        stream: dict[str, Any] = state["streams"][distributed.rank()]
        if state["within_epoch"]:
            return stream
        self.stream.load_state_dict(stream)
        return None


def _percent(metrics: Metrics | None) -> str:
    return "unknown" if metrics is None else f"{100 * metrics.error:.2f} %"


def _warn_of_incomplete(model: nn.Module, full: int, last: int) -> None:
    if any(isinstance(module, BATCH_NORMS) for module in model.modules()):
        warnings.warn(
            f"the last step of an epoch has {last} samples, a full mini-batch {full}: batch norm takes its statistics"
            " from these few, and the step counts as much as any; it can undo a network that fits its data. Give the"
            " loader drop_last=True",
            stacklevel=5,
        )
