"""Models by name: our own, those of timm, torchvision and Hugging Face, and any ``package.module:factory``."""

from pof._support.factory import call_factory, import_factory
from pof._support.preprocessing import Preprocessing
from pof.models.build import build_model, preprocessing_of
from pof.models.cifar_resnet import CifarResNet, Shortcut
from pof.models.new_head import replace_head
from pof.models.small_cnn import SmallCNN
from pof.models.sources import PREFIXED, PRETRAINED
from pof.models.wide_resnet import WideResNet

__all__ = [
    "PREFIXED",
    "PRETRAINED",
    "CifarResNet",
    "Preprocessing",
    "Shortcut",
    "SmallCNN",
    "WideResNet",
    "build_model",
    "call_factory",
    "import_factory",
    "preprocessing_of",
    "replace_head",
]
