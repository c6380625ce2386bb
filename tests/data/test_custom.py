from __future__ import annotations

import random
import re
import sys

import numpy
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from pof.app.options import DataOptions
from pof.app.splits import split
from pof.data import DataError, custom, eval_loader, load_data, outputs_of, summary, train_loader
from pof.data.custom import labels_of
from pof.data.overview import unreadable

FACTORIES = """
import random
import numpy
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

def pair(classes=3):
    labels = torch.arange(12) % classes
    images = labels[:, None, None, None].expand(12, 2, 4, 4).float()
    return TensorDataset(images, labels), TensorDataset(images[:5], labels[:5])

class Items(Dataset):
    classes = ["cat", "dog", "fish", "bird"]
    read = 0

    def __init__(self, item=None):
        self.item = item

    def __len__(self):
        return 6

    def __getitem__(self, index):
        Items.read += 1
        if self.item is not None:
            return self.item, index % 2
        return torch.rand(1, 2, 2), index % 2

def items():
    return Items(), Items()

class Raising(Items):
    def __init__(self, first):
        self.first = first

    def __getitem__(self, index):
        torch.rand(1), random.random(), numpy.random.rand()
        if index >= self.first:
            raise KeyError("no such label")
        return torch.ones(1, 2, 2), index % 2

def raising_at_once(): return Raising(0), Items()
def raising_later(): return Raising(3), Items()

def rooted(data_root=None):
    assert data_root is not None
    return pair(int(data_root.name))

def three():
    train, test = pair()
    return train, TensorDataset(-train.tensors[0][:6], train.tensors[1][:6]), test

def unlike():
    validation = Items()
    validation.classes = ["cat", "wren"]
    return Items(), validation, Items()

def four(): return (*pair(), *pair())
def one(): return Items()
def pil(): return Items(object()), Items()
def nan(): return Items(torch.tensor([[[float("nan")]]])), Items()
def out_of_range():
    train, _ = pair(2)
    return train, pair(5)[1]
def one_class(): return pair(1)
def empty(): return Subset(Items(), []), Items()

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

def stream(): return Stream(), Stream()

class Odd(Items):
    # Items that go into no mini-batch with the others.

    targets = [0, 1] * 75

    def __len__(self):
        return 150

    def __getitem__(self, index):
        shape, item = (1, 2, 3) if index == 1 else (1, 2, 2), None
        return item if index == 142 else (torch.ones(shape), index % 2)

def odd(): return Odd(), Items()
"""


@pytest.fixture
def name(tmp_path, monkeypatch):
    (tmp_path / "strangers_data.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield "strangers_data"
    sys.modules.pop("strangers_data", None)


def test_tensor_datasets(name):
    data = load_data(f"{name}:pair")
    assert data.num_classes == 3
    assert data.in_channels == 2
    assert data.image_shape == (2, 4, 4)
    assert data.train_labels.tolist() == [0, 1, 2] * 4
    for images, labels in train_loader(data, batch_size=4, seed=0):
        assert torch.equal(images[:, 0, 0, 0], labels.float())
    assert sum(len(y) for _, y in eval_loader(data, "test", batch_size=100)) == 5
    assert summary(data)["mean"] == "as the data set has it"


def test_validation_data_of_its_own(name):
    """Without the augmentation of the training data, which a part held out of them would have."""
    data = load_data(f"{name}:three")
    ((images, labels),) = eval_loader(data, "validation", batch_size=100)
    assert labels.tolist() == data.val_labels.tolist() == [0, 1, 2] * 2
    assert torch.equal(images[:, 0, 0, 0], -labels.float())
    held = split(data, DataOptions(f"{name}:three"))
    assert held.held_in == "validation" and len(held.train) == 12 and len(held.validation) == 6


def test_labels_are_read_from_items_that_have_no_list(name):
    state = torch.get_rng_state()
    data = load_data(f"{name}:items")
    assert torch.equal(torch.get_rng_state(), state)
    assert data.train_labels.tolist() == [0, 1] * 3
    assert data.classes == ("cat", "dog", "fish", "bird")


@pytest.mark.parametrize(("factory", "samples"), [("raising_at_once", [0]), ("raising_later", [3, 4, 5])])
def test_a_dataset_that_raises_names_the_samples_and_leaves_the_global_generators(name, factory, samples):
    states = [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[2]]
    said = ", ".join(f"sample {index}: KeyError: 'no such label'" for index in samples)
    with pytest.raises(DataError, match=re.escape(f"{name}:{factory} (train): {said}")) as raised:
        load_data(f"{name}:{factory}")
    assert isinstance(raised.value.__cause__, KeyError)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy.random.get_state()[2] == states[2]


def test_samples_that_no_mini_batch_can_be_made_of_are_named(name):
    first, last = unreadable(load_data(f"{name}:odd"))
    assert first == "training sample 1: its input is (1, 2, 3), and most are (1, 2, 2)"
    assert last.startswith("training sample 142: ") and last.endswith("got NoneType")


def sized(*sizes):
    items = [({"x": torch.ones(size), "mask": torch.ones(2)}, i % 2) for i, size in enumerate(sizes)]
    return [{**inputs, "labels": label} for inputs, label in items]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_are_compared_with_most_of_their_part_in_every_tensor(monkeypatch, workers):
    """Test images may be whole, where those for training are crops; the first item may be the odd one."""
    data = described(monkeypatch, sized(5, 3, 3, 3), sized(9, 9, 9))
    assert unreadable(data, workers=workers) == [
        "training sample 0: its input is mask (2,), x (5,), and most are mask (2,), x (3,)"
    ]


def test_arrays_in_items_are_compared_too(monkeypatch):
    """A mini-batch makes tensors of them."""
    items = [{"x": torch.ones(2), "y": numpy.ones(n), "labels": i % 2} for i, n in enumerate((3, 3, 4, 3))]
    assert unreadable(described(monkeypatch, items, items[:2])) == [
        "training sample 2: its input is x (2,), y (4,), and most are x (2,), y (3,)"
    ]


@pytest.mark.parametrize("other", [{"z": torch.ones(3), "labels": 0}, (torch.ones(3), 0)])
def test_an_item_with_other_keys_is_named(monkeypatch, other):
    items = [{"x": torch.ones(3), "labels": i % 2} for i in range(4)] + [other]

    class Labelled(list):
        targets = (0, 1, 0, 1, 0)

    found = unreadable(described(monkeypatch, Labelled(items), items[:2]))
    assert found == [f"training sample 4: its input is {'z ' * isinstance(other, dict)}(3,), and most are x (3,)"]


def test_stored_labels_of_very_many_items_are_compared_at_items_that_are_there():
    class Many:
        targets = torch.zeros(2**24 + 4, dtype=torch.uint8)

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return torch.zeros(1), int(self.targets[range(len(self))[index]])

    assert labels_of(Many()).shape == (2**24 + 4,)


def test_data_root_is_passed_on(name, tmp_path):
    assert load_data(f"{name}:rooted", data_root=tmp_path / "4").num_classes == 4


BAD = {
    "one": r"must return \(training, test\) or \(training, validation, test\) Datasets; got a Items",
    "four": r"Datasets; got 4 values",
    "unlike": r"the classes of the Datasets train \(.*\) and validation \(.*'wren'\)\) differ",
    "pil": "the input of item 0 is a object .for images: torchvision",
    "out_of_range": r"out_of_range \(test\): label 2 of sample 2 is out of range for 2 classes",
    "one_class": "all 12 samples are of one class",
    "empty": r"empty \(train\): no samples",
    "stream": "needs a Dataset with a length and items by number; got Stream",
    "absent": "has no 'absent'",
}


@pytest.mark.parametrize("factory", BAD)
def test_bad_factories(name, factory):
    with pytest.raises(ValueError, match=BAD[factory]):
        load_data(f"{name}:{factory}")


def test_nan_is_found_in_the_first_batch(name):
    with pytest.raises(DataError, match="inputs contain nan"):
        next(iter(train_loader(load_data(f"{name}:nan"), batch_size=2, seed=0)))


def test_options_that_are_the_factory_s_own(name):
    for option in ({"augment": "none"}, {"image_size": 3}, {"mean": (0.5,)}, {"std": (0.5,)}):
        with pytest.raises(DataError, match="does not apply to the data set"):
            load_data(f"{name}:pair", **option)


class Attributed(TensorDataset):
    def __init__(self, target_transform=None, **attributes) -> None:
        super().__init__(torch.zeros(3, 1), torch.tensor([2, 1, 0]))
        self.target_transform = target_transform
        self.__dict__.update(attributes)


class Plain:
    def __init__(self, **attributes) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        return torch.zeros(1), torch.tensor(index)


@pytest.mark.parametrize(("target", "said"), [(None, "got None"), ("cat", "got str|texts")])
def test_items_without_a_label_are_named(target, said):
    class Unlabelled(Plain):
        def __getitem__(self, index: int):
            return torch.zeros(1), target if index == 1 else index

    with pytest.raises(DataError, match=rf"^the data: sample 1: targets .*({said})"):
        labels_of(Unlabelled())


def test_where_labels_come_from():
    assert labels_of(Attributed()).tolist() == [2, 1, 0]
    assert labels_of(Subset(Attributed(), [2, 0])).tolist() == [0, 2]
    assert labels_of(Plain(targets=[0, 1, 2])).tolist() == [0, 1, 2]
    assert labels_of(Plain(labels=torch.tensor([0, 1, 2]))).tolist() == [0, 1, 2]
    # None of these says what the items say.
    assert labels_of(Plain(labels=["a", "b"])).tolist() == [0, 1, 2]
    assert labels_of(Plain(targets=[5, 6, 7], target_transform=lambda y: y)).tolist() == [0, 1, 2]
    assert labels_of(Plain(targets=[5, 6, 7])).tolist() == [0, 1, 2]


class Coarse(TensorDataset):
    """The classes of a well-known data set in pairs, by a ``__getitem__`` of its own."""

    def __getitem__(self, index: int):
        inputs, label = super().__getitem__(index)
        return inputs, label // 2


def test_labels_that_the_items_change_are_those_of_the_items(monkeypatch):
    coarse = Coarse(torch.zeros(300, 3), torch.arange(300) % 4)
    assert labels_of(coarse).tolist() == [0, 0, 1, 1] * 75
    coarse.targets = (torch.arange(300) % 4).tolist()
    assert labels_of(Subset(coarse, range(4))).tolist() == [0, 0, 1, 1]
    assert described(monkeypatch, coarse).num_classes == 2


class Halved(Subset):
    """A part whose items it changes itself, as a transform of the part's own does."""

    def __getitem__(self, index: int):
        inputs, label = super().__getitem__(index)
        return inputs, label // 2

    def __getitems__(self, indices: list[int]):
        return [self[index] for index in indices]


def test_of_a_part_no_other_items_are_read_and_the_labels_are_its_own():
    class SomeUnreadable(Plain):
        def __getitem__(self, index: int):
            if index == 1:
                raise OSError("truncated")
            return super().__getitem__(index)

    assert labels_of(Subset(SomeUnreadable(), [2, 0])).tolist() == [2, 0]
    assert labels_of(Halved(TensorDataset(torch.zeros(4, 3), torch.arange(4)), [3, 1])).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"sample 0: OSError: truncated"):
        labels_of(Subset(SomeUnreadable(), [1, 2]))


def test_not_every_item_is_read_for_labels_that_are_there():
    read = []

    class Counted(Plain):
        def __len__(self) -> int:
            return 5000

        def __getitem__(self, index: int):
            read.append(index)
            return torch.zeros(1), index % 3

    assert labels_of(Counted(targets=torch.arange(5000) % 3)).tolist() == [index % 3 for index in range(5000)]
    assert len(read) == 100 and (read[0], read[-1]) == (0, 4999)
    read.clear()
    part = Subset(Counted(targets=torch.arange(5000) % 3), range(4000))
    assert labels_of(part).tolist() == [index % 3 for index in range(4000)]
    assert len(read) == 100 and (read[0], read[-1]) == (0, 3999)


class Tabled(TensorDataset):
    """Features and labels of any kind; ``classes`` where they are given."""

    def __init__(self, labels, classes=None) -> None:
        labels = torch.as_tensor(labels)
        super().__init__(torch.zeros(len(labels), 3), labels)
        if classes is not None:
            self.classes = classes


def described(monkeypatch, train, test=None):
    monkeypatch.setattr(custom, "call_factory", lambda name, offered: (train, train if test is None else test))
    return custom.factory_data("own:data", None)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, "column", "one-hot"])
def test_labels_of_any_integer_kind_are_class_indices(monkeypatch, kind):
    labels = torch.tensor([2, 0, 1, 2])
    kinds = {"column": labels[:, None].int(), "one-hot": torch.eye(3).int()[labels]}
    data = described(monkeypatch, Tabled(kinds[kind] if isinstance(kind, str) else labels.to(kind)))
    assert data.train_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [2, 0, 1, 2]
    assert data.num_classes == 3


@pytest.mark.parametrize("labels", [[1, 2, 3, 1], [0, 50, 100, 0], [0, 2, 2, 0]])
def test_labels_with_gaps_are_refused_unless_the_classes_have_names(monkeypatch, labels):
    shown = ", ".join(str(label) for label in sorted(set(labels)))
    with pytest.raises(DataError, match=rf"own:data: labels are {shown}, which would make {max(labels) + 1} classes"):
        described(monkeypatch, Tabled(labels))
    # Whoever names a class means it, also where the training set has no sample of it.
    names = [f"class {i}" for i in range(max(labels) + 1)]
    assert described(monkeypatch, Tabled(labels, names)).num_classes == max(labels) + 1
    assert described(monkeypatch, Subset(Tabled(labels, numpy.array(names)), [0, 1])).num_classes == max(labels) + 1


def test_a_class_of_the_test_set_alone_is_no_gap(monkeypatch):
    assert described(monkeypatch, Tabled([0, 2, 2]), Tabled([0, 1, 2])).num_classes == 3


BAD_LABELS = {
    "negative": ([-1, 1, 1], "label -1 of sample 0 is out of range for 2 classes"),
    "multi-hot": ([[1, 1, 0], [0, 0, 1]], "are not one-hot .row 0."),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_that_are_no_classes(monkeypatch, kind):
    labels, message = BAD_LABELS[kind]
    with pytest.raises(ValueError, match=message):
        described(monkeypatch, Tabled(labels))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "targets must be a tensor of class indices or probabilities; got None"),
        ("cat", r"targets are texts \('cat', ...\): give class indices"),
    ],
)
def test_items_with_labels_that_are_no_classes(label, message):
    class Labelled(Plain):
        def __getitem__(self, index: int):
            return torch.zeros(1), label

    with pytest.raises(ValueError, match=message):
        labels_of(Labelled())
    if not isinstance(label, torch.Tensor | None):
        with pytest.raises(ValueError, match=r"labels must be class indices|targets are texts"):
            labels_of(Plain(targets=[label] * 3))


@pytest.mark.parametrize(("label", "outputs"), [(0.5, 1), (torch.tensor(0.5), 1), (torch.tensor([0.2, 1.0]), 2)])
def test_floating_point_targets_are_those_of_another_task(monkeypatch, label, outputs):
    class Labelled(Plain):
        def __getitem__(self, index: int):
            return torch.zeros(1), label

    data = described(monkeypatch, Labelled())
    wanted = torch.as_tensor(label)
    assert torch.equal(data.train_labels, torch.stack([wanted] * len(data.train_labels)))
    assert (data.num_classes, outputs_of(data, "mse")) == (outputs, outputs)
    with pytest.raises(DataError, match="ordinal needs class indices"):
        outputs_of(data, "ordinal")
    if outputs == 1:
        with pytest.raises(DataError, match="has a number as target, no class: give --loss mse"):
            outputs_of(data, "cross-entropy")


def test_another_order_of_classes_in_the_test_set(monkeypatch):
    with pytest.raises(DataError, match=r"classes of the Datasets train \(\('a', 'b'\)\) and test"):
        described(monkeypatch, Tabled([0, 1], ["a", "b"]), Tabled([0, 1], ["b", "a"]))
