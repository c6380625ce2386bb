"""The options of a run, typed: the flags of the command line and the settings of a recipe, each said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pof.training.schedules import Schedule


@dataclass
class ModelOptions:
    """Which network.

    Args:
        model: resnet20, wrn-28-10, small-cnn and relatives, a timm name, or package.module:factory.
        weights: checkpoint to start from: .safetensors, .pt, .pth, .th, or a run folder.
        head: qualified name of the head; found by itself if not given.
        source_classes: classes that the weights were trained for; if given, the head is replaced by a new one.
    """

    model: str
    weights: str | None = None
    head: str | None = None
    source_classes: int | None = None


@dataclass
class DataOptions:
    """Which data.

    Args:
        data: digits, fashion-mnist, cifar10, cifar100, svhn, an image folder, or package.module:factory.
        data_root: where the files of a built-in data set are.
        validation: share of the training set held out for the selection; 0 for none.
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
class PoFOptions:
    """PoF.

    Args:
        gamma: expansion of the radius.
        sampling: uniform draws it from U(0, gamma), fixed takes gamma.
        features: of the reference mini-batch: fresh (exact) or previous (no extra forward).
        batch_norm: statistics in the reference pass: batch, running or update.
        reference_size: samples of the reference mini-batch that are used, per process; all if not given.
    """

    gamma: float = 2.0
    sampling: Literal["uniform", "fixed"] = "uniform"
    features: Literal["fresh", "previous"] = "fresh"
    batch_norm: Literal["batch", "running", "update"] = "batch"
    reference_size: int | None = None


@dataclass
class AscentOptions:
    """Head ascent.

    Args:
        level: loss that the ascent ends at, as a share of that of guessing.
    """

    level: float = 0.15


@dataclass
class SAMOptions:
    """The SAM family.

    Args:
        rho: radius of the perturbation; auto: from the training data; the method's usual one if not given.
        last_epochs: of late-sam: epochs with perturbation, at the end.
        ascent_share: share of each mini-batch that gives the direction of the ascent, in (0, 1]; not of msam.
    """

    rho: float | Literal["auto"] | None = None
    last_epochs: int = 5
    ascent_share: float = 1.0


@dataclass
class AverageOptions:
    """Averages of the iterates, for any method.

    Args:
        kind: none, or what to deliver instead of the last network: swa, ema or lawa.
        decay: of ema.
        start: of swa: share of the run before it begins.
        window: of lawa: epochs averaged.
    """

    kind: Literal["none", "swa", "ema", "lawa"] = "none"
    decay: float = 0.99
    start: float = 0.0
    window: int = 5


@dataclass
class RegularizerOptions:
    """The regularisers of fine-tuning.

    Args:
        strength: weight of the penalty; the regulariser's usual one if not given.
        prior: of randreg: uniform, normal, features or class.
        alpha: of adarand: share of the old value in the moving average.
        lr: of adarand: learning rate of the reference means.
        k: of bss: singular values that are penalised.
    """

    strength: float | None = None
    prior: Literal["uniform", "normal", "features", "class"] = "features"
    alpha: float = 0.5
    lr: float = 1e-2
    k: int = 1


@dataclass
class TrainOptions:
    """How to train.

    Args:
        method: finetune, pof, head-ascent, sam, asam, sam-on, msam, late-sam, swa, ema, lawa, fnp, randreg,
            adarand, l2sp, bss or delta.
        epochs: passes over the training data.
        batch_size: samples per mini-batch, over all processes.
        lr: peak learning rate; auto: from that of the run whose folder --weights names.
        optimizer: sgd (Nesterov) or adamw.
        momentum: of sgd.
        weight_decay: of the optimizer.
        schedule: of the learning rate.
        accumulation: mini-batches per optimizer step.
        clip_norm: bound on the gradient norm; none if not given.
        label_smoothing: of the cross-entropy.
        freeze_head: train the feature extractor only; pof and head-ascent always do.
        precision: fp32, bf16 or fp16.
        device: cpu, cuda, ...; found by itself if not given.
        seed: of everything random but the validation split.
        checkpoint_every: optimizer steps between checkpoints, beside the one after each epoch.
        pof: options of method pof.
        ascent: options of head-ascent.
        sam: options of sam, asam, sam-on, msam and late-sam.
        average: average of the iterates, for any method.
        regularizer: options of fnp, randreg, adarand, l2sp, bss and delta.
    """

    method: str
    epochs: int = 10
    batch_size: int = 128
    lr: float | Literal["auto"] = 1e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = field(default_factory=Schedule)
    accumulation: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    freeze_head: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None
    seed: int = 0
    checkpoint_every: int | None = None
    pof: PoFOptions = field(default_factory=PoFOptions)
    ascent: AscentOptions = field(default_factory=AscentOptions)
    sam: SAMOptions = field(default_factory=SAMOptions)
    average: AverageOptions = field(default_factory=AverageOptions)
    regularizer: RegularizerOptions = field(default_factory=RegularizerOptions)


@dataclass
class RunOptions:
    """Where the run goes.

    Args:
        out: folder of the run.
        resume: go on with the run that is in ``out``.
    """

    out: str
    resume: bool = False


def plain(value: Any) -> Any:
    """Turn a configuration into what YAML and JSON hold.

    Returns:
        Dicts, lists, numbers, strings, None.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__dict__"):
        return plain(vars(value))
    return value
