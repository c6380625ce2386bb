"""Methods: each file says what the loss of one training step is, nothing else."""

from pof.methods.averaged import Averaged
from pof.methods.base import Method, StepOutput
from pof.methods.finetune import Finetune
from pof.methods.head_ascent import HeadAscent, HeadAscentOutput
from pof.methods.pof import PoF, PoFOutput
from pof.methods.probe import linear_probe
from pof.methods.regularized import Regularized
from pof.methods.sharpness_aware import SharpnessAware

__all__ = [
    "Averaged",
    "Finetune",
    "HeadAscent",
    "HeadAscentOutput",
    "Method",
    "PoF",
    "PoFOutput",
    "Regularized",
    "SharpnessAware",
    "StepOutput",
    "linear_probe",
]
