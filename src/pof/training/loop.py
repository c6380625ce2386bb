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
from torch.nn.parallel import DistributedDataParallel

from pof._support import distributed
from pof._support.agreement import agree
from pof._support.batches import Inputs, call, outputs_in
from pof._support.described import described
from pof._support.modules import contents, evaluating, frozen_norms, put_back, train
from pof._support.precision import autocast
from pof.methods import Method
from pof.training.checkpoint import CheckpointError, check_same, check_shapes, load_state, save_state
from pof.training.evaluation import measured
from pof.training.interrupt import Interrupts
from pof.training.selection import Judged, Selection
from pof.training.settings import Timetable, fingerprint
from pof.training.step import Stepper, StepResult
from pof.training.stream import Micro, Stream, one_pass, same_draws, warn_of_incomplete, windows
from pof.training.tasks import AskedMetric

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
    """Why the run ended early: None, ``"diverged"``, ``"interrupted"`` or ``"paused"``."""
    message: str
    """What happened, in a sentence."""
    history: list[dict[str, Any]]
    """One row per epoch, epoch 0 first: losses, validation figures, the method's metrics."""


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
        metric: AskedMetric = None,
    ) -> None:
        self.method, self.stepper, self.stream, self.times = method, stepper, stream, times
        self.val_loader, self.folder, self.log, self.metric = val_loader, folder, log, metric
        self.frozen = frozen_norms(method.model)
        self.fingerprint = fingerprint(method, stepper.optimizer, times, stepper.autocast, stepper.clip_norm)
        self.fingerprint |= {} if metric is None else {"metric": described(metric)}
        self.scheduler = times.schedule.attach(stepper.optimizer, times.steps)
        self.selection = Selection()
        self.epoch, self.steps = 0, 0
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.pending: list[tuple[int, float, StepResult]] = []
        self.last: Micro | None = None
        self.unreached: list[str] | None = None
        # Reading a loss is a host synchronisation: on an accelerator it is done for many steps at once.
        self.flush_every = 1 if stepper.device.type == "cpu" else 20

    def run(self, resume: bool, interrupts: Interrupts) -> FitResult:
        try:
            return self._run(resume, interrupts)
        finally:
            self.scheduler.release()

    def _run(self, resume: bool, interrupts: Interrupts) -> FitResult:
        state = load_state(self.folder) if resume and self.folder is not None else None
        if resume:
            agree({"the step to resume from": None if state is None else state["steps"]})
        within = self._load(state) if state is not None else None
        lengths = {"steps": self.times.steps, "epochs": self.times.epochs}
        self.log({"event": "start", "step": self.steps, "epoch": self.epoch, **lengths})
        if state is None:
            self._validate(0, time.perf_counter())
            self._save(None)
        try:
            while self.epoch < self.times.epochs:
                if self.steps == self.times.stop_at:
                    return self._end("paused", f"paused at step {self.steps}")
                if not self._train_epoch(within, interrupts):
                    if not interrupts.requested():
                        continue  # to the pause
                    saved = "resume to go on from there" if self.folder else "nothing was saved (no checkpoint_dir)"
                    message = f"{interrupts.name} at step {self.steps}: stopped after the step; {saved}"
                    return self._end("interrupted", message)
                within = None
        except _Diverged as diverged:
            warnings.warn(str(diverged), DivergenceWarning, stacklevel=5)
            return self._end("diverged", str(diverged))
        return self._end(None, self._finished())

    def _train_epoch(self, within: dict[str, Any] | None, interrupts: Interrupts) -> bool:
        start = time.perf_counter()
        train(self.method, self.frozen)
        self.stepper.optimizer_mode(training=True)
        self.method.before_epoch(self.epoch, self.times.epochs, self.stepper.optimizer)
        first = last = 0
        for window in windows(self.stream, self.times.accumulation, self.epoch, within):
            self._check_length(done=False)
            rate = self.stepper.optimizer.param_groups[0]["lr"]
            result = self._step(window)
            self.scheduler.step()
            self.steps += 1
            self.pending.append((self.steps, rate, result))
            first, last = first or window[0].size, result.samples
            self.last = window[-1]
            due = self.times.checkpoint_every is not None and self.steps % self.times.checkpoint_every == 0
            stop = interrupts.requested() or self.steps == self.times.stop_at
            if due or stop or len(self.pending) >= self.flush_every:
                self._flush()
            if due or stop:
                self._save(self.stream.state_dict())
            if stop:
                return False
        self._flush()
        self._check_length(done=True)
        if self.epoch == 0:
            warn_of_incomplete(self.method.model, first, last)
        self.stepper.optimizer_mode(training=False)
        batches = partial(one_pass, self.stream.loader, self.stepper.device)
        self.method.after_epoch(self.epoch, self.times.epochs, batches)
        self._check_finite()
        self.epoch += 1
        self._validate(self.epoch, start)
        self._save(None)
        return True

    def _check_length(self, *, done: bool) -> None:
        """Notice a loader that gives more mini-batches than its length says, or fewer: the schedule is over that."""
        taken, said = math.ceil(self.stream.consumed / self.times.accumulation), self.times.steps_per_epoch
        if taken > said:
            raise ValueError(
                f"the training loader gives more mini-batches than its length says ({said} steps per epoch), and the"
                " schedule is over that: mend its __len__"
            )
        if done and self.epoch == 0 and taken < said:
            warnings.warn(
                f"the training loader gave {taken} steps where its length says {said}, and the schedule is over that:"
                " mend its __len__",
                stacklevel=7,
            )

    def _step(self, window: list[Micro]) -> StepResult:
        try:
            result = self.stepper.step(window)
            if distributed.active() and self.unreached is None:
                named = self.method.model.named_parameters()
                self.unreached = [name for name, p in named if p.requires_grad and p.grad is None]
            return result
        except (ValueError, RuntimeError) as error:
            place = f"step {self.steps + 1}"
            if "Expected more than 1 value per channel" in str(error):
                raise ValueError(
                    f"{place} has a mini-batch of {min(m.size for m in window)} sample, too few for batch norm: give"
                    " the loader drop_last=True, or freeze the norms with eval()"
                ) from error
            if "Expected to have finished reduction in the prior iteration" in str(error):
                name = next(iter(self.unreached or []), "a parameter")
                raise ValueError(
                    f"{place}: the loss does not reach {name!r} (an auxiliary head?), for whose gradient the processes"
                    " would wait: freeze it with requires_grad_(False)"
                ) from error
            raise

    def _flush(self) -> None:
        """Read the losses of the last steps: log them, and stop at the first that is not finite."""
        if not self.pending:
            return
        names = ["loss", *self.pending[0][2].metrics]
        means, totals = _read([result for _, _, result in self.pending])
        for (step, rate, _), values, total in zip(self.pending, means, totals, strict=True):
            row = dict(zip(names, values, strict=True))
            if not math.isfinite(row["loss"]):
                raise _Diverged(
                    f"the loss became {row['loss']} at step {step} (epoch {self.epoch + 1}, learning rate {rate:g});"
                    f" the network of epoch {self.selection.epoch} was put back. Remedy: {self.method.remedy}"
                )
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * total
            self.sums["weight"] = self.sums.get("weight", 0.0) + total
            self.log({"event": "step", "step": step, "epoch": self.epoch + 1, "lr": rate, **row})
        self.pending.clear()

    def _check_finite(self) -> None:
        """Notice a network that the epoch's last step destroyed: no later loss would tell."""
        candidate = self.method.candidate()
        finite = all(bool(parameter.isfinite().all()) for parameter in candidate.parameters())
        if finite and self.last is not None and self.last.size:
            with torch.no_grad(), evaluating(candidate), autocast(self.stepper.device, self.stepper.autocast):
                # DDP would send buffers in a forward, which a process without samples does not run.
                alone = candidate.module if isinstance(candidate, DistributedDataParallel) else candidate
                found = outputs_in(call(alone, self.last.inputs)).values()
                finite = all(bool(tensor.isfinite().all()) for tensor in found)
        self.last = None
        if not all(distributed.gather_objects(finite)):
            raise _Diverged(
                f"the network gives no finite outputs after step {self.steps}, the last of epoch {self.epoch + 1}; the"
                f" network of epoch {self.selection.epoch} was put back. Remedy: {self.method.remedy}"
            )

    def _validate(self, epoch: int, start: float) -> None:
        candidate = self.method.candidate()
        metrics = None
        if self.val_loader is not None:
            asked: dict[str, Any] = {"loss": self.method.judged_by(), "metric": self.metric}
            asked |= {"head": self.method.head_name, "precision": self.stepper.autocast}
            with same_draws(self.val_loader, self.stepper.device) as validation:
                found = measured(candidate, validation, **asked)
            metrics = distributed.gather_objects(found.metrics)[0]  # one judgement for all processes
        kept = self.selection.consider(epoch, candidate, metrics)
        row: dict[str, Any] = {"event": "epoch", "epoch": epoch, "step": self.steps, "best": kept}
        weight = self.sums.pop("weight", 0.0)
        row |= {f"train_{name}": total / weight if weight else 0.0 for name, total in self.sums.items()}
        row |= self.method.epoch_metrics()
        if metrics is not None:
            row |= {f"val_{name}": value for name, value in metrics.named().items()}
        row["seconds"] = round(time.perf_counter() - start, 3)
        self.sums.clear()
        self.history.append(row)
        self.log(row)
        if self.selection.collapsed(metrics):
            before = self.selection.incoming
            raise _Diverged(
                f"validation collapsed: error {_text(before)} before, {_text(metrics)} after epoch {epoch}"
                f" (step {self.steps}); the network of epoch {self.selection.epoch} was put back."
                f" Remedy: {self.method.remedy}"
            )

    def _end(self, stopped: str | None, message: str) -> FitResult:
        self.stepper.optimizer_mode(training=False)
        if stopped not in {"interrupted", "paused"}:
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
            values = [row[f"val_{best.metric}"] for row in self.history[1:]]
            reached = (max if best.higher_is_better else min)(values, default=math.nan)
            return (
                f"no epoch was better on validation than the incoming network ({best.metric} {_text(incoming)}; the"
                f" best epoch had {best.worded(reached)}): the incoming network is handed back unchanged"
            )
        figures = f"{best.metric} {_text(incoming)} -> {_text(best)}"
        return f"best of {self.epoch} epochs: epoch {self.selection.epoch}, validation {figures}"

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
            method = contents(self.method, copies=False)
            save_state(self.folder, {"fingerprint": self.fingerprint, "method": method, **parts, **own, **place})

    def _parts(self) -> dict[str, Any]:
        """What has a state dict, by its name in the checkpoint."""
        return {"optimizer": self.stepper.optimizer, "scaler": self.stepper.scaler, "scheduler": self.scheduler}

    def _load(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Put everything back; give the stream's state where the run was inside an epoch."""
        where = self.folder or Path()
        check_same(state["fingerprint"], self.fingerprint, where)
        try:
            check_shapes(contents(self.method, copies=False), state["method"])
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"the state in {where} does not fit this network and optimizer: {error}") from error
        stream: dict[str, Any] = state["streams"][distributed.rank()]
        others = [found for found in distributed.gather_objects(self.stream.other_than(stream)) if found is not None]
        if others:
            raise CheckpointError(
                f"cannot resume from {where}: {others[0]}; resume with the same data in the same order, or train into"
                " another folder"
            )
        put_back(self.method, state["method"])
        self.selection.load_state_dict(state["selection"], self.stepper.device)
        self.epoch, self.steps, self.sums = state["epoch"], state["steps"], state["sums"]
        self.history = state["history"]
        if state["within_epoch"]:
            return stream
        self.stream.load_state_dict(stream)
        return None


def _read(results: list[StepResult]) -> tuple[list[list[float]], list[float]]:
    """Means and weights of steps over the processes, as numbers: one host synchronisation for all of them."""
    values, weights = [[r.loss, *r.metrics.values()] for r in results], [r.weight for r in results]
    if weights[0].device.type == "cpu" and not distributed.active():
        return [[float(each) for each in row] for row in values], [float(each) for each in weights]
    own = torch.stack([torch.stack([each.double() for each in row]) for row in values])
    return distributed.weighted_mean(own, torch.stack(weights))


def _text(metrics: Judged | None) -> str:
    return "unknown" if metrics is None else metrics.worded(metrics.value)
