"""The methods in the Hugging Face Trainer: a Trainer that takes its training loss from a method of this package.

The reference mini-batch comes from the training loader.  Gradients are means over the samples of an accumulated step,
as in :func:`pof.fit`.  Evaluation, prediction and the saved model are the Trainer's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.batches import to_device, unpack
from pof._support.modules import frozen_norms, train
from pof._support.precision import widest_dtype
from pof._support.random import preserved
from pof.head.split import SplitModel
from pof.integrations._beside import Beside
from pof.integrations._losses import inner, needs_loss, own_loss
from pof.methods import Method, StepOutput
from pof.optim import PerturbingOptimizer
from pof.training.same_data import items_of, other_items
from pof.training.step import TINY, over_processes, share_of, warn_of_other_mean
from pof.training.stream import with_next

try:
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    from pof.integrations._surroundings import Surroundings, another_loader
except ImportError as error:
    raise ImportError("pof.integrations.transformers needs transformers: pip install 'pof[transformers]'") from error

STATE_FILE = "pof_state.pt"
MakeMethod = Callable[[nn.Module], Method]


class PostTrainer(Trainer):
    """A Trainer whose training loss is that of a method.

    ``PostTrainer(model, arguments, train_dataset=data, method=pof.PoF)``, and ``train()`` as ever.

    A custom Trainer keeps its code: ``class Mine(PostTrainer, MyTrainer)``.  ``label_smoothing_factor`` becomes
    the method's label smoothing.  Logged beside the loss are the method's metrics, such as ``radius``, as means over
    what counts since the last row.

    Args:
        *args: of the Trainer.
        method: around the model, or a function that makes one, such as :class:`pof.PoF`; it is called again for each
            model of ``model_init``.
        **kwargs: of the Trainer.

    Raises:
        ValueError: if the method is around another model, or the Trainer is set up for something that cannot be
            right: DeepSpeed, FSDP, DataParallel, a loss that is not the method's.
    """

    method: Method
    """Around ``model``, from the first :meth:`train` on."""

    def __init__(self, *args: Any, method: Method | MakeMethod, **kwargs: Any) -> None:
        if not isinstance(method, Method) and not callable(method):
            raise ValueError(f"method must be a pof.Method, or a function of the model such as pof.PoF; got {method!r}")
        super().__init__(*args, **kwargs)
        self._make_method = None if isinstance(method, Method) else method
        if isinstance(method, Method):
            if method.model is not self.model:
                raise ValueError("the method is around another model than the Trainer's: pass method.model to both")
            self._adopt(method)
        self._check_setup()
        self._resume_from: str | None = None
        self._wrapped: Optimizer | None = None
        self._beside: Beside | None = None
        self._items: Any = None
        self._epoch_iterator: Any = None
        self._pairs: Iterator[tuple[Any, Any]] = iter(())
        # The epoch's first mini-batch is the reference of its last one, also where a resumed run begins later.
        self._first: Any = None
        self._resumed_first: Any = None
        self._frozen: list[nn.Module] = []
        self._window: deque[tuple[Any, Any]] = deque()
        self._deferred: list[tuple[Any, Any]] = []
        self._total, self._processes = torch.zeros((), dtype=widest_dtype(self.args.device), device=self.args.device), 1
        self._of_penalty = self._total
        self._sums: dict[str, Tensor] = {}
        self._surroundings = Surroundings(self)
        self.add_callback(self._surroundings)

    def _check_setup(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("PostTrainer reads features from the whole model: use DDP, not DeepSpeed or FSDP")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"torch.nn.DataParallel over {self.args.n_gpu} GPUs would give each its own perturbation: start one"
                " process per GPU with torchrun, or show this one a single GPU (CUDA_VISIBLE_DEVICES=0)"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would not be used: the loss is the method's, as in pof.PoF(loss=...)")

    def _adopt(self, method: Method) -> None:
        if not isinstance(method, Method):
            compiled = "; compile it in place, method.compile()" if hasattr(method, "_orig_mod") else ""
            found = type(method).__name__ if isinstance(method, nn.Module) else repr(method)
            raise ValueError(f"the method's function must return a pof.Method; got {found}{compiled}")
        owner = next(kind for kind in type(self).__mro__ if "compute_loss" in vars(kind))
        weights = getattr(getattr(inner(method), "loss", None), "class_weights", None)
        if owner is not Trainer and not own_loss(method) and weights is None:
            raise ValueError(
                f"{owner.__name__}.compute_loss would be used in evaluation alone: give the method that loss, as in"
                " pof.PoF(model, loss=...)"
            )
        smoothing = self.args.label_smoothing_factor
        problem = getattr(getattr(method.model, "config", None), "problem_type", None)
        if problem in {"multi_label_classification", "regression"} and not own_loss(method):
            raise ValueError(needs_loss(f"problem_type={problem!r}"))
        if smoothing and own_loss(method):
            raise ValueError(
                f"label_smoothing_factor={smoothing} belongs to the cross-entropy: put it into the loss of your own"
            )
        if smoothing:
            reading: Any = inner(method)
            reading.loss.label_smoothing = smoothing
        self.method = method.to(self.args.device)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint, with the state of the method that was saved beside it."""
        last: Callable[[str], str | None] = get_last_checkpoint
        found = last(str(self.args.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        self._resume_from, self._resumed_first, self._items = found or None, None, None
        plain: Any = self.model
        if self.model_init is None:
            self._make_around(plain)
        self._frozen = [] if plain is None else frozen_norms(plain)  # model_init makes it later, nothing frozen
        try:
            return super().train(found or resume_from_checkpoint, *args, **kwargs)
        finally:
            if hasattr(self, "method"):
                self.method.release()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make the model, and the method around it while it is new."""
        model: nn.Module = super().call_model_init(trial)
        self._make_around(model)
        return model

    def _make_around(self, model: nn.Module | None) -> None:
        """Make the method where it is not there yet: before a checkpoint's weights are, since DELTA copies a start."""
        make = getattr(self, "_make_method", None)
        if (
            model is not None
            and make is not None
            and getattr(getattr(self, "method", None), "model", None) is not model
        ):
            self._adopt(make(model))

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the method, if it is not there yet, and the optimizer that it wants around the Trainer's."""
        plain: Any = self.model
        self._make_around(plain)
        inner(self.method).attach()  # an average goes on where it was
        if self._resume_from is not None:
            self._load_method(Path(self._resume_from))
        if self.optimizer is None or self._wrapped is None:
            inherited = super().create_optimizer
            # The Trainer groups the parameters by weight decay; they are the same ones.
            self.optimizer = self._wrapped = self.method.build_optimizer(lambda parameters: inherited(model))
            self._beside = Beside(self.method, self._wrapped, self.args.weight_decay)
        if isinstance(self._wrapped, PerturbingOptimizer) and self.accelerator.scaler is not None:
            raise ValueError(
                f"{type(self._wrapped).__name__} with fp16: the Trainer's GradScaler has no place for the second pass;"
                " use bf16=True"
            )
        optimizer: Optimizer = self.optimizer
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> tuple[list[Any], Any]:
        """Fetch the mini-batches of a step, and one ahead as the reference of the last."""
        begins = epoch_iterator is not self._epoch_iterator
        if begins:
            self._epoch_iterator, self._first, self._resumed_first = epoch_iterator, self._resumed_first, None
            plain = ((batch, None) for batch in epoch_iterator)
            self._pairs = with_next(epoch_iterator, self._first) if self.method.needs_reference else plain
        pairs = list(islice(self._pairs, args[0]))
        self._surroundings.count(len(pairs))
        if begins and pairs and self.method.needs_reference and self._first is None:
            self._first = pairs[0][0]
        self._window = deque(pairs)
        self._deferred.clear()
        if self._beside is not None:
            self._beside.clear()  # the Trainer clears those of the model
        targets = [unpack(batch)[1] for batch, _ in pairs]
        self._total, self._processes = self._over_all([self.method.weight_of(each) for each in targets])
        if self.method.penalty_weight_of(torch.zeros(1, dtype=torch.long)) is not None:
            self._of_penalty, _ = self._over_all([self.method.penalty_weight_of(each) for each in targets])
        found: tuple[list[Any], Any] = super().get_batch_samples(iter([batch for batch, _ in pairs]), *args)
        return found

    def _over_all(self, weights: list[Any]) -> tuple[Tensor, int]:
        """The sum over the mini-batches of a step, none in some processes, and the number of processes."""
        here = [torch.zeros_like(self._total), *(weight.to(self.args.device) for weight in weights)]
        return over_processes(torch.stack(here).sum())

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward on a mini-batch, and give its share in the mean loss of the step."""
        model.train()
        train(self.method, self._frozen)
        switch = getattr(self.optimizer, "train", None)  # schedule-free: evaluation has switched it over
        if callable(switch):
            switch()
        pair = to_device(self._window.popleft(), self.args.device)
        with self._through(model):
            loss = self._of_pair(pair)
        if self._beside is not None and not self._window:
            scaler = self.accelerator.scaler
            self._beside.finish(self.args.max_grad_norm * (1.0 if scaler is None else scaler.get_scale()))
        return loss

    def _of_pair(self, pair: tuple[Any, Any]) -> Tensor:
        if not isinstance(self._wrapped, PerturbingOptimizer):
            return self._backward(pair)
        self._deferred.append(pair)
        if self._window:
            return torch.zeros((), device=self.args.device)
        return self._passes(self._wrapped)

    def _passes(self, optimizer: PerturbingOptimizer) -> Tensor:
        """All passes of a step at once, with its last mini-batch."""
        record = iter([True, False])
        if self.accelerator.scaler is not None:
            optimizer.loss_scale = self.accelerator.scaler.get_scale()

        def one() -> Tensor:
            optimizer.zero_grad()
            first = next(record)
            return torch.stack([self._backward(pair, first) for pair in self._deferred]).sum()

        return optimizer.run_passes(one, self.method)

    def _backward(self, pair: tuple[Any, Any], record: bool = True) -> Tensor:
        inputs, targets = unpack(pair[0])
        self._check_targets(targets)
        reference = () if pair[1] is None else unpack(pair[1])
        with self.compute_loss_context_manager():
            output: StepOutput = self.method(inputs, targets, *reference)
        weight = self.method.weight_of(targets)
        if self._processes > 1 or self.args.gradient_accumulation_steps > 1:
            warn_of_other_mean(self.method, output, targets)
        counts, penalised = self.method.penalty_weight_of(targets), None
        if counts is not None:
            penalised = counts * self._processes / self._of_penalty.clamp_min(TINY)
        loss = share_of(output, weight * self._processes / self._total.clamp_min(TINY), penalised)
        self.accelerator.backward(loss)
        if record:
            for name, value in {"weight": torch.ones_like(weight), **output.metrics}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.detach() * weight
        return loss.detach()

    def _check_targets(self, targets: Tensor) -> None:
        """The library takes floating-point labels for multi-label ones, unless the model's config says otherwise."""
        told = getattr(getattr(self.model, "config", None), "problem_type", None) == "single_label_classification"
        if targets.is_floating_point() and not told and not own_loss(self.method):
            raise ValueError(needs_loss(f"labels of {targets.dtype} and shape {tuple(targets.shape)}"))

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Log, and with a row of training the method's metrics."""
        if "loss" in logs and self._sums:
            weight = self._sums.pop("weight").clamp_min(TINY)
            logs = {**logs, **{name: float(total / weight) for name, total in self._sums.items()}}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the plain model; into a checkpoint, the state of the method beside it."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call or output_dir is None or not hasattr(self, "method"):
            return
        first = self._first if self._surroundings.within_epoch() else None
        firsts = distributed.gather_objects(to_device(first, "cpu"))  # each process has its own
        self._items = self._items_now() if self._items is None else self._items
        if self.args.should_save:
            state = {"method": self._own_state(), "firsts": firsts, "items": self._items}
            state["taken"] = self._surroundings.taken if self._surroundings.within_epoch() else 0
            state |= {"whole": self._surroundings.whole, "epoch": self._surroundings.epoch}
            torch.save(state, Path(output_dir) / STATE_FILE)

    def _items_now(self) -> Any:
        """What a resume can know the training data by."""
        with preserved(), another_loader(self) as loader:
            return items_of(loader)

    def _own_state(self) -> dict[str, Any]:
        """What the method holds beside the model."""
        model = {id(value) for value in self.method.model.state_dict(keep_vars=True).values()}
        state = self.method.state_dict(keep_vars=True)
        own = {name: value for name, value in state.items() if id(value) not in model}
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in own.items()}

    def _load_method(self, folder: Path) -> None:
        if not (folder / STATE_FILE).is_file():
            raise ValueError(f"{folder} holds no {STATE_FILE}: it was not written by a PostTrainer, start without it")
        state = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        missing = self._own_state().keys() ^ state["method"].keys()
        if missing:
            raise ValueError(f"{folder / STATE_FILE} is of another method; they differ in {sorted(missing)}")
        other = None if self.args.ignore_data_skip else other_items(state.get("items"), self._items_now)
        if other is not None:
            raise ValueError(
                f"{folder} was written with {other}: give the same, or ignore_data_skip=True to go on with these"
            )
        self.method.load_state_dict(state["method"], strict=False)
        self._resume_from, self._surroundings.taken = None, state.get("taken")
        self._surroundings.whole, self._surroundings.epoch = state.get("whole"), state.get("epoch", 0)
        firsts = state.get("firsts") or [state["first"]]  # of an older version
        self._resumed_first = None if self.args.ignore_data_skip else firsts[distributed.rank() % len(firsts)]

    def plain_optimizer(self) -> Optimizer:
        """Find the optimizer that the method wanted, without the wrapper of Accelerate."""
        if self._wrapped is None:
            raise ValueError("there is no optimizer yet: train() makes it")
        return self._wrapped

    def _through(self, model: nn.Module) -> AbstractContextManager[None]:
        """Call the model as the Trainer has wrapped it, so that DDP sees the forward pass."""
        network: Any = inner(self.method)
        return nullcontext() if model is self.model else _calling(network.network, model)


@contextmanager
def _calling(network: SplitModel, wrapped: nn.Module) -> Iterator[None]:
    """Let a split network call a wrapper of its model, such as DDP, in the body."""
    plain, head = network.model, network.head_name
    prefix = next(name for name, module in wrapped.named_modules() if module is plain)
    network.model, network.head_name = wrapped, f"{prefix}.{head}"
    try:
        yield
    finally:
        network.model, network.head_name = plain, head
