"""The loop itself: epochs, steps, validation, checkpoints."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pof._support import distributed
from pof._support.agreement import agree
from pof._support.batches import Inputs, call, check_inputs, cloned, outputs_in
from pof._support.files import lock
from pof._support.modules import contents, evaluating, frozen_norms, put_back, train
from pof._support.precision import autocast
from pof._support.random import preserved
from pof._support.text import number_of
from pof.methods import Method
from pof.training.checkpoint import CheckpointError, check_same, check_shapes, load_state, remove_state, save_state
from pof.training.evaluation import measured
from pof.training.interrupt import Interrupts
from pof.training.result import DivergenceWarning, FitResult
from pof.training.same_data import sampled
from pof.training.selection import Selection, change_of, worded
from pof.training.settings import Timetable, fingerprint, order_of
from pof.training.step import Stepper, StepResult, in_words, read_results
from pof.training.stream import Micro, Stream, one_pass_on, other_validation, same_draws, warn_of_incomplete, windows
from pof.training.tasks import AskedMetric

Log = Callable[[Mapping[str, Any]], None]


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
        self.fingerprint = fingerprint(method, stepper.optimizer, times, stepper.autocast, stepper.clip_norm, metric)
        self.order = order_of(method, stepper.optimizer)
        self.held, self.is_held = ExitStack(), False
        self.scheduler = times.schedule.attach(stepper.optimizer, times.steps)
        self.selection = Selection()
        self.epoch, self.steps = 0, 0
        self.leaves_nothing = False
        """Of a new run, until its first step: one that is refused keeps no folder occupied."""
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.pending: list[tuple[int, float, StepResult]] = []
        self.window: list[Micro] = []
        """The mini-batches of the last step."""
        self.validated: list[dict[str, Any]] | None = None
        self.unreached: list[str] | None = None
        # Reading a loss is a host synchronisation: on an accelerator it is done for many steps at once.
        self.flush_every = 1 if stepper.device.type == "cpu" else 20

    def run(self, resume: bool, interrupts: Interrupts) -> FitResult:
        try:
            return self._run(resume, interrupts)
        except Exception:
            if self.leaves_nothing and self.folder is not None:
                remove_state(self.folder)
            raise
        finally:
            self.scheduler.release()
            self.held.close()

    def _run(self, resume: bool, interrupts: Interrupts) -> FitResult:
        state = None
        if resume and self.folder is not None and self.folder.is_dir():
            self._hold(self.folder)
            state = load_state(self.folder)
        if resume:
            agree({"the step to resume from": None if state is None else state["steps"]})
        within = self._load(state) if state is not None else None
        lengths = {"steps": self.times.steps, "epochs": self.times.epochs}
        self.log({"event": "start", "step": self.steps, "epoch": self.epoch, **lengths})
        if state is None:
            self.selection.begin(self.method, self.stepper.optimizer)
            self._validate(0, time.perf_counter())
            self._save(None)
            self.leaves_nothing = True
        try:
            while self.epoch < self.times.epochs or self.steps == self.times.stop_at:
                if self.steps == self.times.stop_at and within is None:
                    return self._end("paused", f"paused at step {self.steps}")
                if not self._train_epoch(within, interrupts) and interrupts.requested():
                    saved = "resume to go on from there" if self.folder else "nothing was saved (no checkpoint_dir)"
                    which = "the best so far" if self.selection.metrics else "that of this step"
                    message = f"{interrupts.name} at step {self.steps}: stopped after the step; {saved}"
                    return self._end("interrupted", f"{message}; the network is {which}")
                within = None
        except _Diverged as diverged:
            warnings.warn(str(diverged), DivergenceWarning, stacklevel=5)
            self.selection.roll_back(self.method, self.stepper.optimizer)
            return self._end("diverged", str(diverged))
        return self._end(None, self._finished())

    def _train_epoch(self, within: dict[str, Any] | None, interrupts: Interrupts) -> bool:
        start, first, last, held = time.perf_counter(), 0, 0, within
        train(self.method, self.frozen)
        self.stepper.optimizer_mode(training=True)
        self.method.before_epoch(self.epoch, self.times.epochs, self.stepper.optimizer)
        for window in windows(self.stream, self.times.accumulation, self.epoch, within):
            if self.steps == self.times.stop_at:  # and the epoch goes on: else its end comes before the pause
                self._save(held)
                return False
            self._check_length(done=False)
            rate = self.stepper.optimizer.param_groups[0]["lr"]
            result = self._step(window)
            self.leaves_nothing = False
            self.scheduler.step()
            self.steps += 1
            self.pending.append((self.steps, rate, result))
            first, last = first or window[0].size, result.samples
            self.window = window
            due = self.times.checkpoint_every is not None and self.steps % self.times.checkpoint_every == 0
            held = self.stream.state_dict() if self.steps == self.times.stop_at else None
            stop = interrupts.requested()
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
        with preserved(loader := self.stream.loader):  # the next epoch has the order that it has without a pass
            self.method.after_epoch(self.epoch, self.times.epochs, partial(one_pass_on, loader, self.stepper.device))
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
            if self.unreached is None:
                named = self.method.model.named_parameters()
                self.unreached = [name for name, p in named if p.requires_grad and p.grad is None]
            return result
        except (ValueError, RuntimeError) as error:
            known = in_words(error, self.steps + 1, min(m.size for m in window), self.unreached or [])
            if known is None:
                raise
            raise (type(error) if isinstance(error, ValueError) else ValueError)(known) from error

    def _flush(self) -> None:
        """Read the losses of the last steps: log them, and stop at the first that is not finite."""
        if not self.pending:
            return
        found = read_results([result for _, _, result in self.pending])
        for (step, rate, _), (means, weight) in zip(self.pending, found, strict=True):
            if not math.isfinite(means["loss"]):
                raise _Diverged(
                    f"the loss became {means['loss']} at step {step} (epoch {self.epoch + 1}, learning rate {rate:g});"
                    f" the network of epoch {self.selection.epoch} was put back. Remedy: {self._remedy(step)}"
                )
            for name, value in means.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * weight
            self.sums["weight"] = self.sums.get("weight", 0.0) + weight
            self.log({"event": "step", "step": step, "epoch": self.epoch + 1, "lr": rate, **means})
        self.pending.clear()

    def _remedy(self, step: int) -> str:
        """That of the method, unless the step's inputs, where they are still at hand, are not finite themselves."""
        try:
            for micro in self.window if step == self.steps else ():
                check_inputs(micro.inputs)
        except ValueError as error:
            return f"its {error}; or, where the network takes such values, {self.method.remedy}"
        except (RuntimeError, TypeError):  # of tensors that torch cannot ask: the roll-back does not wait for a word
            pass
        return self.method.remedy

    def _check_finite(self) -> None:
        """Notice a network that the epoch's last step destroyed: no later loss would tell."""
        candidate = self.method.candidate()
        finite = all(bool(parameter.isfinite().all()) for parameter in candidate.parameters())
        if finite and self.window and self.window[-1].size:
            with torch.no_grad(), evaluating(candidate), autocast(self.stepper.device, self.stepper.autocast):
                # DDP would send buffers in a forward, which a process without samples does not run.
                alone = candidate.module if isinstance(candidate, DistributedDataParallel) else candidate
                found = outputs_in(call(alone, cloned(self.window[-1].inputs))).values()
                finite = all(bool(tensor.isfinite().all()) for tensor in found)
        self.window = []
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
                found = measured(candidate, self._noted(validation), **asked)
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
        if self.selection.collapsed(metrics, epoch / self.times.epochs):
            before = self.selection.incoming
            raise _Diverged(
                f"validation collapsed: error {worded(before)} before, {worded(metrics)} after epoch {epoch}"
                f" (step {self.steps}); the network of epoch {self.selection.epoch} was put back."
                f" Remedy: {self.method.remedy}"
            )

    def _noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Keep what a resume can know the validation data by."""
        for batch in batches:
            self.validated = sampled(batch) if self.validated is None else self.validated
            yield batch

    def _end(self, stopped: str | None, message: str) -> FitResult:
        self.stepper.optimizer_mode(training=False)
        judged = self.selection.metrics is not None
        if stopped != "paused" and (judged or stopped != "interrupted"):
            self.selection.deliver(self.method.model)
        row = {"event": "end", "stopped": stopped, "best_epoch": self.selection.epoch, "message": message}
        self.log({**row, "step": self.steps, "epoch": self.epoch})
        model, best = self.method.model, self.selection.epoch
        return FitResult(model, best, self.epoch, self.steps, stopped, message, self.history)

    def _finished(self) -> str:
        best, incoming = self.selection.metrics, self.selection.incoming
        if best is None:
            return f"{number_of(self.epoch, 'epoch')}; no validation data, so the last network is handed back unjudged"
        if self.selection.epoch == 0:
            values = [row[f"val_{best.metric}"] for row in self.history[1:]]
            reached = (max if best.higher_is_better else min)(values, default=math.nan)
            tie = f", and no smaller {best.tie_breaker}" if reached == best.value else ""
            return (
                f"no epoch was better on validation than the incoming network ({best.metric} {worded(incoming)}; the"
                f" best epoch had {best.worded(reached)}{tie}): the incoming network is handed back unchanged"
            )
        change = change_of(incoming, best)
        return f"best of {number_of(self.epoch, 'epoch')}: epoch {self.selection.epoch}, validation {change}"

    def _save(self, within: dict[str, Any] | None) -> None:
        """Save at a step inside an epoch (``within``: the stream's state) or between epochs."""
        if self.folder is None:
            return
        self._flush()
        streams = distributed.gather_objects(within or self.stream.state_dict())
        if distributed.rank() == 0:
            self._hold(self.folder)
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            own = {name: getattr(self, name) for name in ("epoch", "steps", "sums", "history", "order", "validated")}
            place = {"streams": streams, "within_epoch": within is not None, "selection": self.selection.state_dict()}
            method = contents(self.method, copies=False)
            save_state(self.folder, {"fingerprint": self.fingerprint, "method": method, **parts, **own, **place})

    def _hold(self, folder: Path) -> None:
        """Keep other processes out of the folder until the end."""
        if distributed.rank() == 0 and not self.is_held:
            folder.mkdir(parents=True, exist_ok=True)
            self.held.callback(lock(folder))
            self.is_held = True

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
        others = [found for found in distributed.gather_objects(self._other_than(state, stream)) if found is not None]
        if others:
            raise CheckpointError(
                f"cannot resume from {where}: {others[0]}; give the same, or train into another folder"
            )
        put_back(self.method, state["method"])
        self.selection.load_state_dict(state["selection"], self.stepper.device)
        self.epoch, self.steps, self.sums = state["epoch"], state["steps"], state["sums"]
        self.history, self.validated = state["history"], state.get("validated")
        if state["within_epoch"]:
            return stream
        self.stream.load_state_dict(stream)
        return None

    def _other_than(self, state: dict[str, Any], stream: dict[str, Any]) -> str | None:
        """Say what is other than in the state's run, of what older states do not know."""
        if state.get("order", self.order) != self.order:
            return "the optimizer has other parameters, or in another order"
        found = self.stream.other_than(stream)
        asked = found is None and "validated" in state
        return other_validation(self.val_loader, state["validated"], self.stepper.device) if asked else found
