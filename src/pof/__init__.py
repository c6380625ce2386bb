"""Post-training of feature extractors (PoF, ICML 2022) and its relatives, for any PyTorch classifier."""

from pof.flatness import landscape, radius_distribution, top_eigenvalues
from pof.head.search import HeadNotFoundError, find_head
from pof.head.split import SplitModel, split
from pof.methods import (
    Averaged,
    Finetune,
    HeadAscent,
    HeadAscentOutput,
    Method,
    PoF,
    PoFOutput,
    Regularized,
    SharpnessAware,
    StepOutput,
)
from pof.optim import ASAM, MSAM, SAM, SAMON, normalization_parameters
from pof.perturbation.linear import HeadGradient, LineSearch, head_gradient, line_search
from pof.regularizers import BSS, DELTA, FNP, L2SP, AdaRand, ClassStatistics, RandReg, class_statistics
from pof.training.checkpoint import CheckpointError
from pof.training.evaluation import Metrics, evaluate
from pof.training.fit import DivergenceWarning, FitResult, fit
from pof.training.reference import with_reference
from pof.training.schedules import Schedule
from pof.weights import WeightsError, load_model, load_weights, save_model

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "BSS",
    "DELTA",
    "FNP",
    "L2SP",
    "MSAM",
    "SAM",
    "SAMON",
    "AdaRand",
    "Averaged",
    "CheckpointError",
    "ClassStatistics",
    "DivergenceWarning",
    "Finetune",
    "FitResult",
    "HeadAscent",
    "HeadAscentOutput",
    "HeadGradient",
    "HeadNotFoundError",
    "LineSearch",
    "Method",
    "Metrics",
    "PoF",
    "PoFOutput",
    "RandReg",
    "Regularized",
    "Schedule",
    "SharpnessAware",
    "SplitModel",
    "StepOutput",
    "WeightsError",
    "class_statistics",
    "evaluate",
    "find_head",
    "fit",
    "head_gradient",
    "landscape",
    "line_search",
    "load_model",
    "load_weights",
    "normalization_parameters",
    "radius_distribution",
    "save_model",
    "split",
    "top_eigenvalues",
    "with_reference",
]
