"""The options of a run, typed: the flags of the command line and the settings of a recipe, each said once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from pof._support.checks import MOST_EPOCHS, MOST_PROCESSES, MOST_SEED, finite, whole_number
from pof.app.loggers import Logger
from pof.app.method_options import MethodOptions
from pof.app.methods import average_of, entry_of
from pof.training.schedules import Schedule

T = TypeVar("T")


@dataclass
class ModelOptions:
    """Which network.

    Args:
        model: resnet20, wrn-28-10, small-cnn and relatives, a timm name, or package.module:factory.
        weights: checkpoint to start from: .safetensors, .pt, .pth, .th, a run folder, or pretrained (timm's published
            weights; of a factory: those that it brings itself).
        head: qualified name of the head; found by itself if not given.
        source_classes: classes that the weights were trained for; if given, the head is replaced by a new one.
    """

    model: str
    weights: str | None = None
    head: str | None = None
    source_classes: int | None = None

    @property
    def is_factory(self) -> bool:
        """Whether the model is ``package.module:factory``."""
        return ":" in self.model and not self.model.startswith("timm:")

    @property
    def is_trained(self) -> bool:
        """Whether a trained network comes in: with weights, or from a factory that brings a backbone for a new head."""
        return self.weights is not None or (self.is_factory and self.source_classes is not None)

    @property
    def has_trained_head(self) -> bool:
        """Whether the incoming network classifies these classes already."""
        return self.weights is not None and self.source_classes is None


@dataclass
class DataOptions:
    """Which data.

    Args:
        data: digits, fashion-mnist, cifar10, cifar100, svhn, an image folder, or package.module:factory.
        data_root: where the files of a built-in data set are.
        validation: share of the training set held out for the selection, unless the data set has validation data of its
            own; 0 for none.
        split_seed: of the validation split; keep it over all stages of a network's training.
        train_size: train on a stratified part of this many samples; all if not given.
        fraction: the same as a share of the training samples, in (0, 1).
        augment: of the training images: default (usual for the data set), cutout (and a square cut out) or none.
        mean: of the normalisation, per channel; the data set's if not given.
        std: of the normalisation, per channel; the data set's if not given.
        image_size: side of the images of a folder, in pixels.
        workers: processes that load image folders and factories' data.
    """

    data: str
    data_root: str | None = None
    validation: float = 0.1
    split_seed: int = 0
    train_size: int | None = None
    fraction: float | None = None
    augment: Literal["default", "cutout", "none"] = "default"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    workers: int = 2


@dataclass
class TrainOptions(MethodOptions):
    """How to train.

    Args:
        lr: peak learning rate; auto: from that of the run whose folder --weights names.
        optimizer: sgd (Nesterov; of msam plain momentum) or adamw.
        momentum: of sgd.
        weight_decay: of the optimizer.
        schedule: of the learning rate; swa takes no cosine.
        clip_norm: bound on the gradient norm; none if not given.
        freeze_head: train the feature extractor only; pof and head-ascent always do.
        precision: fp32, bf16 or fp16; auto: bf16 where the hardware computes in it, else fp32.
        device: cpu, cuda, ...; found by itself if not given.
        checkpoint_every: optimizer steps between checkpoints, beside the one after each epoch.
    """

    lr: float | Literal["auto"] = 1e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = field(default_factory=Schedule)
    clip_norm: float | None = None
    freeze_head: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = None
    checkpoint_every: int | None = None


def schedule_of(training: TrainOptions) -> Schedule:
    """The schedule of a training: as asked for, or that of its method and average."""
    averages = average_of(training) == "swa"
    return training.schedule.settled(Schedule("constant") if averages else entry_of(training.method).schedule)


@dataclass
class RunOptions:
    """Where the run goes.

    Args:
        out: folder of the run.
        resume: go on with the run that is in ``out``.
        logger: send the figures to wandb, mlflow or trackio too, into its project pof; TensorBoard has them anyway.
    """

    out: str
    resume: bool = False
    logger: Logger | None = None


@dataclass
class ImproveOptions:
    """How to look for a better network.

    Args:
        out: folder of the search.
        resume: go on with the search that is in ``out``.
        jobs: processes that train side by side; set OMP_NUM_THREADS to a share of the cores.
        budget: passes over the training data (forward and backward) that may be spent in all.
        candidates: what to try, by name; by default as many of the usual ones as the budget pays.
        batch_size: samples per mini-batch; that of the network's own run if it has a folder, else 128.
        lr: centre of the rates that are tried; without it the largest stable ones are searched for.
        optimizer: sgd or adamw; its run's if it has a folder, else sgd.
        weight_decay: of the optimizer.
        precision: auto, fp32, bf16 or fp16.
        device: cpu, cuda, ...; found by itself if not given.
        seed: of everything random.
        validation_data: image folder with validation data; without it they are held out of the training data.
    """

    out: str
    resume: bool = False
    jobs: int = 1
    budget: float = 20.0
    candidates: list[str] = field(default_factory=list)
    batch_size: int | None = None
    lr: float | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    weight_decay: float = 5e-4
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = None
    seed: int = 0
    validation_data: str | None = None


def check_numbers(training: TrainOptions) -> None:
    """Refuse numbers of a run that cannot be, before anything is read or allocated."""
    whole_number("epochs", training.epochs, 1, MOST_EPOCHS)
    whole_number("seed", training.seed, 0, MOST_SEED)
    for name in ("batch_size", "accumulation", "checkpoint_every"):
        if (value := getattr(training, name)) is not None:
            whole_number(name, value, 1)
    if training.clip_norm is not None:
        finite("clip_norm", training.clip_norm, above=0)
    if training.lr != "auto":
        finite("lr", training.lr, above=0)
    if not 0 <= training.momentum < 1:
        raise ValueError(f"momentum must be in [0, 1); got {training.momentum}")
    finite("weight_decay", training.weight_decay, 0)


def check_data(options: DataOptions) -> None:
    """Refuse numbers of a data set that cannot be, before it is read."""
    whole_number("workers", options.workers, 0, MOST_PROCESSES)
    whole_number("split_seed", options.split_seed, 0, MOST_SEED)
    if options.train_size is not None:
        whole_number("train_size", options.train_size, 0)
    finite("validation", options.validation)
    if options.fraction is not None:
        finite("fraction", options.fraction)


def read_section(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Read a group of options from plain values, by the types of its dataclass; a ValueError says what does not fit."""
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("recipes and run folders need more than the library: pip install 'pof[app]'") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    try:
        made = parser.instantiate(parser.parse_object(dict(values)))
        return kind(**{field.name: made[field.name] for field in fields(kind)})  # type: ignore[arg-type]
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


def plain(value: Any) -> Any:
    """Turn a configuration into what YAML and JSON hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__dict__"):
        return plain(vars(value))
    return value
