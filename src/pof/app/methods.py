"""The table of methods: each says everything about itself once, in one entry.

``--method``, recipes, equal compute, ``--lr auto`` and the names of run folders read it.  A new method is one entry in
``METHODS``, and a group in ``method_options.py`` if it has options of its own.  What a resumed run must find unchanged
is derived from the arguments that the method was built with (:meth:`pof.Method.settings`).

Torch is imported when a method is built, not before: a help text needs names alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pof.app.method_options import MethodOptions
from pof.training.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pof.methods import Method
    from pof.regularizers import Regularizer

FORWARD = Fraction(1, 3)
"""Cost of a forward without gradient, in forward-backward passes: a backward costs about two forwards."""
T = TypeVar("T", bound="MethodOptions")


@dataclass(frozen=True)
class Context:
    """What a method is built around."""

    model: "nn.Module"
    head: str | None
    options: MethodOptions
    num_classes: int
    statistics_batches: Iterable[Any]
    """The training set in mini-batches as they are evaluated, for statistics of the incoming features."""
    training_batches: Iterable[Any] = ()
    """Of the training set, as they are trained with."""
    from_scratch: bool = False
    """Whether nothing of the model is trained yet."""
    class_weights: "Tensor | None" = None
    """(C,) of the cross-entropy."""
    source_head: "nn.Module | None" = None
    """The head that the model was pre-trained with, where a new one has taken its place."""

    @property
    def loss(self) -> dict[str, Any]:
        """The loss and the options of the cross-entropy."""
        options = {"label_smoothing": self.options.label_smoothing, "class_weights": self.class_weights}
        return {**options, "loss": named_function(self.options.loss)}


COSINE = Schedule("cosine")
Extra = Callable[[MethodOptions], Fraction]
Average = Literal["none", "swa", "ema", "lawa"]


def _nothing(options: MethodOptions) -> Fraction:
    return Fraction(0)


@dataclass(frozen=True)
class MethodEntry:
    """All that the application knows of a method."""

    build: Callable[[Context], "Method"]
    group: str | None = None
    """The field of ``MethodOptions`` that holds its options: no other method's run depends on them."""
    extra: Extra = _nothing
    """Forward-backward passes over the training set, beyond one per epoch."""
    rate: float = 0.5
    """Learning rate of ``--lr auto``, as a share of that of the network's training."""
    average: Average = "none"
    """The average that the method's name stands for."""
    schedule: Schedule = COSINE
    """Of the learning rate, unless another is asked for."""
    holds_head: bool = False
    """Whether the head stays as it is."""


def named_function(name: str | None) -> Any:
    """A loss or metric as the command line names it: a word, or ``package.module:callable``, a class made first."""
    from pof._support.factory import import_factory

    if name is None or ":" not in name:
        return name
    found = import_factory(name)
    return found() if isinstance(found, type) else found


def _finetune(context: Context) -> "Method":
    from pof.methods import Finetune

    return Finetune(context.model, context.head, **context.loss)


def _pof(context: Context) -> "Method":
    from pof.methods import PoF

    options = context.options
    return PoF(context.model, context.head, **vars(options.pof), **context.loss, seed=options.seed)


def _passes_of_pof(options: MethodOptions) -> Fraction:
    if options.pof.features == "previous":
        return Fraction(0)
    used = options.pof.reference_size or options.batch_size
    return FORWARD * options.epochs * Fraction(min(used, options.batch_size), options.batch_size)


def _head_ascent(context: Context) -> "Method":
    from pof.methods import HeadAscent

    return HeadAscent(context.model, context.head, level=context.options.ascent.level, **context.loss)


def _sharpness_aware(kind: Literal["sam", "asam", "sam-on", "msam"], *, late: bool = False) -> MethodEntry:
    def build(context: Context) -> "Method":
        from pof.methods import SharpnessAware

        options = context.options.sam
        budget = options.rho == "budget"
        method = SharpnessAware(
            context.model,
            context.head,
            kind=kind,
            rho=options.rho_max if budget else options.rho if isinstance(options.rho, (int, float)) else None,
            budget=options.budget if budget else None,
            anneal=options.anneal,
            layers=options.layers,
            last_epochs=options.last_epochs if late else None,
            ascent_share=options.ascent_share,
            **context.loss,
        )
        if options.rho == "auto":
            if context.from_scratch:
                raise ValueError("sam.rho auto is for a network that is trained already: give --weights, or a number")
            method.calibrate(
                context.training_batches,
                level=options.level,
                level_kind=options.level_kind,
                every=options.every,
                accumulation=context.options.accumulation,
            )
        return method

    def ascents(options: MethodOptions) -> Fraction:
        if kind == "msam":  # no ascent, but batch-norm statistics anew before each validation
            return FORWARD * options.epochs
        if options.sam.rho == 0:  # a radius from the data that turns out to be 0 counts in full
            return Fraction(0)
        epochs = min(options.sam.last_epochs, options.epochs) if late else options.epochs
        return Fraction(options.sam.ascent_share).limit_denominator(1000) * epochs

    return MethodEntry(build, "sam", ascents)


def _regularized(
    make: Callable[[Context, dict[str, Any], Any], "Regularizer"],
    extra: Extra = _nothing,
) -> MethodEntry:
    """``make`` gets the strength as a keyword, or none (the regulariser has a usual one), and ``pof.regularizers``."""

    def build(context: Context) -> "Method":
        import pof.regularizers as kinds
        from pof.methods import Regularized

        strength = context.options.regularizer.strength
        regularizer = make(context, {} if strength is None else {"strength": strength}, kinds)
        return Regularized(context.model, regularizer, context.head, **context.loss)

    return MethodEntry(build, "regularizer", extra)


def _randreg(context: Context, strength: dict[str, Any], kinds: Any) -> "Regularizer":
    from pof.head.split import split

    prior, seed = context.options.regularizer.prior, context.options.seed
    if prior in {"uniform", "normal"}:
        plain: Regularizer = kinds.RandReg(prior, seed=seed, **strength)
        return plain
    network, classes = split(context.model, context.head), context.num_classes
    adapted: Regularizer = kinds.RandReg.from_loader(
        network, context.statistics_batches, num_classes=classes, prior=prior, seed=seed, **strength
    )
    return adapted


def _adarand(context: Context, strength: dict[str, Any], kinds: Any) -> "Regularizer":
    from pof.head.split import split

    options = context.options.regularizer
    regularizer: Regularizer = kinds.AdaRand.from_loader(
        split(context.model, context.head),
        context.statistics_batches,
        num_classes=context.num_classes,
        alpha=options.alpha,
        lr=options.lr,
        seed=context.options.seed,
        **strength,
    )
    return regularizer


def _delta(context: Context, strength: dict[str, Any], kinds: Any) -> "Regularizer":
    inputs, _ = next(iter(context.statistics_batches))
    layers = context.options.regularizer.layers or kinds.widest_convolutions(context.model, inputs[:2])
    named = [name.strip() for name in layers.split(",")] if isinstance(layers, str) else layers
    regularizer: Regularizer = kinds.DELTA(context.model, named, **strength)
    return regularizer


def _lp_ft(context: Context) -> "Method":
    from pof.methods import linear_probe

    options = context.options
    if context.from_scratch:
        raise ValueError("lp-ft trains a head on features that are trained already: give --weights")
    if options.loss != "cross-entropy":
        raise ValueError(f"lp-ft trains its head by the cross-entropy, and the loss is {options.loss}: use finetune")
    own = {**vars(options.probe), "label_smoothing": options.label_smoothing, "class_weights": context.class_weights}
    linear_probe(context.model, context.statistics_batches, context.head, **own)
    return _finetune(context)


def _bi_tuning(context: Context) -> "Method":
    from pof.methods import Regularized
    from pof.regularizers import BiTuning

    options = context.options
    regularizer = BiTuning(context.model, context.head, **vars(options.bi_tuning), seed=options.seed)
    return Regularized(context.model, regularizer, context.head, **context.loss)


def _co_tuning(context: Context) -> "Method":
    from pof.head.split import split
    from pof.methods import Regularized
    from pof.regularizers import CoTuning

    if context.source_head is None:
        raise ValueError(
            "co-tuning needs the head that the network was pre-trained with, and a new one beside it: give"
            " the weights of the pre-training, and in --source_classes the number of classes of their head"
        )
    own, classes = vars(context.options.co_tuning), context.num_classes
    network = split(context.model, context.head)
    regularizer = CoTuning.from_loader(
        network, context.source_head, context.statistics_batches, num_classes=classes, **own
    )
    return Regularized(context.model, regularizer, context.head, **context.loss)


METHODS: dict[str, MethodEntry] = {
    "finetune": MethodEntry(_finetune),
    # The paper's rate: 1.6e-4 after a training at 0.1.
    "pof": MethodEntry(_pof, "pof", _passes_of_pof, rate=1.6e-3, holds_head=True),
    "head-ascent": MethodEntry(_head_ascent, "ascent", holds_head=True),
    "sam": _sharpness_aware("sam"),
    "asam": _sharpness_aware("asam"),
    "sam-on": _sharpness_aware("sam-on"),
    "msam": _sharpness_aware("msam"),
    "late-sam": _sharpness_aware("sam", late=True),
    # The rise takes the share that it has in torch's OneCycleLR.
    "rewarm": replace(_sharpness_aware("sam"), schedule=Schedule("cosine", warmup=0.3)),
    "swa": MethodEntry(_finetune, average="swa"),
    "ema": MethodEntry(_finetune, average="ema"),
    "lawa": MethodEntry(_finetune, average="lawa"),
    "fnp": _regularized(lambda context, strength, kinds: kinds.FNP(**strength)),
    "randreg": _regularized(_randreg, lambda options: FORWARD * (options.regularizer.prior in {"features", "class"})),
    "adarand": _regularized(_adarand, lambda options: FORWARD),
    "l2sp": _regularized(lambda context, strength, kinds: kinds.L2SP(context.model, context.head, **strength)),
    "bss": _regularized(lambda context, strength, kinds: kinds.BSS(k=context.options.regularizer.k, **strength)),
    "delta": _regularized(_delta, lambda options: FORWARD * options.epochs),
    "lp-ft": MethodEntry(_lp_ft, "probe", lambda options: FORWARD),
    "bi-tuning": MethodEntry(_bi_tuning, "bi_tuning", lambda options: FORWARD * options.epochs),
    "co-tuning": MethodEntry(_co_tuning, "co_tuning", lambda options: FORWARD),
}
GROUPS = tuple(f.name for f in fields(MethodOptions) if f.name != "average" and is_dataclass(f.default_factory))
"""The groups of options that belong to some methods only."""


SOME: dict[str, tuple[str, ...]] = {
    "regularizer.prior": ("randreg",),
    **dict.fromkeys(("regularizer.alpha", "regularizer.lr"), ("adarand",)),
    "regularizer.k": ("bss",),
    "regularizer.layers": ("delta",),
    "sam.last_epochs": ("late-sam",),
    "average.decay": ("ema",),
    "average.start": ("swa",),
    "average.window": ("lawa",),
}
"""Options that only some methods of their group have, or only some averages."""


def users_of(option: str) -> tuple[str, ...]:
    """The methods, and kinds of averages, that an option such as ``sam.rho`` is of; none if it is of every method."""
    group = option.partition(".")[0]
    return SOME.get(option) or tuple(
        name for name, entry in METHODS.items() if group in GROUPS and entry.group == group
    )


def entry_of(name: str) -> MethodEntry:
    """Look up a method; a ValueError lists the names."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def reads_classes(options: MethodOptions) -> bool:
    """Whether the method needs the one class of each sample, and takes no probabilities."""
    of_class = options.method == "randreg" and options.regularizer.prior == "class"
    return of_class or options.method in {"adarand", "bi-tuning", "co-tuning"}


def build_method(context: Context) -> "Method":
    """Build the method that the options name, and the average around it."""
    entry, options = entry_of(context.options.method), context.options.average
    if entry.average != "none" and options.kind != "none":
        raise ValueError(f"method {context.options.method!r} averages already: leave out --average.kind {options.kind}")
    method, kind = entry.build(context), average_of(context.options)
    if kind == "none":
        return method
    from pof.methods import Averaged

    return Averaged(method, kind, decay=options.decay, start=options.start, window=options.window)


def average_of(options: MethodOptions) -> Average:
    """The average that is delivered: by the method's name, or beside it."""
    own = entry_of(options.method).average
    return options.average.kind if own == "none" else own


def with_own_group_only(options: T) -> T:
    """Put the groups of other methods back to their defaults: the run does not depend on them."""
    own = entry_of(options.method).group
    plain = MethodOptions(options.method)
    return replace(options, **{group: getattr(plain, group) for group in GROUPS if group != own})
