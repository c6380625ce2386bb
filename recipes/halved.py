"""Data of a recipe, as ``halved:<function>``: images at half the resolution cost a quarter of the computation."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pof.data import ImageData, load_data


def fashion_mnist(data_root: Path | None = None) -> tuple[TensorDataset, TensorDataset]:
    """Fashion-MNIST at 14 x 14: means of 2 x 2 pixels, in the units of the whole images; not augmented.

    Returns:
        Training and test set, inputs (1, 14, 14).
    """
    data = load_data("fashion-mnist", data_root=data_root)
    assert isinstance(data, ImageData)

    def halved(images: Tensor, labels: Tensor) -> TensorDataset:
        means = F.avg_pool2d(images.float() / 255, 2)
        return TensorDataset((means - data.mean[0]) / data.std[0], labels)

    return halved(data.train_images, data.train_labels), halved(data.test_images, data.test_labels)
