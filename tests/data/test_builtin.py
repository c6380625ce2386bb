"""The data sets known by name, on tiny files in the official layouts; the real CIFAR-10 where it can be unpacked."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import tracemalloc
import urllib.error
from pathlib import Path

import numpy
import pytest
import torch
from torchvision import datasets

from pof.data import Augmentation, DataError, eval_loader, load_data
from pof.data.fashion import DEBIAN_FOLDER, PARTS
from pof.data.idx import read_idx
from pof.models import build_model
from tests.data.real_cifar import SHARED, unpacked_cifar10


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network whatever the machine has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*args, **options):
        raise urllib.error.URLError("no network here")

    for module in ("cifar", "svhn", "mnist"):
        for name in ("download_and_extract_archive", "download_url"):
            monkeypatch.setattr(f"torchvision.datasets.{module}.{name}", refuse, raising=False)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# Digits


def test_digits():
    data = load_data("digits")
    assert data.train_images.shape == (1000, 1, 8, 8)
    assert data.test_images.shape == (797, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert int(data.train_images.max()) == 255
    assert data.num_classes == 10
    # Stratified: the shares of the classes are those of the whole to within one sample.
    train, test = (torch.bincount(labels) for labels in (data.train_labels, data.test_labels))
    assert (train - (train + test) * 1000 / 1797).abs().max() <= 1
    batch = torch.cat([x for x, _ in eval_loader(data, "train", batch_size=500)])
    assert float(batch.mean()) == pytest.approx(0, abs=1e-5)
    assert float(batch.std()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(load_data("digits").test_images, data.test_images)


def test_digits_have_no_root(tmp_path):
    with pytest.raises(DataError, match="digits are part of scikit-learn: leave out data_root"):
        load_data("digits", data_root=tmp_path)


# Fashion-MNIST


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(PARTS, (6, 6, 4, 4), strict=True):
        labels = torch.arange(count) % 10
        images = labels[:, None, None].expand(count, 28, 28)
        write_idx(folder / f"{part}{suffix}", images if "images" in part else labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_from_idx_files(tmp_path, below, suffix):
    write_fashion(tmp_path / below, suffix)
    data = load_data("fashion-mnist", data_root=tmp_path)
    assert data.train_images.shape == (6, 1, 28, 28)
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(data.train_images[:, 0, 3, 5].long(), data.train_labels)
    assert data.classes[9] == "Ankle boot"


def test_fashion_mnist_of_debian_is_found(tmp_path, monkeypatch):
    write_fashion(tmp_path / "debian")
    monkeypatch.setattr("pof.data.fashion.DEBIAN_FOLDER", tmp_path / "debian")
    assert load_data("fashion-mnist").source == str(tmp_path / "debian")
    write_fashion(tmp_path / "cache" / "pof" / "FashionMNIST" / "raw")
    assert load_data("fashion-mnist").source.endswith("raw")


@pytest.mark.skipif(not DEBIAN_FOLDER.exists(), reason="the package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_this_machine():
    data = load_data("fashion-mnist")
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    # The constants of the normalisation, which are rounded to four digits.
    scaled = data.train_images.double() / 255
    assert float(scaled.mean()) == pytest.approx(data.mean[0], abs=5e-5)
    assert float(scaled.std()) == pytest.approx(data.std[0], abs=5e-5)


def test_fashion_mnist_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"missing train-images-idx3-ubyte\.gz, .*copy the files from http.*apt-get"):
        load_data("fashion-mnist", data_root=tmp_path)
    monkeypatch.setattr("pof.data.fashion.DEBIAN_FOLDER", tmp_path / "absent")
    with pytest.raises(DataError, match=r"cannot be downloaded .*give that as data_root"):
        load_data("fashion-mnist")


def test_fashion_mnist_of_mismatched_files(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / f"{PARTS[1]}.gz", torch.arange(5))
    with pytest.raises(DataError, match=r"images \(6, 28, 28\) and labels \(5,\) do not belong together"):
        load_data("fashion-mnist", data_root=tmp_path)


DAMAGED = {
    "truncated gzip": (lambda content: gzip.compress(content)[:-20], ".gz", "damaged gzip file"),
    "no gzip": (lambda content: content, ".gz", "damaged gzip file"),
    "too long": (lambda content: content + b"?", "", r"more than 12 bytes where its header says \[3, 4\]"),
    "cut in its header": (lambda content: content[:9], "", r"0 bytes where its header says \[3, 0\]"),
    "huge": (lambda content: content[:4] + b"\xff" * 8, "", r"header says \[4294967295, 4294967295\], more than the"),
    "bomb": (lambda content: gzip.compress(content + bytes(2**26)), ".gz", "more than 12 bytes where its header"),
    "truncated": (lambda content: content[:-1], "", r"11 bytes where its header says \[3, 4\]"),
    "floats": (lambda content: content[:2] + b"\x0d" + content[3:], "", "not an IDX file of unsigned bytes"),
    "text": (lambda content: b"<html>", "", "not an IDX file"),
    "empty": (lambda content: b"", "", "not an IDX file"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_idx_files(tmp_path, case):
    change, suffix, message = DAMAGED[case]
    write_idx(tmp_path / "good", torch.arange(12).reshape(3, 4))
    assert read_idx(tmp_path / "good").tolist() == torch.arange(12).reshape(3, 4).tolist()
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(change((tmp_path / "good").read_bytes()))
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        read_idx(file)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


# CIFAR


def write_cifar(root: Path, kind: type, monkeypatch) -> None:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if kind is datasets.CIFAR10 else "fine_labels"

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    for attribute in ("train_list", "test_list"):
        listed = []
        for position, (name, _) in enumerate(getattr(kind, attribute)):
            pixels = numpy.arange(2 * 3072).reshape(2, 3072).astype(numpy.uint8) + position
            listed.append([name, write(name, {"data": pixels, label_key: [position, position + 1]})])
        monkeypatch.setattr(kind, attribute, listed)
    names = [f"class{i}" for i in range(10 if kind is datasets.CIFAR10 else 100)]
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], {kind.meta["key"]: names})})


@pytest.mark.parametrize(("name", "kind"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar(tmp_path, monkeypatch, name, kind):
    write_cifar(tmp_path / "root", kind, monkeypatch)
    data = load_data(name, data_root=tmp_path / "root")
    files = len(kind.train_list)
    assert data.train_images.shape == (2 * files, 3, 32, 32)
    assert data.train_labels.tolist() == [label for i in range(files) for label in (i, i + 1)]
    # The files hold the red plane first, row by row.
    assert data.train_images[0].flatten()[:260].tolist() == [i % 256 for i in range(260)]
    assert data.train_images.is_contiguous()
    assert data.num_classes == len(data.classes) == (10 if name == "cifar10" else 100)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.augmentation == Augmentation(pad=4, flip=True, cutout=0)
    inside = load_data(name, data_root=tmp_path / "root" / kind.base_folder)
    assert torch.equal(inside.test_images, data.test_images)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "svhn-extra"])
def test_files_that_are_not_there(tmp_path, name):
    expected = {"cifar10": "cifar-10-batches-py/data_batch_1", "cifar100": "cifar-100-python/train"}
    file = expected.get(name, "train_32x32.mat")
    with pytest.raises(DataError, match=rf"{name} is not in {tmp_path}: missing {file}.*http.*leave out data_root"):
        load_data(name, data_root=tmp_path)
    with pytest.raises(DataError, match=rf"cannot be downloaded .*no network here.*data_root \(files: {file}"):
        load_data(name)
    with pytest.raises(DataError, match=r"no such folder: data_root .*absent"):
        load_data(name, data_root=tmp_path / "absent")


def test_damaged_cifar(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"damaged or not the original ones.*unpack http.* again"):
        load_data("cifar10", data_root=tmp_path)


def test_a_file_that_would_never_end(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="data_batch_2 is no regular file; unpack http"):
        load_data("cifar10", data_root=tmp_path)


# SVHN


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat

    listed = {}
    for part, count in (("train", 4), ("test", 3), ("extra", 2)):
        url, name, _ = datasets.SVHN.split_list[part]
        images = numpy.arange(32 * 32 * 3 * count).reshape(32, 32, 3, count).astype(numpy.uint8)
        labels = numpy.array([10, 1, 9, 2][:count], dtype=numpy.uint8)[:, None]
        savemat(tmp_path / name, {"X": images, "y": labels})
        listed[part] = [url, name, md5(tmp_path / name)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    data = load_data("svhn", data_root=tmp_path)
    assert data.train_images.shape == (4, 3, 32, 32)
    assert data.train_labels.tolist() == [0, 1, 9, 2]
    assert int(data.train_images[1, 2, 3, 5]) == ((3 * 32 + 5) * 3 + 2) * 4 % 256 + 1
    assert data.augmentation == Augmentation(flip=False)
    extra = load_data("svhn-extra", data_root=tmp_path)
    assert extra.train_labels.tolist() == [0, 1, 9, 2, 0, 1]
    assert extra.test_labels.tolist() == [0, 1, 9]


# The real thing


@pytest.mark.skipif(not (SHARED / "unpack_cifar.py").exists(), reason="../shared/data is not there")
def test_public_resnet20_on_the_real_cifar10(tmp_path_factory):
    data = load_data("cifar10", data_root=unpacked_cifar10(tmp_path_factory))
    assert torch.bincount(data.train_labels).tolist() == [5000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    model = build_model("resnet20", num_classes=10, weights=SHARED / "weights" / "resnet20-12fca82f.th").eval()
    wrong = 0
    with torch.no_grad():
        for images, labels in eval_loader(data, "test", batch_size=250, indices=torch.arange(2000)):
            wrong += int((model(images).argmax(1) != labels).sum())
    # 167 of the first 2,000, 827 of all 10,000 (8.27 %); 2 for the order of the sums on other processors.
    assert wrong == pytest.approx(167, abs=2)
