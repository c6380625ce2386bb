"""The options of methods, each group with its help: flags of the command line and keys of recipes.

The parser evaluates annotations that are postponed, and would import torch to do so: modules with options do without.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class PoFOptions:
    """PoF.

    Args:
        gamma: Expansion of the radius.
        sampling: With uniform the factor is drawn from U(0, gamma), with fixed it is gamma.
        features: Features of the reference mini-batch: fresh (exact) or previous (no extra forward).
        batch_norm: Statistics of batch norms in the reference pass: batch, running or update.
        reference_size: Samples of the reference mini-batch that are used, per process. All are used if not given.
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
        level: Loss that the ascent ends at, as a share of that of guessing.
    """

    level: float = 0.15


@dataclass
class SAMOptions:
    """The SAM family.

    Args:
        rho: Radius of the perturbation. With auto it comes from the training data, with budget in every step from a
            loss budget (LE-SAM). It is the method's usual one if not given.
        budget: Rise of the linearised loss for rho budget, in nats.
        rho_max: Largest radius of rho budget.
        anneal: Share of the run, at its end, over which the budget of rho budget falls to 0.
        level: Loss at the perturbed weights for rho auto, as a share of that of guessing.
        level_kind: What the level of rho auto counts from: level counts from 0, rise from the loss of the network as it
            is.
        every: Epochs after which the radius of rho auto is taken anew; never if not given. Each time costs about ten
            steps, which equal compute does not count.
        layers: Layers that are perturbed: all, or head for the head's weights only, of sam, late-sam and rewarm.
        last_epochs: Epochs with perturbation, at the end, of late-sam.
        ascent_share: Share of each mini-batch that gives the direction of the ascent, in (0, 1]; not of msam.
    """

    rho: float | Literal["auto", "budget"] | None = None
    budget: float = 0.05
    rho_max: float = 0.5
    anneal: float = 1.0
    level: float = 0.15
    level_kind: Literal["level", "rise"] = "level"
    every: int | None = None
    layers: Literal["all", "head"] = "all"
    last_epochs: int = 5
    ascent_share: float = 1.0


@dataclass
class AverageOptions:
    """Averages of the iterates, for any method.

    Args:
        kind: What to deliver instead of the last network: none, swa, ema or lawa.
        decay: Decay of ema.
        start: Share of the run before swa begins.
        window: Epochs that lawa averages.
    """

    kind: Literal["none", "swa", "ema", "lawa"] = "none"
    decay: float = 0.99
    start: float = 0.0
    window: int = 5


@dataclass
class RegularizerOptions:
    """The regularisers of fine-tuning.

    Args:
        strength: Weight of the penalty. It is the regulariser's usual one if not given.
        prior: Prior of randreg: uniform, normal, features or class.
        alpha: Share of the old value in the moving average of adarand.
        lr: Learning rate of the reference means of adarand.
        k: Number of singular values that bss penalises.
        layers: Names of the layers whose outputs delta compares, separated by commas. By default they are the widest
            convolutions.
    """

    strength: float | None = None
    prior: Literal["uniform", "normal", "features", "class"] = "features"
    alpha: float = 0.5
    lr: float = 1e-2
    k: int = 1
    layers: list[str] | str | None = None


@dataclass
class ProbeOptions:
    """Training of the head alone.

    Args:
        l2: Weight of its penalty, l2/2 ||W||^2.
    """

    l2: float = 1e-2


@dataclass
class BiTuningOptions:
    """Bi-Tuning.

    Args:
        strength: Weight of both contrastive losses.
        keys: Places in the queue for each class.
        dimension: Dimension of the projection.
        temperature: Temperature of the contrasts.
        momentum: Share of the old value in the network that encodes keys.
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
        strength: Weight of the source head's loss.
        temperature: Temperature of the source head's probabilities, from which the relationship of the classes is
            learned.
    """

    strength: float = 2.3
    temperature: float = 1.0


@dataclass
class MethodOptions:
    """What a method is built from, beside the network.

    Args:
        method: Method: what a training step is.
        epochs: Number of passes over the training data.
        batch_size: Samples per mini-batch, over all processes.
        accumulation: Mini-batches per optimizer step.
        loss: Loss: cross-entropy, bce (one logit, several labels), mse, ordinal, or package.module:callable.
        label_smoothing: Label smoothing of the cross-entropy.
        seed: Seed of everything random but the validation split.
        pof: Options of method pof.
        ascent: Options of head-ascent.
        sam: Options of sam, asam, sam-on, msam, late-sam and rewarm.
        average: Average of the iterates, for any method.
        regularizer: Options of fnp, randreg, adarand, l2sp, bss and delta.
        probe: Options of lp-ft.
        bi_tuning: Options of bi-tuning.
        co_tuning: Options of co-tuning, which needs --source_classes.
    """

    method: str
    epochs: int = 10
    batch_size: int = 128
    accumulation: int = 1
    loss: str = "cross-entropy"
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
