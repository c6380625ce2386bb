"""A whole training run: data, model, method, fit, and the figures before and after, into one run folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pof._support.agreement import agree
from pof._support.distributed import gather_objects
from pof._support.precision import find_precision, float32_products
from pof._support.random import seed_everything
from pof.app.cards import card_of, load_with_source_head, new_head_of, refuse_new_head
from pof.app.inherit import check_split, check_trained
from pof.app.methods import Context, build_method, entry_of, named_function
from pof.app.options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
    check_numbers,
    plain,
    schedule_of,
)
from pof.app.run_files import read_config
from pof.app.run_folder import COMMIT, CONTENT, NETWORK, Run, commit, content_of, figures_of
from pof.app.splits import Splits, load, split, training_batches
from pof.data import Data, check_countable, eval_loader
from pof.data.description import Loader
from pof.data.mixing import class_weights
from pof.head.search import find_head
from pof.head.split import split as split_at_head
from pof.methods import Method
from pof.training.evaluation import evaluate
from pof.training.fit import FitResult, find_device, fit
from pof.training.loop import Log
from pof.training.selection import Judged

EVAL_BATCH = 500


@dataclass(frozen=True)
class JobResult:
    """What a run gave."""

    folder: Path
    fit: FitResult
    before: Judged | None
    """On the test set, of the weights that came in; None for a network that started from scratch."""
    after: Judged | None
    """On the test set, of the network handed back; None if the run was interrupted."""


def train(
    model: ModelOptions,
    data: DataOptions,
    training: TrainOptions,
    run: RunOptions,
    log: Log,
    purpose: str | None = None,
) -> JobResult:
    """Train or post-train a network and write the run folder.

    The test set is used once, at the end.  Under several processes the first one writes.  ``purpose`` names the command
    that needs a trained head.
    """
    check_numbers(training)
    device = find_device(training.device)
    with float32_products(device, "high"), ExitStack() as stack:
        return _train(model, data, training, run, log, purpose, device, stack)


def _train(
    model: ModelOptions,
    data: DataOptions,
    training: TrainOptions,
    run: RunOptions,
    log: Log,
    purpose: str | None,
    device: torch.device,
    stack: ExitStack,
) -> JobResult:
    rank, world = _processes()
    precision = find_precision(training.precision, device)
    rate, schedule = find_learning_rate(model, training), schedule_of(training)
    training = replace(training, lr=rate, precision=precision, schedule=schedule)
    config = plain({"model": vars(model), "data": vars(data), "training": vars(training), "processes": world})
    if (content := content_of(model.weights)) is not None:
        config[CONTENT] = content
    agree({**_of_all(config), "resume": run.resume})
    loaded, splits = load_for(model, data, training, purpose)
    batches = training_batches(loaded, splits, data, training, device, (rank, world))
    seed_everything(training.seed + rank)
    network, source_head = load_with_source_head(model, loaded, training.loss)
    card = card_of(model, loaded, model.head or find_head(network), training.loss)
    config |= {NETWORK: plain(vars(card)), COMMIT: commit()}
    if training.freeze_head:
        freeze_head(network, model)
    new = new_head_of(model, loaded, training.loss) is not None
    incoming = copy.deepcopy(network).to("cpu") if model.has_trained_head and not new else None
    folder = Run(run.out, config, resume=run.resume, overwrite=run.overwrite) if rank == 0 else None
    if folder is not None:
        stack.callback(folder.close)

    def both(row: Mapping[str, Any]) -> None:
        if folder is not None:
            folder.log(row)
            log(row)

    evaluating = partial(eval_loader, loaded, batch_size=EVAL_BATCH, workers=data.workers, device=device)
    weights = _class_weights(training, loaded, splits, log)
    with closing(batches.iterate(0)) as first_epoch:
        statistics = batches if splits.chosen is None else evaluating("train", indices=splits.train)
        source_head = None if source_head is None else source_head.to(device)
        own = (loaded.num_classes, statistics, first_epoch, not model.is_trained, weights, source_head)
        if training.compile:
            network.compile(dynamic=False)  # an epoch has two sizes of mini-batches at most
        method = build_method(Context(network.to(device), model.head, training, *own)).to(device)
    validation = None if splits.validation is None else evaluating(splits.held_in, indices=splits.validation)
    if folder is not None:
        folder.make_room()
    gather_objects(None)  # no process looks for a state before that
    result = _fit(method, batches, validation, training, run, device, both)
    if result.stopped == "interrupted":
        return JobResult(Path(run.out), result, None, None)
    test = evaluating("test")
    asked: Any = {"head": model.head, "loss": named_function(training.loss), "metric": named_function(training.metric)}
    before = None if incoming is None else evaluate(incoming.to(device), test, **asked)
    after = evaluate(network, test, **asked)
    if folder is not None:
        folder.finish(network, figures_of(result, before, after), card.metadata())
    return JobResult(Path(run.out), result, before, after)


def load_for(
    model: ModelOptions, data: DataOptions, training: TrainOptions, purpose: str | None = None
) -> tuple[Data, Splits]:
    """Load and split the data of a run, or refuse what network, data and options cannot do together.

    ``purpose`` names the command that needs a trained head.
    """
    if purpose is not None:
        check_trained(model, purpose)
    check_split(model, data)
    loaded = load(data, model)
    if purpose is not None:
        refuse_new_head(model, loaded, training.loss, purpose)
    _refuse_to_hold(model, loaded, training)
    splits = split(loaded, data)
    check_countable(loaded, training.loss, splits.judged)
    return loaded, splits


def _refuse_to_hold(model: ModelOptions, loaded: Data, training: TrainOptions) -> None:
    """Refuse to hold a new head fixed, under which a trained extractor would be trained."""
    frozen = training.freeze_head and model.source_classes is None  # the other has a sentence of its own
    held = training.method if entry_of(training.method).holds_head else "freeze_head" if frozen else None
    new = model.source_classes is not None or new_head_of(model, loaded, training.loss) is not None
    if held is not None and model.is_trained and new:
        raise ValueError(
            f"the network gets a new head, and {held} would hold that fixed as it is: train it first (pof fine-tune"
            " with another --method), then post-train that run"
        )


def _class_weights(training: TrainOptions, loaded: Data, splits: Splits, log: Log) -> torch.Tensor | None:
    if training.class_weights != "balanced":
        return None
    weights = class_weights(loaded.train_labels[splits.train], loaded.num_classes)
    log({"event": "class_weights", **dict(zip(loaded.classes, weights.tolist(), strict=True))})
    return weights


def _fit(
    method: Method,
    batches: Loader,
    validation: Iterable[Any] | None,
    training: TrainOptions,
    run: RunOptions,
    device: torch.device,
    log: Log,
) -> FitResult:
    """Fit as the options say."""
    return fit(
        method,
        batches,
        epochs=training.epochs,
        optimizer=make_optimizer(method, training),
        schedule=training.schedule,
        val_loader=validation,
        checkpoint_dir=Path(run.out) / "state",
        resume=run.resume,
        checkpoint_every=training.checkpoint_every,
        accumulation=training.accumulation,
        clip_norm=training.clip_norm,
        precision=training.precision,
        device=device,
        log=log,
        metric=named_function(training.metric),
    )


def freeze_head(network: nn.Module, options: ModelOptions) -> None:
    """Take the head out of training, in place."""
    if options.source_classes is not None:
        raise ValueError(f"freeze_head: a new head (source_classes {options.source_classes}) has to be trained")
    if not options.is_trained:
        raise ValueError("freeze_head: a network without --weights has a random head, which has to be trained")
    split_at_head(network, options.head).head.requires_grad_(False)


def find_learning_rate(model: ModelOptions, training: TrainOptions) -> float:
    """Find the peak learning rate; ``lr auto`` is a share of the rate that the incoming network was trained with.

    The shares are what was best on validation splits of two small data sets (docs/log.md).  Post-training with another
    optimizer than that of the training has no such rule.
    """
    if training.lr != "auto":
        return training.lr
    share = entry_of(training.method).rate
    if model.weights is None or not Path(model.weights).is_dir():
        raise ValueError(
            f"lr auto reads the learning rate from the folder of the run that trained the network, and weights are"
            f" {model.weights!r}: give --lr ({share} of the training's peak rate)"
        )
    trained: dict[str, Any] = read_config(Path(model.weights)).get("training", {})
    rate, optimizer = trained.get("lr"), trained.get("optimizer")
    if rate is None:
        raise ValueError(f"lr auto: {model.weights} is of no single training with a rate (a search?): give --lr")
    if not isinstance(rate, (int, float)) or optimizer != training.optimizer:
        raise ValueError(
            f"lr auto cannot follow the training of {model.weights} (lr {rate!r} of {optimizer!r}, now"
            f" {training.optimizer!r}): give --lr"
        )
    return share * rate


def make_optimizer(method: Method, training: TrainOptions) -> Optimizer:
    """Make the optimizer of a method."""
    check_numbers(training)
    if training.lr == "auto":
        raise ValueError("lr auto is no rate: give a finite number > 0")
    lr, decay, momentum = training.lr, training.weight_decay, training.momentum
    if training.optimizer == "adamw":
        return method.build_optimizer(torch.optim.AdamW, lr=lr, weight_decay=decay)
    nesterov = momentum > 0 and method.nesterov
    return method.build_optimizer(torch.optim.SGD, lr=lr, weight_decay=decay, momentum=momentum, nesterov=nesterov)


def _of_all(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that all processes must share: without places, which may be others on other machines."""
    places = {"model": ("weights",), "data": ("data_root", "workers"), "training": ("device",)}
    return {
        key: {name: part[name] for name in part if name not in places[key]} if key in places else part
        for key, part in config.items()
    }


def _processes() -> tuple[int, int]:
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes
