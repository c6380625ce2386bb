from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pof.data import Augmentation, DataError, load_data, train_loader


def test_import_is_light():
    heavy = ("torchvision", "timm", "sklearn", "PIL", "scipy")
    code = f"import sys, pof.data, pof.models; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(
        DataError, match=r"unknown data set 'cifar-10', and no such folder or file: cifar-10; known are digits, .*"
    ):
        load_data("cifar-10")
    with pytest.raises(DataError, match=f"no such folder or file: {tmp_path}/birds"):
        load_data("birds", data_root=tmp_path)


def test_augmentation_is_chosen():
    assert load_data("digits").augmentation is None
    assert load_data("digits", augment="cutout").augmentation == Augmentation(pad=0, flip=False, cutout=16)
    assert load_data("digits", augment="none").augmentation is None
    with pytest.raises(DataError, match="augment is one of default, cutout, randaugment, none; got 'auto'"):
        load_data("digits", augment="auto")


def test_normalisation_is_chosen():
    data = load_data("digits", mean=[0.0], std=[2.0])
    assert (data.mean, data.std) == ((0.0,), (2.0,))
    images, _ = next(iter(train_loader(data, batch_size=1000, seed=0)))
    torch.testing.assert_close(images.max(), torch.tensor(0.5))
    with pytest.raises(DataError, match="images of 1 channels need 1 values each for mean and std; got 3 and 1"):
        load_data("digits", mean=[0.0, 0.0, 0.0])


def test_image_size_is_for_folders():
    with pytest.raises(DataError, match="image_size=32 does not apply to the data set 'digits'; leave it out"):
        load_data("digits", image_size=32)
