"""Regularisers for fine-tuning: nn.Modules with one way to call them, for anyone's training loop.

    features, logits = split_model.features_and_logits(inputs)
    loss = cross_entropy(logits, targets) + regularizer(features, targets, inputs)
    loss.backward()
    optimizer.step()
    regularizer.update(features.detach(), targets)  # AdaRand adapts its means; the others do nothing

FNP, RandReg, AdaRand: Yamaguchi et al., CVPR 2024.  L2SP: Li et al., 2018.  BSS: Chen et al., 2019.  DELTA:
Li et al., 2019.  BiTuning: Zhong et al., 2020.  CoTuning: You et al., 2020.  The last two have parameters of their own,
which the optimizer must get beside the model's.
"""

from pof.regularizers._base import Regularizer
from pof.regularizers.adarand import AdaRand
from pof.regularizers.bituning import BiTuning
from pof.regularizers.bss import BSS
from pof.regularizers.cotuning import CoTuning, category_relationship
from pof.regularizers.delta import DELTA, widest_convolutions
from pof.regularizers.fnp import FNP
from pof.regularizers.l2sp import L2SP
from pof.regularizers.randreg import RandReg
from pof.regularizers.statistics import ClassStatistics, class_statistics

__all__ = [
    "BSS",
    "DELTA",
    "FNP",
    "L2SP",
    "AdaRand",
    "BiTuning",
    "ClassStatistics",
    "CoTuning",
    "RandReg",
    "Regularizer",
    "category_relationship",
    "class_statistics",
    "widest_convolutions",
]
