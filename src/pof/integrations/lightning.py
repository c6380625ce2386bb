"""The methods in Lightning: a LightningModule to inherit from, and a Trainer that is used as ever.

The loss comes from the method, the reference mini-batch from the training loader, and SAM through the closure that
Lightning hands to optimizers.  Gradients are means over the samples of an accumulated step, a short mini-batch
counting by its samples, as in :func:`pof.fit`.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from pof._support.batches import Inputs, samples_of, unpack
from pof._support.modules import frozen_norms, train
from pof._support.random import preserved
from pof.integrations._ahead import AheadLoader
from pof.integrations._losses import inner
from pof.integrations._module import Use, check_module
from pof.integrations._window import go_on, unfinished
from pof.methods import Method, StepOutput
from pof.methods.base import refuse_unknown_epochs
from pof.optim import MSAM, PerturbingOptimizer
from pof.training.step import TINY, over_processes, warn_of_other_mean, weighted
from pof.training.stream import one_pass

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from pof.integrations._leaving import ends_by_itself, leave_on_exceptions
except ImportError as error:
    raise ImportError("pof.integrations.lightning needs Lightning: pip install 'pof[lightning]'") from error


WINDOW = ("weight", "expected", "held", "taken")
"""What a process holds of a step, by the names in a checkpoint."""


class PostTraining(LightningModule):
    """A LightningModule whose training loss is that of a method of this package.

    Set ``self.method`` and say what the optimizer is; everything else is an ordinary LightningModule::

        class Mine(PostTraining):
            def __init__(self, model):
                super().__init__()
                self.method = pof.PoF(model)

            def configure_optimizers(self):
                return self.method.build_optimizer(torch.optim.SGD, lr=1e-3, momentum=0.9)

    A module that exists already keeps its code, ``class Post(PostTraining, Existing)``: it is inherited from first, and
    its ``training_step`` takes the place of the other one.  Whoever overrides a hook that is defined here calls
    ``super()``, as usual in Lightning.

    Logged are ``pof/loss`` and the method's metrics, such as ``pof/radius``, per mini-batch.
    """

    method: Method
    """Made by the subclass; in its checkpoints too."""

    _loader: AheadLoader | None = None
    _reference: Any = None
    _held: list[tuple[Any, int]]
    _weight: Any = None
    # Mini-batches since the last step, and what a checkpoint held of a step that was not taken yet.
    _taken = 0
    _unfinished: dict[str, Any] | None = None
    _positions: Sequence[dict[str, Any]] = ()
    _ended = False
    # Per mini-batch, after which gradients are rescaled; None where a step is one mini-batch of one process.
    _expected: Tensor | None = None
    _pass = 1
    _begun: int | None = None
    _use: Use

    def method_loss(self, batch: Any) -> Tensor:
        """Compute the method's loss for a custom ``training_step``, and log it.

        Args:
            batch: ``(inputs, targets)``, or a dict with ``labels``; the one that ``training_step`` got.

        Returns:
            Scalar with graph, in such units that Lightning's accumulation gives the mean over samples.
        """
        inputs, targets = unpack(batch)
        reference = () if self._reference is None else unpack(self._reference)
        output: StepOutput = self.method(inputs, targets, *reference)
        if self._pass == 1:
            values = {"loss": output.loss.detach(), **output.metrics}
            self.log_dict({f"pof/{name}": value for name, value in values.items()}, batch_size=samples_of(targets))
        if self._expected is None:
            return output.loss
        warn_of_other_mean(self.method, output, targets)
        return weighted(output.loss, self.method.weight_of(targets) / self._expected)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the method's loss, a scalar with graph; ``batch_idx`` is not read."""
        return self.method_loss(batch)

    def setup(self, stage: str) -> None:
        """Look ahead in the training loader from here on: the tuner trains before ``on_fit_start``."""
        super().setup(stage)
        if stage != "fit":
            return
        check_module(self, PostTraining)
        self._loader, self._held, self._pass, self._begun = None, [], 1, None
        self._taken, self._weight, self._unfinished, self._positions = 0, None, None, ()
        self._use = Use(self, PostTraining)
        inner(self.method).attach()  # an average goes on where it was
        train(self.method, frozen_norms(self.method.model))
        strategy: Any = self.trainer.strategy

        def process_dataloader(loader: Any) -> Any:
            processed = type(strategy).process_dataloader(strategy, loader)
            # Lightning asks for the loaders of validation in another state than `training`.
            return self._look_ahead(processed) if self.trainer.training else processed

        leave_on_exceptions(self.trainer, self.let_go)
        # The one public place that sees the loader with its distributed sampler, before it is iterated.
        strategy.process_dataloader = process_dataloader
        strategy.training_step = self._use.asked(strategy.training_step)

    def teardown(self, stage: str) -> None:
        """Let go of the trainer's strategy and of the model; the tuner too ends here."""
        super().teardown(stage)
        if stage == "fit":
            self.let_go()

    def let_go(self) -> None:
        """Leave both as they were, also where a run breaks off."""
        for name in ("process_dataloader", "training_step"):
            vars(self.trainer.strategy).pop(name, None)
        ends_by_itself(self.trainer)
        if hasattr(self, "_use"):
            self._use.leave()
        self.method.release()

    def _look_ahead(self, loader: Any) -> Any:
        if self.trainer.lightning_module is not self:
            return loader
        trainer, limit = self.trainer, self.trainer.limit_train_batches

        def length() -> float:
            # Before the trainer has counted, of a loader without a length, the limit is known alone.
            return min(trainer.num_training_batches, limit if isinstance(limit, int) else math.inf)

        self._loader = AheadLoader(loader, self.method.needs_reference, lambda: trainer.current_epoch, length)
        for position in self._positions:
            self._loader.load_state_dict(position)
            self._loader.ended = self._ended
        self._positions = ()
        return self._loader

    def on_train_start(self) -> None:
        """Refuse what cannot be right."""
        super().on_train_start()
        if self._loader is None:
            raise ValueError("setup was overridden without super(): the training loader was not prepared")
        if self.trainer.train_dataloader is not self._loader:
            kind = type(self.trainer.train_dataloader).__name__
            raise ValueError(f"PostTraining takes one training loader; got a {kind} of them: combine their data sets")
        several = self.trainer.accumulate_grad_batches > 1 or self.trainer.world_size > 1
        if several and self.method.penalty_weight_of(torch.zeros(1, dtype=torch.long)) is not None:
            warnings.warn(
                "class weights beside a regulariser: Lightning does not tell the mini-batches of a step in advance, so"
                " the penalty of each counts by its class weights, not by its samples as in pof.fit",
                stacklevel=2,
            )
        optimizer = self._plain_optimizer()
        if not isinstance(optimizer, PerturbingOptimizer):
            return
        if optimizer.model is None and not isinstance(optimizer, MSAM):
            optimizer.model = self.method  # the running statistics of the first pass are to count alone
        name = type(optimizer).__name__
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                f"{name} with precision={self.trainer.precision!r}: Lightning's GradScaler calls the closure once and"
                " unscales before the optimizer knows of it, so there is no second pass; use 'bf16-mixed' or '32-true'"
            )
        if isinstance(optimizer, MSAM) and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"MSAM with accumulate_grad_batches={self.trainer.accumulate_grad_batches}: Lightning takes all but"
                " the last mini-batch at weights that are not perturbed; use larger mini-batches, or pof.fit"
            )

    def on_train_epoch_start(self) -> None:
        """Tell the loader that an epoch begins at its beginning."""
        super().on_train_epoch_start()
        if self._loader is not None:
            self._loader.begin_epoch()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Fetch the reference of this mini-batch, and count its samples."""
        # Not in on_train_epoch_start: Lightning leaves that out where it resumes behind an epoch's last mini-batch.
        if self._begun != self.current_epoch:
            self._begun = self.current_epoch
            self.method.before_epoch(self.current_epoch, self._epochs(), self._plain_optimizer())
        reference = None if self._loader is None else self._loader.take()
        self._reference = None if reference is None else self._transferred(reference)
        weight = self.method.weight_of(unpack(batch)[1])
        if self._unfinished is not None and batch_idx % self.trainer.accumulate_grad_batches:
            own = go_on(self, self.method, self._unfinished, self.device)
            self._weight, self._expected, self._held, self._taken = (own[name] for name in WINDOW)
        self._unfinished = None
        if self._taken == 0:
            self._held.clear()
            total, processes = over_processes(weight)
            several = processes > 1 or self.trainer.accumulate_grad_batches > 1
            # If all mini-batches of the step count as much, weights are 1 and nothing is rescaled.
            self._expected = torch.where(total > 0, total / processes, 1.0) if several else None
        self._weight = weight if self._taken == 0 else self._weight + weight
        self._taken, self._pass = self._taken + 1, 1
        if isinstance(self._plain_optimizer(), PerturbingOptimizer):
            self._held.append((batch, batch_idx))
        return super().on_train_batch_start(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Validation, which may follow, draws random numbers that a resumed run does not."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self._loader is not None and self.trainer.enable_validation:
            self._loader.leave()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save a step that has begun too: a validation, and its checkpoint, may come between two mini-batches of it."""
        super().on_save_checkpoint(checkpoint)
        if self._taken and self._loader is not None:
            own = zip(WINDOW, (self._weight, self._expected, self._held, self._taken), strict=True)
            checkpoint["pof_window"] = unfinished(self, self.method, dict(own))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it, at the place in the data."""
        super().on_load_checkpoint(checkpoint)
        self._unfinished = checkpoint.get("pof_window")
        # Lightning itself forgets this where the checkpoint was written at the end of an epoch.
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        saved = loop.get("state_dict", {}).get("combined_loader", ())
        self._positions = [state for state in saved if "processes" in state]
        progress = loop.get("epoch_progress", {}).get("current", {})
        last = loop.get("epoch_loop.batch_progress", {}).get("is_last_batch", False)
        self._ended = last or progress.get("started") == progress.get("processed")

    def _transferred(self, batch: Any) -> Any:
        """Send a mini-batch the way that Lightning sends mini-batches."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        data: Any = getattr(self.trainer, "datamodule", None)
        hooks = self if data is None or not is_overridden("on_before_batch_transfer", data) else data
        return self.trainer.strategy.batch_to_device(hooks.on_before_batch_transfer(batch, 0))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, with as many passes as the optimizer wants; then let the method adapt."""
        plain = self._plain_optimizer()
        if isinstance(plain, PerturbingOptimizer) and optimizer_closure is not None:
            optimizer_closure = self._closure(plain, optimizer_closure)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._taken = 0  # here, before callbacks save anything
        self.method.after_step()
        if self.trainer.is_last_batch:
            self._end_epoch()

    def on_train_end(self) -> None:
        """A run that ends inside of an epoch ends that too: averages, and MSAM, want statistics of their own."""
        super().on_train_end()
        if self._begun is not None and self._loader is not None:
            with preserved(self._loader.loader):
                self._end_epoch()

    def _end_epoch(self) -> None:
        self._use.end_epoch()
        self.method.after_epoch(self.current_epoch, self._epochs(), self._training_batches)
        self._begun = None

    def _closure(self, optimizer: PerturbingOptimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure that knows which pass it is, and runs all mini-batches of the step in the second one."""
        calls = count(1)

        def run() -> Any:
            self._pass = next(calls)
            if self._pass == 1 or len(self._held) == 1:
                return closure()
            # Lightning's own closure would add the last mini-batch to the gradients of the first pass.
            optimizer.zero_grad()
            for batch, batch_idx in self._held:
                wanted = len(inspect.signature(self.training_step).parameters)
                output: Any = self.trainer.strategy.training_step(*(batch, batch_idx)[:wanted])
                loss = output if isinstance(output, Tensor) else output["loss"]
                self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, optimizer)
            return loss

        return run

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradients those of the mean over samples; they are before clipping here."""
        super().on_before_optimizer_step(optimizer)
        if self._expected is None:
            return
        total, processes = over_processes(self._weight)
        rescale = self._expected * self.trainer.accumulate_grad_batches * processes / total.clamp_min(TINY)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(rescale)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, but not in the first of SAM's passes: its gradient is a direction only."""
        plain = self._plain_optimizer()
        ascends = isinstance(plain, PerturbingOptimizer) and plain.will_ascend
        if ascends and not isinstance(plain, MSAM) and self._pass == 1:
            return
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _plain_optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    def _epochs(self) -> int:
        """Epochs of the whole run; where the trainer counts steps, as many as they need."""
        epochs = self.trainer.max_epochs
        if epochs is not None and epochs > 0:
            return epochs
        batches = self.trainer.num_training_batches
        if math.isinf(batches):  # a loader without a length: the epoch at hand is the last that is known of
            refuse_unknown_epochs(self.method)
            return int(self.current_epoch) + 1
        return max(1, math.ceil(self.trainer.max_steps / math.ceil(batches / self.trainer.accumulate_grad_batches)))

    def _training_batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        """A pass over as many mini-batches as an epoch trains on; of a stream without an end, as it has until here."""
        loader, length = cast(AheadLoader, self._loader), self.trainer.num_training_batches
        batches = islice(one_pass(loader.loader), loader.consumed if math.isinf(length) else int(length))
        return map(unpack, map(self._transferred, batches))
