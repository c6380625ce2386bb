"""The options of a run, typed: the flags of the command line and the settings of a recipe, each said once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from pof._support.checks import MOST_EPOCHS, MOST_PROCESSES, MOST_SEED, finite, whole_number
from pof._support.factory import is_factory
from pof._support.preprocessing import Interpolation
from pof.app.loggers import Logger
from pof.app.method_options import MethodOptions
from pof.app.methods import average_of, entry_of, reads_classes
from pof.training.schedules import Schedule

T = TypeVar("T")


@dataclass
class ModelOptions:
    """Which network.

    Args:
        model: Name of the network: resnet20, wrn-28-10, small-cnn and relatives, timm:NAME, torchvision:NAME, hf:FOLDER
            (or a name on the Hugging Face hub), or package.module:factory. A run folder as weights says it itself.
        model_args: Further arguments of the network, as its source takes them, in JSON such as {"drop_path_rate": 0.1}.
        weights: Checkpoint to start from: .safetensors, .pt, .pth, .ckpt, a run folder, a folder of Transformers (hf),
            or pretrained, which stands for the published weights of timm, torchvision or hf and for those that a
            factory brings itself.
        head: Qualified name of the head. It is found by itself if not given.
        source_classes: Number of classes that the weights were trained for. If given, they get a new head.
    """

    model: str
    weights: str | None = None
    head: str | None = None
    source_classes: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)

    @property
    def is_factory(self) -> bool:
        """Whether the model is ``package.module:factory``."""
        return is_factory(self.model)

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
        data: Data set: digits, fashion-mnist, cifar10, cifar100, svhn; an image folder; an index (.csv,
            .parquet); arrays (.npz); hf:FOLDER of datasets; WebDataset shards (.tar); or package.module:factory. A run
            folder as weights says it itself.
        data_root: Folder that --data is in; of a built-in data set, the folder of its files.
        validation: Share of the training set held out for the selection, unless the data set has validation data of its
            own; 0 for none.
        split_seed: Seed of the validation split. Keep it over all stages of a network's training.
        train_size: Train on a stratified part of this many samples. All are used if not given.
        fraction: Train on a stratified part that is this share of the training samples, in (0, 1).
        augment: Augmentation of the training images: default (usual for the data set), cutout (and a square cut out),
            randaugment (and RandAugment) or none.
        mean: Mean of the normalisation, per channel, such as 0.5,0.5,0.5. If not given it is the data set's, of image
            files the network's.
        std: Standard deviation of the normalisation, per channel. If not given it is the data set's, of image files the
            network's.
        image_size: Side of the inputs made of image files, in pixels. It is the network's if not given.
        interpolation: Interpolation where image files are resized. It is the network's if not given.
        crop: Share of a resized image file that is kept in evaluation, in (0, 1]. It is the network's if not given.
        workers: Number of processes that load image folders and factories' data.
    """

    data: str
    data_root: str | None = None
    validation: float = 0.1
    split_seed: int = 0
    train_size: int | None = None
    fraction: float | None = None
    augment: Literal["default", "cutout", "randaugment", "none"] = "default"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    interpolation: Interpolation | None = None
    crop: float | None = None
    workers: int = 2


@dataclass
class TrainOptions(MethodOptions):
    """How to train.

    Args:
        lr: Peak learning rate. With auto it follows from that of the run whose folder --weights names.
        optimizer: Optimizer: sgd (with Nesterov momentum; of msam plain momentum) or adamw.
        momentum: Momentum of sgd.
        weight_decay: Weight decay of the optimizer.
        schedule: Schedule of the learning rate. The averages of swa take no cosine.
        metric: What validation chooses by: error, rmse, mae, r2 or loss, as far as the loss has it, or
            package.module:callable. It is the loss's first one if not given.
        clip_norm: Bound on the gradient norm. There is none if not given.
        steps_per_epoch: Mini-batches in an epoch of a stream (IterableDataset), which has no length.
        class_weights: Weights of the classes in the loss. With balanced it is the inverse of their frequency.
        sampler: Sampler of the training data. With balanced it draws each class equally often, with replacement.
        mixup: Strength alpha of mixup. There is none if not given.
        cutmix: Strength alpha of CutMix. There is none if not given. With both, a mini-batch is mixed by one of them.
        freeze_head: Train the feature extractor only, as pof and head-ascent always do.
        precision: Number format of the forward pass: fp32, bf16 or fp16. With auto it is bf16 where the hardware
            computes in it, else fp32.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        compile: Compile the network with torch.compile: minutes at the start, faster steps on an accelerator.
        checkpoint_every: Optimizer steps between checkpoints, beside the one after each epoch.
    """

    lr: float | Literal["auto"] = 1e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = field(default_factory=Schedule)
    metric: str | None = None
    clip_norm: float | None = None
    steps_per_epoch: int | None = None
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    mixup: float | None = None
    cutmix: float | None = None
    freeze_head: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = None
    compile: bool = False
    checkpoint_every: int | None = None


def schedule_of(training: TrainOptions) -> Schedule:
    """The schedule of a training: as asked for, or that of its method and average."""
    averages = average_of(training) == "swa"
    return training.schedule.settled(Schedule("constant") if averages else entry_of(training.method).schedule)


@dataclass
class RunOptions:
    """Where the run goes.

    Args:
        out: Folder of the run.
        resume: Go on with the run that is in the folder, with the options that it was started with.
        overwrite: Remove the run that is in the folder, once this one is ready to start. A folder that holds anything
            else is refused.
        dry_run: Print what would be trained and what it costs, and write nothing.
        logger: Logger that gets the figures too, into its project pof: wandb, mlflow or trackio. TensorBoard has them
            anyway.
    """

    out: str
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    logger: Logger | None = None


@dataclass
class ImproveOptions:
    """How to look for a better network.

    Args:
        out: Folder of the search.
        resume: Go on with the search that is in the folder, with the options that it was started with.
        overwrite: Remove the search that is in the folder, and start anew. A folder with anything else is refused.
        dry_run: Print what would be tried and what it costs, and write nothing.
        jobs: Number of runs that train side by side: one by default, and on a cluster all that it has room for. Set
            OMP_NUM_THREADS to a share of the cores.
        budget: Passes over the training data (forward and backward) that may be spent in all.
        candidates: Names of what to try. By default it is as many of the usual ones as the budget pays.
        batch_size: Samples per mini-batch. By default it is that of the network's own run if it has a folder, else 128.
        lr: Such as the peak rate of its training: half and a tenth of it are tried. Without it the largest stable rates
            are searched for.
        optimizer: Optimizer: sgd or adamw. By default it is that of the network's own run if it has a folder, else sgd.
        weight_decay: Weight decay of the optimizer.
        precision: Number format of the forward pass: auto, fp32, bf16 or fp16.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
        seed: Seed of everything random.
        validation_data: Data set of your own to validate on: its part for validation, or without parts all of it. Then
            nothing is held out of the training data.
    """

    out: str
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    jobs: int | None = None
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
    for name in ("batch_size", "accumulation", "checkpoint_every", "steps_per_epoch"):
        if (value := getattr(training, name)) is not None:
            whole_number(name, value, 1)
    if training.clip_norm is not None:
        finite("clip_norm", training.clip_norm, above=0)
    if training.lr != "auto":
        finite("lr", training.lr, above=0)
    if not 0 <= training.momentum < 1:
        raise ValueError(f"momentum must be in [0, 1); got {training.momentum}")
    finite("weight_decay", training.weight_decay, 0)
    for name in ("mixup", "cutmix"):
        if (alpha := getattr(training, name)) is None:
            continue
        finite(name, alpha, above=0)
        if training.loss in {"bce", "mse", "ordinal"}:
            raise ValueError(
                f"{name} makes probabilities of labels, which are for the cross-entropy, and the loss is"
                f" {training.loss}: leave it out"
            )
        if reads_classes(training):
            raise ValueError(
                f"{name} makes probabilities of labels, and {training.method} reads the one class of each sample: leave"
                f" it out, or take another method, such as finetune, pof or sam"
            )
    if training.class_weights == training.sampler == "balanced":
        raise ValueError("class_weights balanced and sampler balanced would correct for the classes twice: give one")


def check_data(options: DataOptions) -> None:
    """Refuse numbers of a data set that cannot be, before it is read."""
    whole_number("workers", options.workers, 0, MOST_PROCESSES)
    whole_number("split_seed", options.split_seed, 0, MOST_SEED)
    if options.train_size is not None:
        whole_number("train_size", options.train_size, 1)
    finite("validation", options.validation, 0)
    if options.fraction is not None:
        finite("fraction", options.fraction, above=0)
    for name, other in (("validation", ""), ("fraction", ", or --train_size, a number of samples")):
        if (share := getattr(options, name)) is not None and share >= 1:
            raise ValueError(f"{name} {share}: give a share of the training samples, less than 1{other}")


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
    return value.item() if type(value).__module__ == "numpy" else value
