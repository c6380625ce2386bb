"""The methods by the names that ``--method`` takes."""

from __future__ import annotations

from collections.abc import Callable

from pof.app.job import MakeMethod, Setting
from pof.head.split import split
from pof.methods import Averaged, Finetune, HeadAscent, Method, PoF, Regularized, SharpnessAware
from pof.methods.averaged import Average
from pof.methods.sharpness_aware import Kind
from pof.regularizers import BSS, DELTA, FNP, L2SP, AdaRand, RandReg, Regularizer, widest_convolutions


def _finetune(setting: Setting) -> Method:
    return Finetune(setting.model, setting.head, label_smoothing=setting.training.label_smoothing)


def _pof(setting: Setting) -> Method:
    options = setting.training.pof
    return PoF(
        setting.model,
        setting.head,
        gamma=options.gamma,
        sampling=options.sampling,
        features=options.features,
        batch_norm=options.batch_norm,
        reference_size=options.reference_size,
        label_smoothing=setting.training.label_smoothing,
        seed=setting.training.seed,
    )


def _head_ascent(setting: Setting) -> Method:
    smoothing = setting.training.label_smoothing
    return HeadAscent(setting.model, setting.head, level=setting.training.ascent.level, label_smoothing=smoothing)


def _sharpness_aware(kind: Kind, late: bool = False) -> MakeMethod:
    def make(setting: Setting) -> Method:
        options = setting.training.sam
        method = SharpnessAware(
            setting.model,
            setting.head,
            kind=kind,
            rho=None if options.rho == "auto" else options.rho,
            last_epochs=options.last_epochs if late else None,
            ascent_share=options.ascent_share,
            label_smoothing=setting.training.label_smoothing,
        )
        if options.rho == "auto":
            if setting.from_scratch:
                raise ValueError("sam.rho auto is for a network that is trained already: give --weights, or a number")
            method.calibrate(setting.mini_batches, accumulation=setting.training.accumulation)
        return method

    return make


def _averaged(average: Average) -> MakeMethod:
    return lambda setting: _average(_finetune(setting), average, setting)


def _average(method: Method, average: Average, setting: Setting) -> Method:
    options = setting.training.average
    return Averaged(method, average, decay=options.decay, start=options.start, window=options.window)


def _regularized(regularizer: Callable[[Setting], Regularizer]) -> MakeMethod:
    def make(setting: Setting) -> Method:
        smoothing = setting.training.label_smoothing
        return Regularized(setting.model, regularizer(setting), setting.head, label_smoothing=smoothing)

    return make


def _strength(setting: Setting, usual: float) -> float:
    given = setting.training.regularizer.strength
    return usual if given is None else given


def _fnp(setting: Setting) -> Regularizer:
    return FNP(strength=_strength(setting, 1.0))


def _randreg(setting: Setting) -> Regularizer:
    prior, seed, strength = setting.training.regularizer.prior, setting.training.seed, _strength(setting, 1.0)
    if prior in {"uniform", "normal"}:
        return RandReg(prior, strength=strength, seed=seed)
    network = split(setting.model, setting.head)
    return RandReg.from_loader(
        network, setting.batches, num_classes=setting.num_classes, prior=prior, strength=strength, seed=seed
    )


def _adarand(setting: Setting) -> Regularizer:
    options = setting.training.regularizer
    return AdaRand.from_loader(
        split(setting.model, setting.head),
        setting.batches,
        num_classes=setting.num_classes,
        strength=_strength(setting, 1.0),
        alpha=options.alpha,
        lr=options.lr,
        seed=setting.training.seed,
    )


def _l2sp(setting: Setting) -> Regularizer:
    return L2SP(setting.model, setting.head, strength=_strength(setting, 0.01))


def _bss(setting: Setting) -> Regularizer:
    return BSS(strength=_strength(setting, 1e-3), k=setting.training.regularizer.k)


def _delta(setting: Setting) -> Regularizer:
    inputs, _ = next(iter(setting.batches))
    return DELTA(setting.model, widest_convolutions(setting.model, inputs[:2]), strength=_strength(setting, 1.0))


METHODS: dict[str, MakeMethod] = {
    "finetune": _finetune,
    "pof": _pof,
    "head-ascent": _head_ascent,
    "sam": _sharpness_aware("sam"),
    "asam": _sharpness_aware("asam"),
    "sam-on": _sharpness_aware("sam-on"),
    "msam": _sharpness_aware("msam"),
    "late-sam": _sharpness_aware("sam", late=True),
    "swa": _averaged("swa"),
    "ema": _averaged("ema"),
    "lawa": _averaged("lawa"),
    "fnp": _regularized(_fnp),
    "randreg": _regularized(_randreg),
    "adarand": _regularized(_adarand),
    "l2sp": _regularized(_l2sp),
    "bss": _regularized(_bss),
    "delta": _regularized(_delta),
}


def make_method(name: str) -> MakeMethod:
    """Look up a method; ``average.kind`` of the options averages it.

    Args:
        name: as in ``--method``.

    Returns:
        The function that makes it.

    Raises:
        ValueError: if there is none of that name; the names are listed.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")

    def make(setting: Setting) -> Method:
        kind = setting.training.average.kind
        method = METHODS[name](setting)
        if kind == "none":
            return method
        if isinstance(method, Averaged):
            raise ValueError(f"method {name!r} averages already: leave out --average.kind {kind}")
        return _average(method, kind, setting)

    return make
