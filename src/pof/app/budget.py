"""Equal compute: what a run costs, in forward-backward passes over its training set.

The unit is one forward and one backward of every training sample: an epoch of SGD is 1, of SAM 2, of PoF with fresh
features 4/3.  Validation is not counted, as it is the same for every method; nor are the ten steps or so of a radius
from the data (eighty for a network with dropout), each time that it is taken.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from pof.app.method_options import MethodOptions
from pof.app.methods import FORWARD, average_of, entry_of


def passes(options: MethodOptions) -> Fraction:
    """Count the passes of a run.

    An average adds a forward per epoch for its batch-norm statistics; networks without batch norms do not spend it.
    """
    average = average_of(options)
    start = options.average.start * options.epochs if average == "swa" else 0.0
    averaged = 0 if average == "none" else sum(epoch >= start for epoch in range(options.epochs))
    return _training(options) + FORWARD * averaged


def _training(options: MethodOptions) -> Fraction:
    return options.epochs + entry_of(options.method).extra(options)


def once(options: MethodOptions) -> Fraction:
    """Count the passes that a method spends before its first epoch, such as those for the statistics of AdaRand."""
    return _training(replace(options, epochs=0))


def per_epoch(options: MethodOptions) -> Fraction:
    """Count the passes of one epoch of training, without what is spent once, and without those of an average."""
    return _training(replace(options, epochs=1)) - once(options)


def epochs_within(budget: float, options: MethodOptions) -> int:
    """Find the largest number of epochs, >= 1, whose passes a budget pays; a ValueError if not even one."""
    epochs = 0
    while passes(replace(options, epochs=epochs + 1)) <= budget:
        epochs += 1
    if epochs == 0:
        one = float(passes(replace(options, epochs=1)))
        raise ValueError(f"a budget of {budget} does not pay one epoch of {options.method}, which costs {one:.4g}")
    return epochs
