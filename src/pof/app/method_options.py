"""The options of methods, each group with its help: flags of the command line and keys of recipes.

The parser evaluates annotations that are postponed, and would import torch to do so: modules with options do without.
"""

from dataclasses import dataclass, field
from typing import Literal


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
        rho: radius of the perturbation; auto: from the training data; budget: in every step from a loss budget
            (LE-SAM); the method's usual one if not given.
        budget: of rho budget: rise of the linearised loss, in nats.
        rho_max: of rho budget: largest radius.
        anneal: of rho budget: share of the run, at its end, over which the budget falls to 0.
        level: of rho auto: loss at the perturbed weights, as a share of that of guessing.
        level_kind: of rho auto: level, or rise, which counts from the loss of the network as it is.
        every: of rho auto: epochs after which the radius is taken anew; never if not given. Each time costs about ten
            steps, which equal compute does not count.
        last_epochs: of late-sam: epochs with perturbation, at the end.
        ascent_share: share of each mini-batch that gives the direction of the ascent, in (0, 1]; not of msam.
    """

    rho: float | Literal["auto", "budget"] | None = None
    budget: float = 0.05
    rho_max: float = 0.5
    anneal: float = 1.0
    level: float = 0.15
    level_kind: Literal["level", "rise"] = "level"
    every: int | None = None
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
class ProbeOptions:
    """Training of the head alone.

    Args:
        l2: weight of its penalty, l2/2 ||W||^2.
    """

    l2: float = 1e-3


@dataclass
class BiTuningOptions:
    """Bi-Tuning.

    Args:
        strength: weight of both contrastive losses.
        keys: places in the queue for each class.
        dimension: of the projection.
        temperature: of the contrasts.
        momentum: share of the old value in the network that encodes keys.
    """

    strength: float = 1.0
    keys: int = 40
    dimension: int = 128
    temperature: float = 0.07
    momentum: float = 0.999


@dataclass
class CoTuningOptions:
    """Co-Tuning.

    Args:
        strength: weight of the source head's loss.
        temperature: of the source head's probabilities, from which the relationship of the classes is learned.
    """

    strength: float = 2.3
    temperature: float = 1.0


@dataclass
class MethodOptions:
    """What a method is built from, beside the network.

    Args:
        method: what a training step is.
        epochs: passes over the training data.
        batch_size: samples per mini-batch, over all processes.
        accumulation: mini-batches per optimizer step.
        label_smoothing: of the cross-entropy.
        seed: of everything random but the validation split.
        pof: options of method pof.
        ascent: options of head-ascent.
        sam: options of sam, asam, sam-on, msam, late-sam and rewarm.
        average: average of the iterates, for any method.
        regularizer: options of fnp, randreg, adarand, l2sp, bss and delta.
        probe: options of lp-ft.
        bi_tuning: options of bi-tuning.
        co_tuning: options of co-tuning, which needs --source_classes.
    """

    method: str
    epochs: int = 10
    batch_size: int = 128
    accumulation: int = 1
    label_smoothing: float = 0.0
    seed: int = 0
    pof: PoFOptions = field(default_factory=PoFOptions)
    ascent: AscentOptions = field(default_factory=AscentOptions)
    sam: SAMOptions = field(default_factory=SAMOptions)
    average: AverageOptions = field(default_factory=AverageOptions)
    regularizer: RegularizerOptions = field(default_factory=RegularizerOptions)
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    bi_tuning: BiTuningOptions = field(default_factory=BiTuningOptions)
    co_tuning: CoTuningOptions = field(default_factory=CoTuningOptions)
