from __future__ import annotations

import pytest
import torch

from pof.data import Augmentation, DataError, ImageData, check_batch, check_labels, eval_loader, summary, train_loader


def image_data(**changes) -> ImageData:
    settings = {
        "name": "toy",
        "train_images": torch.arange(6 * 4, dtype=torch.uint8).reshape(6, 1, 2, 2),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        "test_labels": torch.tensor([0, 1, 2]),
        "classes": ("a", "b", "c"),
        "mean": (0.5,),
        "std": (0.5,),
        "augmentation": None,
        "source": "here",
    }
    return ImageData(**{**settings, **changes})


BAD = {
    "too large": ({"train_labels": torch.tensor([0, 1, 3, 0, 1, 2])}, "toy .train.: label 3 of sample 2.*3 classes"),
    "negative": ({"test_labels": torch.tensor([0, -1, 2])}, "toy .test.: label -1 of sample 1.*labels are 0 to 2"),
    "one class": ({"train_labels": torch.ones(6).long()}, r"all 6 samples are of one class \(1\)"),
    "empty": ({"train_labels": torch.zeros(0).long()}, "toy .train.: no samples"),
    "mean": ({"mean": (0.1, 0.2, 0.3)}, "images of 1 channels need 1 values each.*got 3 and 1"),
    "std": ({"std": (-1.0,)}, "std must be positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_at_construction(case):
    changes, message = BAD[case]
    with pytest.raises(DataError, match=message):
        image_data(**changes)


def test_subset_of_one_class_is_refused():
    with pytest.raises(DataError, match="one class"):
        image_data().subset(torch.tensor([0, 3]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_check_batch_finds_what_is_not_finite(value):
    inputs = torch.ones(3, 2)
    check_batch(inputs, torch.zeros(3).long(), num_classes=2)
    inputs[2, 1] = value
    with pytest.raises(DataError, match=rf"inputs contain {value} \(sample 2 of the batch, position \[1\]\)"):
        check_batch(inputs, torch.zeros(3).long())
    with pytest.raises(DataError, match=f"pixel_values contain {value}"):
        check_batch({"pixel_values": inputs, "mask": torch.ones(3, 2).long()}, torch.zeros(3).long())


def test_check_batch_leaves_probabilities_alone():
    check_batch(torch.ones(2, 2), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), num_classes=2)
    with pytest.raises(DataError, match="label 2 of sample 1"):
        check_batch(torch.ones(2, 2), torch.tensor([1, 2]), num_classes=2)


def test_check_labels_names_the_first():
    with pytest.raises(DataError, match=r"x: label 10 of sample 1 .*10 classes.*0 to 9 \(count classes from 0\)"):
        check_labels(torch.tensor([1, 10, 11]), num_classes=10, name="x")


def test_labels_in_memory_may_be_of_any_integer_kind():
    for labels in (image_data().train_labels.byte(), image_data().train_labels.int()[:, None]):
        data = image_data(train_labels=labels)
        (_, found), *_ = eval_loader(data, "train", batch_size=6)
        assert found.dtype == data.train_labels.dtype == torch.int64
        assert found.tolist() == [0, 1, 2, 0, 1, 2]


def test_loaders_of_parts():
    data = image_data()
    chosen = torch.tensor([1, 2, 5])
    labels = torch.cat([y for _, y in train_loader(data, batch_size=2, seed=0, indices=chosen)])
    assert sorted(labels.tolist()) == [1, 2, 2]
    (images, labels), *_ = eval_loader(data, "train", batch_size=100, indices=chosen)
    assert labels.tolist() == [1, 2, 2]
    torch.testing.assert_close(images, (data.train_images[chosen] / 255 - 0.5) / 0.5)
    assert [len(y) for _, y in eval_loader(data, "test", batch_size=2)] == [2, 1]
    with pytest.raises(DataError, match=r"split is one of .*got 'tests'"):
        eval_loader(data, "tests", batch_size=2)
    with pytest.raises(DataError, match="toy has no validation data of its own: hold some out"):
        eval_loader(data, "validation", batch_size=2)
    with pytest.warns(UserWarning, match="batch_size 7 is larger than the training data"):
        train_loader(data, batch_size=7, seed=0)


def test_evaluation_is_not_augmented():
    data = image_data(augmentation=Augmentation(pad=1))
    (plain, labels), *_ = eval_loader(data, "train", batch_size=6)
    torch.testing.assert_close(plain, (data.train_images / 255 - 0.5) / 0.5)
    assert labels.tolist() == data.train_labels.tolist()
    augmented = torch.cat([x for x, _ in train_loader(data, batch_size=6, seed=0)])
    assert not torch.equal(augmented.sort(0).values, plain.sort(0).values)


def test_summary():
    text = summary(image_data())
    assert text["training samples"] == "6"
    assert text["test samples"] == "3"
    assert text["classes"] == "3 (a, b, c)"
    assert text["training samples per class"] == "2"
    assert text["shape of an input"] == "1 x 2 x 2"
    assert text["mean"] == text["std"] == "0.5"
    assert text["source"] == "here"
    assert text["augmentation"] == "none"
    assert summary(image_data().subset(torch.tensor([0, 1, 2, 3])))["training samples per class"] == "1 to 2"
