"""Sharpness-aware optimizers: plain ``torch.optim.Optimizer`` subclasses around a base optimizer.

``SAM`` (with a loss budget LE-SAM), ``ASAM`` and ``SAMON`` need two forward and backward passes per step, ``MSAM``
one.  All of them share one protocol: ``ascend()`` moves the weights to the perturbed point, ``restore()`` brings them
back bit for bit, ``perturbed()`` does both around a block, and ``step`` is the base optimizer's step;
``step(closure)`` does everything.  They know no methods, data or training of this package, and work without them.
"""

from pof.optim._perturbing import PerturbingOptimizer
from pof.optim.asam import ASAM
from pof.optim.msam import MSAM
from pof.optim.normalization import normalization_parameters
from pof.optim.rise import perturbation_shares, rho_for_level
from pof.optim.sam import SAM
from pof.optim.sam_on import SAMON

__all__ = [
    "ASAM",
    "MSAM",
    "SAM",
    "SAMON",
    "PerturbingOptimizer",
    "normalization_parameters",
    "perturbation_shares",
    "rho_for_level",
]
