"""Data sets, loaders that resume at any batch, batched augmentation, stratified splits.

Nothing but torch is imported until a data set is loaded.
"""

from pof.data.augment import Augmentation, cutout, horizontal_flip, normalise, pad_crop
from pof.data.checks import DataError, check_batch, check_labels
from pof.data.description import Data, ImageData, LazyData, eval_loader, train_loader
from pof.data.loader import DatasetLoader, TensorLoader
from pof.data.overview import summary
from pof.data.registry import load_data
from pof.data.stratified import split_validation, stratified_fraction
from pof.data.streaming import StreamData, StreamLoader
from pof.data.tasks import check_countable, outputs_of

__all__ = [
    "Augmentation",
    "Data",
    "DataError",
    "DatasetLoader",
    "ImageData",
    "LazyData",
    "StreamData",
    "StreamLoader",
    "TensorLoader",
    "check_batch",
    "check_countable",
    "check_labels",
    "cutout",
    "eval_loader",
    "horizontal_flip",
    "load_data",
    "normalise",
    "outputs_of",
    "pad_crop",
    "split_validation",
    "stratified_fraction",
    "summary",
    "train_loader",
]
