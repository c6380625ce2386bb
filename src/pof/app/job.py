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
from pof._support.checks import MOST_CLASSES, whole_number
from pof._support.precision import find_precision, float32_products
from pof._support.random import seed_everything
from pof.app.methods import Context, build_method, entry_of
from pof.app.options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
    check_data,
    check_numbers,
    plain,
    schedule_of,
)
from pof.app.run_files import RunError, read_config
from pof.app.run_folder import CONTENT, Run, content_of, figures_of
from pof.data import (
    Data,
    DatasetLoader,
    TensorLoader,
    eval_loader,
    load_data,
    split_validation,
    stratified_fraction,
    train_loader,
)
from pof.data.description import DataSplit
from pof.data.registry import KNOWN
from pof.head.split import split as split_at_head
from pof.methods import Method
from pof.models import PRETRAINED, build_model, preprocessing_of, replace_head
from pof.models.build import square_side
from pof.models.sources.huggingface import saved_by_transformers
from pof.training.evaluation import Metrics, evaluate
from pof.training.fit import FitResult, find_device, fit
from pof.training.loop import Log

EVAL_BATCH = 500


@dataclass(frozen=True)
class JobResult:
    """What a run gave."""

    folder: Path
    fit: FitResult
    before: Metrics | None
    """On the test set, of the weights that came in; None for a network that started from scratch."""
    after: Metrics | None
    """On the test set, of the network handed back; None if the run was interrupted."""


@dataclass(frozen=True)
class Splits:
    """Indices into the training set; those of the validation data into ``held_in``."""

    train: torch.Tensor
    validation: torch.Tensor | None
    held_in: DataSplit = "train"
    """"validation" for a data set with validation data of its own."""


def train(
    model: ModelOptions,
    data: DataOptions,
    training: TrainOptions,
    run: RunOptions,
    log: Log,
) -> JobResult:
    """Train or post-train a network and write the run folder.

    The test set is used once, at the end.  Under several processes the first one writes.
    """
    check_numbers(training)
    device = find_device(training.device)
    with float32_products(device, "high"), ExitStack() as stack:
        return _train(model, data, training, run, log, device, stack)


def _train(
    model: ModelOptions,
    data: DataOptions,
    training: TrainOptions,
    run: RunOptions,
    log: Log,
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
    loaded = load(data, model)
    splits = split(loaded, data)
    batches = training_batches(loaded, splits, data, training, device, (rank, world))
    seed_everything(training.seed + rank)
    network = load_network(model, loaded)
    if training.freeze_head:
        freeze_head(network, model)
    incoming = copy.deepcopy(network).to("cpu") if model.has_trained_head else None
    folder = Run(run.out, config, resume=run.resume) if rank == 0 else None
    if folder is not None:
        stack.callback(folder.close)

    def both(row: Mapping[str, Any]) -> None:
        if folder is not None:
            folder.log(row)
            log(row)

    evaluating = partial(eval_loader, loaded, batch_size=EVAL_BATCH, workers=data.workers, device=device)
    with closing(batches.iterate(0)) as first_epoch:
        statistics = evaluating("train", indices=splits.train)
        own = (loaded.num_classes, statistics, first_epoch, not model.is_trained)
        method = build_method(Context(network.to(device), model.head, training, *own)).to(device)
    validation = None if splits.validation is None else evaluating(splits.held_in, indices=splits.validation)
    result = _fit(method, batches, validation, training, run, device, both)
    if result.stopped == "interrupted":
        return JobResult(Path(run.out), result, None, None)
    test = evaluating("test")
    before = None if incoming is None else evaluate(incoming.to(device), test, head=model.head)
    after = evaluate(network, test, head=model.head)
    if folder is not None:
        folder.finish(network, figures_of(result, before, after))
    return JobResult(Path(run.out), result, before, after)


def _fit(
    method: Method,
    batches: TensorLoader | DatasetLoader,
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
    )


def training_batches(
    loaded: Data,
    splits: Splits,
    data: DataOptions,
    training: TrainOptions,
    device: torch.device,
    place: tuple[int, int] = (0, 1),
) -> TensorLoader | DatasetLoader:
    """The mini-batches that this process (rank, number of processes) trains with."""
    return train_loader(
        loaded,
        batch_size=training.batch_size,
        seed=training.seed,
        indices=splits.train,
        workers=data.workers,
        device=device,
        drop_last=drops_last(len(splits.train), training.batch_size),
        rank=place[0],
        world_size=place[1],
    )


def drops_last(samples: int, batch_size: int) -> bool:
    """Whether an epoch's last incomplete batch is left out: there are others, and it is under a quarter of them.

    Its step would count as much as every other, on batch statistics of a few samples: 8 of 128 were seen to undo a
    fitted ResNet-20 at lr 0.05 (docs/log.md).  Another order leaves out other samples in each epoch.
    """
    return 0 < batch_size < samples and 0 < samples % batch_size < batch_size / 4


def load(options: DataOptions, model: ModelOptions | None = None) -> Data:
    """Load the data set that the options name; images in files as the network was trained with them."""
    check_data(options)
    said = (options.image_size, options.mean, options.std, options.interpolation, options.crop)
    own = None
    if model is not None and options.data not in KNOWN and any(value is None for value in said):
        own = preprocessing_of(model.model, model.model_args, model.weights)
    return load_data(
        options.data,
        data_root=options.data_root,
        augment=options.augment,
        mean=options.mean,
        std=options.std,
        image_size=options.image_size,
        interpolation=options.interpolation,
        crop=options.crop,
        preprocessing=own,
    )


def split(loaded: Data, options: DataOptions) -> Splits:
    """Split the training set into training and validation, and cut training to size.

    Where a data set has validation data of its own, nothing is held out of the training set.
    """
    labels = loaded.train_labels
    indices, validation = torch.arange(len(labels)), None
    held_in: DataSplit = "train" if loaded.val_labels is None else "validation"
    if options.validation and loaded.val_labels is not None:
        validation = torch.arange(len(loaded.val_labels))
    elif options.validation:
        indices, validation = split_validation(labels, options.validation, seed=options.split_seed)
    if options.train_size is not None and options.fraction is not None:
        raise ValueError(f"give train_size ({options.train_size}) or fraction ({options.fraction}), not both")
    for name, size in (("train_size", options.train_size), ("fraction", options.fraction)):
        if size is not None:
            indices = indices[stratified_fraction(labels[indices], size, seed=options.split_seed, name=name)]
    return Splits(indices, validation, held_in)


def load_network(options: ModelOptions, loaded: Data) -> nn.Module:
    """Build the network for a data set, with its weights."""
    weights = None if options.is_factory and options.weights == PRETRAINED else options.weights
    if weights is not None and Path(weights).is_dir() and not saved_by_transformers(weights):
        weights = str(Path(weights) / "model.safetensors")
        if not Path(weights).exists():
            raise RunError(f"{options.weights} has no model.safetensors: has that run ended?")
    if options.source_classes is not None:
        whole_number("source_classes", options.source_classes, 2, MOST_CLASSES)
    classes = options.source_classes or loaded.num_classes
    network = build_model(
        options.model,
        num_classes=classes,
        in_channels=loaded.in_channels,
        weights=weights,
        args=options.model_args,
        image_size=square_side(loaded.image_shape),
        classes=loaded.classes if options.source_classes is None else (),
    )
    if options.source_classes is not None:
        replace_head(network, loaded.num_classes, options.head)
    return convolutions_channels_last(network)


def convolutions_channels_last(network: nn.Module) -> nn.Module:
    """Change the order of convolutions' weights in memory, in place: they are faster, in bf16 on a CPU by two times.

    Other tensors of four dimensions stay as they are: somebody may ``view`` them.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
    return network


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
