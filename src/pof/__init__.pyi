from pof import data as data
from pof import flatness as flatness
from pof import methods as methods
from pof import models as models
from pof import optim as optim
from pof import regularizers as regularizers
from pof.flatness import landscape as landscape
from pof.flatness import radius_distribution as radius_distribution
from pof.flatness import top_eigenvalues as top_eigenvalues
from pof.head.search import HeadNotFoundError as HeadNotFoundError
from pof.head.search import find_head as find_head
from pof.head.split import SplitModel as SplitModel
from pof.head.split import split as split
from pof.methods import *
from pof.optim import ASAM as ASAM
from pof.optim import MSAM as MSAM
from pof.optim import SAM as SAM
from pof.optim import SAMON as SAMON
from pof.optim import normalization_parameters as normalization_parameters
from pof.perturbation.linear import HeadGradient as HeadGradient
from pof.perturbation.linear import LineSearch as LineSearch
from pof.perturbation.linear import head_gradient as head_gradient
from pof.perturbation.linear import line_search as line_search
from pof.regularizers import BSS as BSS
from pof.regularizers import DELTA as DELTA
from pof.regularizers import FNP as FNP
from pof.regularizers import L2SP as L2SP
from pof.regularizers import AdaRand as AdaRand
from pof.regularizers import ClassStatistics as ClassStatistics
from pof.regularizers import RandReg as RandReg
from pof.regularizers import class_statistics as class_statistics
from pof.training.checkpoint import CheckpointError as CheckpointError
from pof.training.evaluation import Metrics as Metrics
from pof.training.evaluation import evaluate as evaluate
from pof.training.fit import DivergenceWarning as DivergenceWarning
from pof.training.fit import FitResult as FitResult
from pof.training.fit import fit as fit
from pof.training.reference import with_reference as with_reference
from pof.training.schedules import Schedule as Schedule
from pof.weights import WeightsError as WeightsError
from pof.weights import load_model as load_model
from pof.weights import load_weights as load_weights
from pof.weights import save_model as save_model

__version__: str
__all__: list[str]
