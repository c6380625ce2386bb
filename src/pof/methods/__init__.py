"""Methods: each file says what the loss of one training step is, nothing else."""

from pof.methods.averaged import Averaged as Averaged
from pof.methods.base import Method as Method
from pof.methods.base import StepOutput as StepOutput
from pof.methods.finetune import Finetune as Finetune
from pof.methods.head_ascent import HeadAscent as HeadAscent
from pof.methods.head_ascent import HeadAscentOutput as HeadAscentOutput
from pof.methods.pof import PoF as PoF
from pof.methods.pof import PoFOutput as PoFOutput
from pof.methods.regularized import Regularized as Regularized
from pof.methods.sharpness_aware import SharpnessAware as SharpnessAware

__all__ = sorted(name for name in globals() if name[0].isupper())
