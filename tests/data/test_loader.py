from __future__ import annotations

import random
from collections.abc import Iterator

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pof._support.random import capture, derive_seed
from pof.data import Augmentation, DataError, DatasetLoader, TensorLoader
from pof.data.batch_sampler import StatelessBatchSampler
from pof.data.loader import EpochLoader

N, BATCH = 23, 5
IMAGES = torch.randint(256, (N, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N)


class Noisy(Dataset):
    """Draws from all three global generators, as custom data sets do."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = [float(torch.rand(())), random.random(), float(numpy.random.rand())]
        return torch.tensor([float(index), *noise]), index


def tensors(**options) -> TensorLoader:
    settings = {"batch_size": BATCH, "shuffle": True, "seed": 0, "augment": Augmentation(2, True, 2), **options}
    return TensorLoader(IMAGES, LABELS, mean=(0.4, 0.5), std=(0.2, 0.3), **settings)


def dataset(**options) -> DatasetLoader:
    settings = {"batch_size": BATCH, "shuffle": True, "seed": 0, "num_classes": N, **options}
    return DatasetLoader(Noisy(), **settings)


KINDS = {"tensors": tensors, "dataset": dataset}
both = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def assert_same(first: Iterator, second: Iterator) -> None:
    for (x, y), (u, v) in zip(first, second, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@both
def test_an_epoch_is_every_sample_once(make):
    batches = list(make())
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert torch.cat([y for _, y in batches]).sort().values.tolist() == list(range(N))
    assert len(make()) == 5
    assert len(make(drop_last=True)) == 4 == len(list(make(drop_last=True)))
    assert [make().batch_sampler.global_size(i) for i in range(5)] == [5, 5, 5, 5, 3]


@both
def test_any_batch_without_the_earlier_ones(make):
    whole = list(make().iterate(3))
    for start in range(6):
        assert_same(make().iterate(3, start), whole[start:])
    assert_same(make().iterate(3, 2), whole[2:])


@both
def test_epochs_and_seeds_differ_and_repeat(make):
    loader = make()
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0][1], second[0][1])
    loader.set_epoch(0)
    assert_same(loader, first)
    assert_same(loader, second)
    assert not torch.equal(next(iter(make(seed=1)))[1], first[0][1])


@both
def test_the_global_generators_are_left_alone(make):
    before = capture()
    list(make())
    after = capture()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["python"][1], after["python"][1])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2] == after["numpy"][2]


@both
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_see_together_what_one_would_see(make, world_size):
    one = list(make().iterate(1))
    shares = [list(make(rank=r, world_size=world_size).iterate(1)) for r in range(world_size)]
    for index, (x, y) in enumerate(one):
        parts = [share[index] for share in shares]
        assert torch.equal(torch.cat([p[0] for p in parts]), x)
        assert torch.equal(torch.cat([p[1] for p in parts]), y)
        sizes = [len(p[1]) for p in parts]
        assert max(sizes) - min(sizes) <= 1


@both
def test_without_shuffle_the_order_is_that_of_the_data(make):
    assert torch.cat([y for _, y in make(shuffle=False).iterate(7)]).tolist() == list(range(N))


@both
def test_batches_that_do_not_fit(make):
    with pytest.raises(DataError, match=r"batch_size 24 is larger than the data \(23 samples\).*at most 23"):
        make(batch_size=24)
    with pytest.raises(DataError, match="at least 1; got 0"):
        make(batch_size=0)
    with pytest.raises(DataError, match=r"a batch of 3 samples cannot be shared by 4 processes.*drop the last"):
        make(world_size=4)
    assert len(make(world_size=4, drop_last=True)) == 4
    with pytest.raises(DataError, match=r"rank must be in \[0, 2\); got 2"):
        make(rank=2, world_size=2)


def test_augmentation_is_fresh_for_each_sample_batch_and_epoch():
    images = IMAGES[:1].expand(16, -1, -1, -1)
    loader = TensorLoader(
        images,
        torch.zeros(16).long(),
        batch_size=8,
        mean=(0, 0),
        std=(1, 1),
        shuffle=False,
        seed=0,
        augment=Augmentation(pad=2),
    )
    x, _ = next(loader.iterate(0))
    assert len({tuple(image.flatten().tolist()) for image in x}) > 4
    assert not torch.equal(x, next(loader.iterate(1))[0])
    assert not torch.equal(x, next(loader.iterate(0, 1))[0])


def test_without_augmentation_images_are_normalised_only():
    (x, y), *_ = tensors(augment=None, shuffle=False)
    expected = (IMAGES[:BATCH] / 255 - torch.tensor([0.4, 0.5])[:, None, None]) / torch.tensor([0.2, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_workers_change_nothing():
    assert_same(dataset(workers=2), dataset(workers=0))
    assert_same(dataset(workers=1).iterate(2, 3), list(dataset().iterate(2))[3:])


def test_each_sample_has_random_numbers_of_its_own_in_each_epoch():
    noise = torch.cat([x[:, 1:] for epoch in (0, 1) for x, _ in dataset().iterate(epoch)])
    for column in noise.T:
        assert len(torch.unique(column)) == 2 * N


class Listed(Dataset):
    def __init__(self, *items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


FAULTY = {
    "NaN": ((torch.ones(2, 2), 0), (torch.tensor([[1.0, 1.0], [float("nan"), 1.0]]), 1)),
    "label": ((torch.ones(2), 0), (torch.ones(2), 5)),
    "shapes": ((torch.ones(2), 0), (torch.ones(3), 1)),
    "unreadable": ((torch.ones(2), 0), DataError("x.png: not a readable image")),
    "no tensor": ((object(), 0), (object(), 1)),
}
MESSAGES = {
    "NaN": r"^inputs contain nan \(sample 1 of the batch, position \[1, 0\]\)",
    "label": "^batch: label 5 of sample 1 is out of range for 3 classes",
    "shapes": "^the items of a batch cannot be stacked.*resize them to one shape",
    "unreadable": r"^x\.png: not a readable image$",
    "no tensor": "^the items of a batch cannot be stacked",
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("case", FAULTY)
def test_faulty_items(case, workers):
    loader = DatasetLoader(Listed(*FAULTY[case]), batch_size=2, shuffle=False, seed=0, num_classes=3, workers=workers)
    with pytest.raises(DataError, match=MESSAGES[case]) as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_dict_batches():
    items = [{"pixel_values": torch.full((2,), float(i)), "labels": i} for i in range(4)]
    batches = list(DatasetLoader(Listed(*items), batch_size=2, shuffle=False, seed=0, num_classes=4))
    assert batches[1]["labels"].tolist() == [2, 3]
    with pytest.raises(DataError, match="label 3 of sample 1"):
        list(DatasetLoader(Listed(*items), batch_size=2, shuffle=False, seed=0, num_classes=3))


def test_wrong_tensors_are_refused():
    options = {"batch_size": 2, "shuffle": False, "seed": 0, "mean": (0,), "std": (1,)}
    with pytest.raises(DataError, match=r"must be uint8 \(N, K, H, W\); got torch\.float32"):
        TensorLoader(torch.ones(3, 1, 2, 2), torch.zeros(3), **options)
    with pytest.raises(DataError, match=r"3 images need as many labels; got \(2,\)"):
        TensorLoader(torch.ones(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), **options)
    with pytest.raises(DataError, match=r"images of 3 channels need 3 values each.*got 1 and 1"):
        TensorLoader(torch.ones(3, 3, 2, 2, dtype=torch.uint8), torch.zeros(3), **options)
    with pytest.raises(DataError, match="std must be positive"):
        TensorLoader(torch.ones(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3), **{**options, "std": (0,)})


def test_loaders_share_one_base():
    assert isinstance(tensors(), EpochLoader)
    assert isinstance(dataset(), EpochLoader)


def test_derived_seeds_differ():
    seeds = {derive_seed(s, name, e) for s in range(10) for name in ("order", "augment") for e in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_the_order_is_pinned():
    """A change of these numbers would change what a resumed run sees."""
    plan = StatelessBatchSampler(size=8, batch_size=8, shuffle=True, seed=0)
    assert derive_seed(0, "order", 0) == 4819849257279361181
    assert plan.order(0).tolist() == [7, 1, 3, 0, 6, 2, 5, 4]
