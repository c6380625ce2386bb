"""Mixup, CutMix, RandAugment, balanced classes, and mini-batches of few data."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from pof._support.random import derive_seed, isolated
from pof.app.cli import main
from pof.app.methods import METHODS, Context, build_method
from pof.app.options import TrainOptions, check_numbers
from pof.data import Augmentation, DataError, DatasetLoader, TensorLoader, load_data, train_loader
from pof.data.mixing import Mixing, class_weights
from tests.cases import batches, mlp
from tests.data.test_folder import write_images
from tests.interrupted import resumes_bitwise

IMAGES = torch.randint(256, (24, 3, 6, 5), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.tensor([0] * 16 + [1] * 6 + [2] * 2)
BOTH = Mixing(3, mixup=0.4, cutmix=1.0)


def in_memory(**options: Any) -> TensorLoader:
    given = {"batch_size": 7, "seed": 3, "shuffle": True, "mean": (0.5,) * 3, "std": (0.25,) * 3, **options}
    return TensorLoader(IMAGES, LABELS, **given)


def by_items(**options: Any) -> DatasetLoader:
    data = TensorDataset(IMAGES.float(), LABELS)
    return DatasetLoader(data, **{"batch_size": 7, "seed": 3, "shuffle": True, **options})


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("make", [in_memory, by_items])
@pytest.mark.parametrize(
    "options",
    [{"mixing": BOTH}, {"weights": class_weights(LABELS, 3)[LABELS]}, {"augment": Augmentation(randaugment=True)}],
    ids=["mixing", "balanced", "randaugment"],
)
def test_any_batch_is_the_same_from_the_middle_and_the_global_generator_stays(make, options):
    if make is by_items and "augment" in options:
        options = {"mixing": Mixing(3, mixup=1.0), "weights": torch.ones(24)}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole = list(make(**options).iterate(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(list(make(**options).iterate(2, 2)), whole[2:])
    assert not same(list(make(**options).iterate(1)), whole)


@pytest.mark.parametrize("make", [in_memory, by_items])
def test_mixup_is_the_formula(make):
    plain, mixed = list(make().iterate(1)), list(make(mixing=Mixing(3, mixup=0.4)).iterate(1))
    for (images, labels), (found, targets) in zip(plain, mixed, strict=True):
        rolled, hot = labels.roll(1), torch.eye(3)
        apart = (labels != rolled).nonzero()
        assert targets.shape == (len(labels), 3)
        assert torch.allclose(targets.sum(1), torch.ones(len(labels)))
        if len(apart):
            row = int(apart[0])
            share = float(targets[row, labels[row]])
            assert torch.allclose(targets, share * hot[labels] + (1 - share) * hot[rolled], atol=1e-6)
            by_hand = share * images + (1 - share) * images.roll(1, 0)
            assert torch.allclose(found, by_hand, atol=1e-4)  # of values up to 255 in float32


def test_cutmix_takes_a_rectangle_and_its_share_of_the_label():
    plain, mixed = list(in_memory().iterate(4)), list(in_memory(mixing=Mixing(3, cutmix=1.0)).iterate(4))
    for (images, labels), (found, targets) in zip(plain, mixed, strict=True):
        other = images.roll(1, 0)
        cut = ((found == other) & (found != images)).any(1)
        assert bool(((found == images) | (found == other)).all())
        share = float(cut.any(0).double().mean())
        expected = (1 - share) * torch.eye(3)[labels] + share * torch.eye(3)[labels.roll(1)]
        assert torch.allclose(targets, expected.float(), atol=1e-6)


def drawn(seeds: int = 200, **alphas: float) -> tuple[Tensor, Tensor]:
    """The share of the own class, and whether pixels are blends, of many mini-batches of a black and a white image."""
    mixing, images = Mixing(2, **alphas), torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 40, 40)
    made = [mixing((images, torch.arange(2)), seed) for seed in range(seeds)]
    blends = [bool(((found > 0) & (found < 1)).any()) for found, _ in made]
    return torch.stack([targets[0, 0] for _, targets in made]), torch.tensor(blends)


def test_shares_are_drawn_from_the_beta_distribution():
    for alpha in (0.4, 4.0):
        shares, _ = drawn(mixup=alpha)
        variance = 1 / (4 * (2 * alpha + 1))
        assert float(shares.mean()) == pytest.approx(0.5, abs=4 * (variance / 200) ** 0.5)
        assert float(shares.var()) == pytest.approx(variance, rel=0.3)
    # Half of the image for a large alpha, less at its border; anything for a small one.
    cut = 1 - drawn(cutmix=1000.0)[0]
    assert 0.45 < float(cut.max()) < 0.56
    assert float((1 - drawn(cutmix=0.1)[0]).max()) > 0.7
    _, blends = drawn(mixup=1000.0, cutmix=1000.0)
    assert 70 < int(blends.sum()) < 130


def test_randaugment_is_torchvisions_image_by_image():
    loader = in_memory(augment=Augmentation(pad=0, flip=False, randaugment=True), mean=(0.0,) * 3, std=(1 / 255,) * 3)
    images, _ = next(loader.iterate(0, 1))
    rows = loader.batch_sampler.order(0)[7:14]
    generator = torch.Generator().manual_seed(derive_seed(3, "augment", 0, 1))
    for size, count in ((1, (7, 2)), (2, (7,)), (6, (7,)), (5, (7,))):  # what the other kinds draw before
        if size == 2:
            torch.rand(count, generator=generator)
        else:
            torch.randint(size, count, generator=generator)
    seeds = torch.randint(2**62, (7,), generator=generator)
    for image, row, seed in zip(images, rows, seeds.tolist(), strict=True):
        with isolated(seed, torch_only=True):
            assert torch.equal(image.round().byte(), v2.RandAugment()(IMAGES[row]))
    assert not torch.equal(images.round().byte(), IMAGES[rows])
    with pytest.raises(DataError, match="randaugment is for grey images and colours; got images of 2 channels"):
        two = TensorLoader(
            IMAGES[:, :2], LABELS, batch_size=7, seed=0, shuffle=True, mean=(0, 0), std=(1, 1),
            augment=Augmentation(randaugment=True),
        )  # fmt: skip
        next(iter(two))


def test_randaugment_of_image_files_follows_crop_and_flip(tmp_path):
    folder = write_images(tmp_path, {"red": 3, "green": 3})
    plain, changed = (load_data(str(folder), image_size=9, augment=kind) for kind in ("default", "randaugment"))
    policy = v2.RandAugment()
    found, mean, std = 0, *(torch.tensor(values)[:, None, None] for values in (plain.mean, plain.std))
    for index in range(4):
        with isolated(index):
            cropped = plain.train_set[index][0]
            square = (cropped * std + mean) * 255
            image = Image.fromarray(square.round().byte().permute(1, 2, 0).numpy())
            by_hand = numpy.asarray(policy(image)) / 255
        with isolated(index):
            pixels = changed.train_set[index][0]
        expected = (torch.from_numpy(by_hand).permute(2, 0, 1) - mean) / std
        assert torch.allclose(pixels.double(), expected, atol=1e-5)
        found += not torch.equal(pixels, cropped)
        assert torch.equal(changed.plain_train_set[index][0], plain.plain_train_set[index][0])
    assert found


@pytest.mark.parametrize("targets", [torch.rand(4, 3), torch.zeros(4, 2, dtype=torch.int64)])
def test_what_cannot_be_mixed_is_refused(targets):
    with pytest.raises(DataError, match=r"mixup and cutmix are for images \(N, K, H, W\) with class indices"):
        BOTH((torch.rand(4, 3, 5, 5), targets), 0)
    with pytest.raises(DataError, match=r"got \(4, 5\) with torch.int64 \(4,\): leave them out"):
        BOTH((torch.rand(4, 5), LABELS[:4]), 0)
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mixup must"):
            Mixing(3, mixup=alpha)


def test_class_weights_are_the_inverse_frequency():
    weights = class_weights(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3]), 4)
    assert weights.tolist() == [0.5, 1.5, 0.0, 3.0]


def test_balanced_batches_have_every_class_as_often():
    loader = in_memory(weights=class_weights(LABELS, 3)[LABELS], batch_size=24)
    found = torch.cat([labels for epoch in range(60) for _, labels in loader.iterate(epoch)])
    shares = torch.bincount(found).double() / len(found)
    assert (shares - 1 / 3).abs().max() < 0.05  # 1440 draws: three deviations are 0.037


class Noise(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1), index


def test_a_sample_that_is_drawn_twice_is_augmented_twice():
    loader = DatasetLoader(Noise(), batch_size=3, seed=0, shuffle=True, weights=torch.tensor([1.0, 0.0, 0.0]))
    ((values, labels),) = loader.iterate(0)
    assert labels.tolist() == [0, 0, 0]
    assert len(set(values.flatten().tolist())) == 3


def test_few_data_make_the_batch_smaller_with_a_word():
    data = load_data("digits").subset(torch.arange(40))
    with pytest.warns(UserWarning, match="batch_size 128 is larger than .*: mini-batches have all 40 samples"):
        loader = train_loader(data, batch_size=128, seed=0)
    assert [len(labels) for _, labels in loader] == [40]


OF_CLASSES = {"adarand", "randreg", "bi-tuning", "co-tuning"}


# DELTA is for convolutions, and takes the loss like the other regularisers.
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"delta"}))
def test_class_weights_reach_every_method_and_soft_targets_all_that_take_them(method):
    options = TrainOptions(method, mixup=0.2)
    options.regularizer.prior = "class"
    options.sam.rho = 0.1
    if method in OF_CLASSES:
        with pytest.raises(ValueError, match=rf"mixup makes probabilities of labels, and {method} reads the one class"):
            check_numbers(options)
        options.mixup = None
    check_numbers(options)
    weights, data = torch.tensor([0.5, 1.0, 2.0, 4.0]).double(), batches(4)
    network = mlp()
    source = torch.nn.Linear(6, 7).double()
    made = build_method(Context(network, None, options, 4, data, data, class_weights=weights, source_head=source))
    hard, soft = data[0][1], torch.eye(4).double()[data[0][1]] * 0.9 + 0.025
    for targets in [hard] if method in OF_CLASSES else [hard, soft]:
        assert torch.isfinite(made(data[0][0], targets, *data[1]).loss)
    inner = getattr(made, "method", made)
    logits = network(data[0][0])
    by_hand = torch.nn.functional.cross_entropy(logits, hard, weights)
    assert torch.allclose(inner.loss(logits, hard), by_hand)


def test_both_corrections_at_once_are_refused():
    with pytest.raises(ValueError, match="would correct for the classes twice: give one"):
        check_numbers(TrainOptions("finetune", class_weights="balanced", sampler="balanced"))


ARGUMENTS = ["--model", "small-cnn", "--data", "digits", "--epochs", "2", "--train_size", "60", "--batch_size", "20"]


@pytest.mark.parametrize(
    "options",
    [
        ["--class_weights", "balanced", "--mixup", "0.3"],
        ["--sampler", "balanced", "--cutmix", "1", "--augment", "randaugment"],
    ],
)
def test_on_the_command_line_and_resumed_bitwise(tmp_path, options, capsys, monkeypatch):
    arguments = ["train", *ARGUMENTS, *options, "--checkpoint_every", "1", "--device", "cpu", "--precision", "fp32"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    assert ("class weights: 0 " in said) == ("--class_weights" in options)
    assert resumes_bitwise(arguments, tmp_path, monkeypatch, step=5)
