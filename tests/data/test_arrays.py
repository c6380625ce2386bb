"""NumPy arrays of images and of feature vectors."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from pof.data import DataError, ImageData, eval_loader, load_data, train_loader
from pof.models import build_model

RNG = numpy.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (30, 6, 5, 3), dtype=numpy.uint8)
VECTORS = RNG.normal(size=(30, 4))
LABELS = numpy.arange(30) % 3


def save(place: Path, **arrays: object) -> str:
    numpy.savez(place / "a.npz", **arrays)  # type: ignore[arg-type]
    return str(place / "a.npz")


def parts(inputs: numpy.ndarray, labels: numpy.ndarray, names: tuple[str, ...]) -> dict[str, numpy.ndarray]:
    """Inputs and labels of 18 samples for training, 6 for validation and 6 for testing."""
    rows = numpy.split(numpy.arange(30), [18, 24])
    return dict(zip(names, [array[r] for r in rows for array in (inputs, labels)], strict=True))


KERAS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
OTHERS = ("trainX", "trainY", "X-dev", "y-dev", "Test-Data", "test_targets")


@pytest.mark.parametrize("names", [KERAS, MEDMNIST, OTHERS])
@pytest.mark.parametrize("column", [False, True])
def test_images_under_every_usual_name(tmp_path, names, column):
    labels = LABELS[:, None] if column else LABELS
    data = load_data(save(tmp_path, **parts(COLOURS, labels.astype(numpy.uint8), names)))
    assert isinstance(data, ImageData)
    assert (data.classes, data.image_shape) == (("0", "1", "2"), (3, 6, 5))
    assert data.train_labels.tolist() == LABELS[:18].tolist()
    scaled = COLOURS[:18].astype(float) / 255
    assert numpy.allclose(data.mean, scaled.mean(axis=(0, 1, 2)), atol=1e-12)
    assert numpy.allclose(data.std, scaled.std(axis=(0, 1, 2)), atol=1e-12)
    for split, rows in (("train", slice(0, 18)), ("validation", slice(18, 24)), ("test", slice(24, 30))):
        ((images, found),) = eval_loader(data, split, batch_size=30)
        by_hand = (COLOURS[rows] / 255 - data.mean) / data.std
        assert numpy.allclose(images.permute(0, 2, 3, 1), by_hand, atol=1e-5)  # float32
        assert found.tolist() == LABELS[rows].tolist()


@pytest.mark.parametrize("shape", [(30, 6, 5), (30, 6, 5, 1), (30, 1, 6, 5)])
def test_grey_images_and_channels_in_front(tmp_path, shape):
    grey = COLOURS[..., 0].reshape(shape)
    data = load_data(save(tmp_path, x=grey, y=LABELS), mean=[0.0], std=[1 / 255])
    assert data.image_shape == (1, 6, 5)
    ((images, _),) = eval_loader(data, "test", batch_size=30)
    both = torch.cat([data.train_images, data.test_images])
    assert sorted(both.sum(dim=(1, 2, 3)).tolist()) == sorted(COLOURS[..., 0].sum(axis=(1, 2)).tolist())
    assert torch.equal(images.round().byte(), data.test_images)
    assert len(data.test_labels) == 6 and data.test_taken  # a fifth


def test_with_a_size_they_are_read_like_image_files(tmp_path):
    path = save(tmp_path, **parts(COLOURS, LABELS, KERAS))
    data = load_data(path, image_size=7, mean=(0.5,) * 3, std=(0.25,) * 3)
    ((images, labels),) = eval_loader(data, "test", batch_size=30)
    by_hand = Image.fromarray(COLOURS[24]).resize((8, 9), Image.Resampling.BILINEAR)
    assert by_hand.size == (8, 9)
    crop = numpy.asarray(by_hand)[1:8, 0:7] / 255
    assert numpy.allclose(images[0].permute(1, 2, 0), (crop - 0.5) / 0.25, atol=1e-5)
    assert labels.tolist() == LABELS[24:].tolist()
    assert next(iter(train_loader(data, batch_size=4, seed=0)))[0].shape == (4, 3, 7, 7)


def test_vectors_from_an_npz_and_from_a_folder(tmp_path):
    arrays = parts(VECTORS, LABELS, KERAS)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        numpy.save(tmp_path / "folder" / f"{name}.npy", array)
    for path in (save(tmp_path, **arrays), str(tmp_path / "folder")):
        data = load_data(path)
        assert (data.image_shape, data.classes) == ((4,), ("0", "1", "2"))
        ((vectors, labels),) = eval_loader(data, "validation", batch_size=30)
        assert torch.equal(vectors, torch.from_numpy(VECTORS[18:24]).float())
        assert labels.tolist() == LABELS[18:24].tolist()
        batches = list(train_loader(data, batch_size=5, seed=1, indices=torch.arange(4, 18)).iterate(3))
        assert sorted(torch.cat([x for x, _ in batches])[:, 0].tolist()) == sorted(
            torch.from_numpy(VECTORS[4:18, 0]).float().tolist()
        )
        again = list(train_loader(data, batch_size=5, seed=1, indices=torch.arange(4, 18)).iterate(3, 2))
        assert torch.equal(again[0][0], batches[2][0])


def vector_network(in_features: int, num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(in_features, 7), torch.nn.Linear(7, num_classes))


def test_factories_are_offered_the_width():
    model = build_model(f"{__name__}:vector_network", num_classes=3, in_features=4)
    assert model(torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"'small-cnn' takes images, and the data are vectors of 4 features: give a f"):
        build_model("small-cnn", num_classes=3, in_features=4)


def test_names_of_classes(tmp_path):
    data = load_data(save(tmp_path, x=VECTORS, y=numpy.array(["cat", "ant", "bee"])[LABELS]))
    assert data.classes == ("ant", "bee", "cat")
    assert torch.bincount(data.train_labels).tolist() == [8, 8, 8]
    data = load_data(save(tmp_path, x=VECTORS, y=LABELS * 2, classes=numpy.array(list("abcde"))))
    assert data.classes == tuple("abcde")
    # Classes that are named are in their order, beside texts too; bytes are texts; numbers are in that of their values.
    texts, named = numpy.array(["cat", "ant", "bee"])[LABELS], numpy.array([b"cat", b"bee", b"ant"])
    data = load_data(save(tmp_path, x_train=VECTORS, y_train=texts, x_test=VECTORS, y_test=texts, classes=named))
    assert data.classes == ("cat", "bee", "ant") and data.train_labels.tolist()[:4] == [0, 2, 1, 0]
    data = load_data(save(tmp_path, x=VECTORS, y=numpy.array(["10", "9", "2"])[LABELS]))
    assert data.classes == ("2", "9", "10")


@pytest.mark.parametrize("dtype", [">i8", ">u2", "u8", "?"])
def test_labels_of_any_integer_type_and_order_of_bytes(tmp_path, dtype):
    labels = (LABELS % 2).astype(dtype)
    data = load_data(save(tmp_path, x_train=VECTORS, y_train=labels, x_test=VECTORS, y_test=labels))
    assert data.train_labels.dtype == torch.int64 and data.train_labels.tolist() == (LABELS % 2).tolist()


def test_what_is_said(tmp_path):
    with pytest.warns(UserWarning) as said:
        load_data(save(tmp_path, x=VECTORS * [1, 1e5, 1, 1], y=LABELS, x_test=VECTORS, notes=numpy.zeros(3)))
    assert [str(warning.message).split("a.npz: ")[1] for warning in said][:2] == [
        "arrays not used: notes",
        "x_test has no labels: not used",
    ]
    assert "standardise them" in str(said[2].message)


OBJECTS = numpy.array([{}, []], dtype=object)
REFUSED = {
    "objects": ({"x": VECTORS, "y": numpy.array([[], {}] * 15, dtype=object)}, "y: an array of object, which is not"),
    "objects as inputs": ({"x": OBJECTS, "y": LABELS[:2]}, "x: an array of object"),
    "records": ({"x": numpy.zeros(3, dtype=[("a", "f4")]), "y": LABELS[:3]}, "which is not read: save plain numbers"),
    "other lengths": ({"x": VECTORS, "y": LABELS[:29]}, r"x has 30 samples, and its labels have the shape \(29,\)"),
    "one label": ({"x": VECTORS, "y": numpy.array(1)}, r"its labels have the shape \(\)"),
    "no labels": ({"x_train": VECTORS}, "x_train has no labels beside it"),
    "labels alone": ({"x": VECTORS, "y": LABELS, "y_test": LABELS}, "y_test has no inputs beside it"),
    "no names": ({"a": VECTORS, "b": LABELS}, "no inputs for training; the arrays are a, b: call them x_train"),
    "twice": ({"x": VECTORS, "x_train": VECTORS, "y": LABELS}, "x and x_train are both the inputs for train"),
    "no samples": ({"x": VECTORS[:0], "y": LABELS[:0]}, "no samples"),
    "float images": ({"x": COLOURS / 255, "y": LABELS}, r"float64 \(30, 6, 5, 3\); images are uint8"),
    "no channels": ({"x": RNG.integers(0, 9, (3, 6, 7, 8), dtype=numpy.uint8), "y": LABELS[:3]}, "no axis of channels"),
    "other shapes": ({"x": VECTORS, "y": LABELS, "x_test": VECTORS[:, 1:], "y_test": LABELS}, r"shape \(3,\), and tra"),
    "NaN": ({"x": numpy.where(numpy.arange(30)[:, None] == 7, numpy.nan, VECTORS), "y": LABELS}, "row 7 has NaN"),
    "float labels": ({"x": VECTORS, "y": LABELS / 2}, r"labels for train are float64 \(30,\); give class indices"),
    "gaps": ({"x": VECTORS, "y": LABELS + 1}, "labels are 1, 2, 3, which would make 4 classes"),
    "a class for testing only": (
        {"x": VECTORS, "y": LABELS.astype(str), "x_test": VECTORS[:1], "y_test": numpy.array(["7"])},
        "the class '7' has no training samples; there are 0, 1, 2",
    ),
    "a text that is not named": (
        {"x": VECTORS, "y": LABELS.astype(str), "classes": numpy.array(list("01"))},
        "the class '2' is not among the classes; there are 0, 1",
    ),
    "dates": ({"x": VECTORS, "y": LABELS.astype("M8[D]")}, r"labels for train are datetime64\[D\] \(30,\); give class"),
    "several texts": ({"x": VECTORS, "y": numpy.array(list("ab"))[[[0, 1]] * 30]}, r"texts \(30, 2\); give one for"),
    "no UTF-8": ({"x": VECTORS, "y": numpy.array([b"\xe9", b"a"])[LABELS % 2]}, "a.npz: labels for train are bytes"),
    "one of each class": ({"x": VECTORS[:3], "y": LABELS[:3]}, r"a.npz: there are no test data, .* give a part for t"),
    "a constant channel": ({"x": COLOURS * 0, "y": LABELS}, "all pixels of a channel are the same"),
    "several labels": ({"x": VECTORS, "y": numpy.ones((30, 3), dtype=int)}, "not one-hot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(tmp_path, case):
    arrays, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        load_data(save(tmp_path, **arrays))


def test_options_of_images_do_not_apply_to_vectors(tmp_path):
    for options in ({"mean": (0.0,)}, {"image_size": 8}, {"augment": "cutout"}):
        with pytest.raises(DataError, match="are for images, and these are feature vectors"):
            load_data(save(tmp_path, x=VECTORS, y=LABELS), **options)


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_a_header_is_looked_at_before_memory_is_taken(tmp_path):
    """A few kB that unpack to zeros: the first claims more than any memory, the second more than it holds."""
    for shape, sentence in (((10**9, 1000, 1000), "more than the memory of this machine"), ((9, 9), "copy it again")):
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", header(shape) + bytes(10**6))
            archive.writestr("y.npy", header((9,)) + bytes(9))
        assert os.path.getsize(tmp_path / "bomb.npz") < 3000
        with pytest.raises(DataError, match=f"x: its header says .*{sentence}"):
            load_data(str(tmp_path / "bomb.npz"))


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load_data(str(tmp_path / "a.npz"))
    numpy.save(tmp_path / "a.npy", VECTORS)
    with pytest.raises(DataError, match="one array has no labels beside it"):
        load_data(str(tmp_path / "a.npy"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.npy").write_bytes(b"\x93NUMPY\x01\x00nothing")
    numpy.save(tmp_path / "folder" / "y.npy", LABELS)
    with pytest.raises(DataError, match="x: not a readable array"):
        load_data(str(tmp_path / "folder"))
    os.remove(tmp_path / "folder" / "x.npy")
    os.mkfifo(tmp_path / "folder" / "x.npy")
    with pytest.raises(DataError, match="x: no regular file"):
        load_data(str(tmp_path / "folder"))
