"""What a training run costs, in forward-backward passes over its training set.

The unit is one forward and one backward of every training sample; a forward without gradient counts as a third of it
(a backward costs about two forwards).  So an epoch of SGD is 1, of SAM 2, of PoF with fresh features 4/3.  Validation
is not counted: it is the same for every method.  Nor are the ten steps or so, once, of a radius from the data.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from pof.app.options import TrainOptions

FORWARD = Fraction(1, 3)
"""A forward without gradient."""

PER_EPOCH: dict[str, Fraction] = {
    "finetune": Fraction(1),
    "pof": Fraction(1),
    "head-ascent": Fraction(1),
    "sam": Fraction(1),  # and the ascents
    "asam": Fraction(1),
    "sam-on": Fraction(1),
    "msam": Fraction(1),
    "late-sam": Fraction(1),
    "swa": Fraction(1),
    "ema": Fraction(1),
    "lawa": Fraction(1),
    "fnp": Fraction(1),
    "randreg": Fraction(1),
    "adarand": Fraction(1),
    "l2sp": Fraction(1),
    "bss": Fraction(1),
    "delta": 1 + FORWARD,  # the source network's
}
AVERAGES = ("swa", "ema", "lawa")


def units(training: TrainOptions) -> Fraction:
    """Count the forward-backward passes of a run.

    An average adds a forward per epoch for its batch-norm statistics; networks without batch norms do not spend it.

    Args:
        training: method, its options, and epochs.

    Returns:
        Passes over the training set, in units of one forward and backward.

    Raises:
        ValueError: if the method is unknown.
    """
    method, epochs = training.method, training.epochs
    if method not in PER_EPOCH:
        raise ValueError(f"the cost of method {method!r} is not known; known are {', '.join(PER_EPOCH)}")
    total = PER_EPOCH[method] * epochs
    if method == "pof" and training.pof.features == "fresh":
        total += FORWARD * epochs * _reference_share(training)
    ascents = {"sam": epochs, "asam": epochs, "sam-on": epochs, "late-sam": min(training.sam.last_epochs, epochs)}
    total += Fraction(training.sam.ascent_share).limit_denominator(1000) * ascents.get(method, 0)
    if method == "adarand" or (method == "randreg" and training.regularizer.prior in {"features", "class"}):
        total += FORWARD  # statistics of the incoming features, once
    return total + FORWARD * _averaged_epochs(training)


def epochs_within(budget: float, training: TrainOptions) -> int:
    """Find the largest number of epochs that a budget pays.

    Args:
        budget: in forward-backward passes over the training set.
        training: its own number of epochs is not looked at.

    Returns:
        Epochs, >= 1.

    Raises:
        ValueError: if not even one epoch can be paid.
    """
    epochs = 0
    while units(replace(training, epochs=epochs + 1)) <= budget:
        epochs += 1
    if epochs == 0:
        one = float(units(replace(training, epochs=1)))
        raise ValueError(f"a budget of {budget} does not pay one epoch of {training.method}, which costs {one:.4g}")
    return epochs


def _reference_share(training: TrainOptions) -> Fraction:
    """Part of the reference mini-batch that is passed forward."""
    used = training.pof.reference_size
    return Fraction(1) if used is None else Fraction(min(used, training.batch_size), training.batch_size)


def _averaged_epochs(training: TrainOptions) -> int:
    average = training.method if training.method in AVERAGES else training.average.kind
    if average == "none":
        return 0
    start = training.average.start * training.epochs if average == "swa" else 0.0
    return sum(epoch >= start for epoch in range(training.epochs))
