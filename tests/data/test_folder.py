from __future__ import annotations

import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from pof._support.preprocessing import Preprocessing
from pof._support.random import isolated
from pof.app.cli import main
from pof.app.options import DataOptions
from pof.app.report.samples import Bounds, samples_of
from pof.app.splits import load, split
from pof.data import DataError, eval_loader, load_data, summary, train_loader, walk
from pof.data.images import Prepare
from pof.data.overview import unreadable
from pof.data.parts import SPLITS

DTD = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "dtd10"
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write_images(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            # Blue and green in halves, so that a mirrored image is another.
            image = Image.new("RGB", (24 + i, 18), COLOURS.get(name, (9, 9, 9)))
            image.paste((0, 0, 0), (0, 0, 12, 18))
            image.save(root / name / f"{i}.png")
    return root


def test_folder_without_test_images_is_split(tmp_path):
    data = load_data(str(write_images(tmp_path / "set", {"red": 10, "green": 20, "blue": 30})))
    assert data.classes == ("blue", "green", "red")
    assert torch.bincount(data.test_labels).tolist() == [6, 4, 2]
    assert torch.bincount(data.train_labels).tolist() == [24, 16, 8]
    files = {path for part in (data.train_set, data.test_set) for path, _ in part.samples}
    assert len(files) == 60
    again = load_data("set", data_root=tmp_path)
    assert again.test_set.samples == data.test_set.samples
    assert load_data("folder", data_root=tmp_path / "set").name == "set"


TRAIN = ("train", "Train", "TRAINING", "training_set", "train-data", "train2017")
VALIDATION = ("val", "Valid", "validation", "dev", "VAL", "validation_set", "val2017")
TEST = ("test", "Test", "Testing", "test_set", "TestImages")


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("test", TEST)
def test_folders_for_training_and_testing(tmp_path, train, test):
    write_images(tmp_path / train, {"red": 3, "green": 3, "blue": 3})
    write_images(tmp_path / test, {"red": 2, "blue": 1})
    data = load_data("folder", data_root=tmp_path)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    # The labels are those of the training folder: there is no green test image.
    assert data.test_labels.tolist() == [0, 2, 2]
    assert data.val_labels is None
    with pytest.raises(DataError, match="has no validation data of its own: hold some out"):
        eval_loader(data, "validation", batch_size=2)


@pytest.mark.parametrize("name", VALIDATION)
def test_validation_data_of_its_own(tmp_path, name):
    for part, counts in (("train", {"red": 3, "green": 3}), (name, {"green": 2}), ("test", {"red": 1, "green": 1})):
        write_images(tmp_path / part, counts)
    data = load_data("folder", data_root=tmp_path, image_size=8)
    assert [len(labels) for labels in (data.train_labels, data.val_labels, data.test_labels)] == [6, 2, 2]
    (_, labels), *_ = eval_loader(data, "validation", batch_size=9)
    assert labels.tolist() == [0, 0]
    assert all(f"/{name}/" in path for path, _ in data.val_set.samples)
    assert summary(data)["validation samples"] == "2"
    assert data.subset(torch.tensor([0, 5])).val_labels.tolist() == [0, 0]


def test_validation_data_are_never_the_test_set(tmp_path):
    write_images(tmp_path / "train", {"red": 5, "green": 5})
    write_images(tmp_path / "val", {"red": 2, "green": 2})
    with pytest.warns(
        UserWarning, match=r"no test data: a fifth of the training samples \(2, .*; val is for validation"
    ):
        data = load_data("folder", data_root=tmp_path)
    assert [len(labels) for labels in (data.train_labels, data.val_labels, data.test_labels)] == [8, 4, 2]
    assert all("/train/" in path for path, _ in data.test_set.samples)


def test_a_job_validates_on_the_data_for_it(tmp_path):
    for part, count in (("train", 10), ("valid", 3), ("test", 2)):
        write_images(tmp_path / part, {"red": count, "green": count})
    options = DataOptions(str(tmp_path), image_size=8)
    data = load(options)
    splits = split(data, options)
    assert splits.train.tolist() == list(range(20))
    (_, labels), *_ = eval_loader(data, splits.held_in, batch_size=9, indices=splits.validation)
    assert labels.tolist() == [0] * 3 + [1] * 3
    assert split(data, replace(options, validation=0)).validation is None
    assert samples_of(data, options, Bounds(1, 4, torch.device("cpu"))).validation.dataset.dataset is data.val_set


def test_the_page_says_what_is_known():
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    names = [name for known in SPLITS.values() for name in known]
    assert set(names) <= {
        re.sub(r"[-_ ]?(set|data|images)?\d*$", "", name.lower()) for name in (*TRAIN, *VALIDATION, *TEST)
    }
    for word in (*names, *(walk.IGNORED - {"System Volume Information"}), ".jpg", ".jfif"):
        assert f"`{word}`" in page
    assert all(name in page for name in ("PNG", "BMP", "GIF", "PPM", "TIFF", "WebP", "AVIF"))
    assert f"{walk.MAX_OTHERS:,}" in page
    assert f"{Image.MAX_IMAGE_PIXELS:,}" in page


LITTER = (".ipynb_checkpoints", "__MACOSX", ".hidden", "@eaDir")


@pytest.mark.parametrize("place", ["", "train", "test"])
def test_litter_is_no_class(tmp_path, place):
    roots = [tmp_path / part for part in ("train", "test")] if place else [tmp_path]
    for root in roots:
        write_images(root, {"red": 5, "green": 5})
    for name in LITTER:
        write_images(tmp_path / place, {name: 2})
    red = tmp_path / place / "red"
    (red / "._0.png").write_bytes(b"resource fork")
    (red / "Thumbs.db").write_bytes(b"thumbs")
    write_images(red, {".ipynb_checkpoints": 1})
    data = load_data("folder", data_root=tmp_path, image_size=8)
    assert data.classes == ("green", "red")
    assert len(data.train_labels) + len(data.test_labels) == 10 * len(roots)


def test_classes_with_the_names_of_splits(tmp_path):
    write_images(tmp_path, {"train": 5, "car": 5, "test": 5})
    assert load_data("folder", data_root=tmp_path).classes == ("car", "test", "train")


def test_what_has_no_use_is_said(tmp_path):
    write_images(tmp_path / "train", {"red": 5, "green": 5})
    write_images(tmp_path, {"test": 3})
    write_images(tmp_path / "extra", {"red": 1})
    (tmp_path / "annotations").mkdir()
    with pytest.warns(UserWarning, match=r"not used: extra, test \(no class folders, or no usual name of a split\)$"):
        assert len(load_data("folder", data_root=tmp_path).test_labels) == 2


def test_files_that_are_not_read_are_counted_once(tmp_path):
    write_images(tmp_path, {"red": 5, "green": 5})
    for name in ("a.heic", "b.HEIC", "c.xml", "d"):
        (tmp_path / "red" / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match=": files left out, .*: 2 .heic, 1 .xml, 1 without an ending$") as said:
        assert len(load_data("folder", data_root=tmp_path).train_labels) == 8
    assert len(said) == 1


def test_images_beside_the_class_folders_are_named(tmp_path):
    write_images(tmp_path / "train", {"red": 5, "green": 5})
    (tmp_path / "train" / "red" / "0.png").rename(tmp_path / "train" / "stray.png")
    stray = re.escape(os.path.join("train", "stray.png"))
    with pytest.warns(UserWarning, match=f": images left out, as they lie in no class folder: {stray}$"):
        assert len(load_data("folder", data_root=tmp_path).train_labels) == 7


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    write_images(tmp_path / "elsewhere", {"red": 5})
    write_images(tmp_path / "set", {"green": 5})
    (tmp_path / "set" / "red").symlink_to(tmp_path / "elsewhere" / "red")
    (tmp_path / "set" / "green" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "green" / "self").symlink_to("self")
    with pytest.warns(UserWarning, match="1 without an ending"):
        data = load_data(str(tmp_path / "set"))
    assert len(data.train_labels) + len(data.test_labels) == 10


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_listed(tmp_path):
    write_images(tmp_path, {"red": 5, "green": 5})
    (tmp_path / "red").chmod(0)
    with pytest.raises(DataError, match=r"red: cannot be listed \(Permission denied\)"):
        load_data("folder", data_root=tmp_path)


@pytest.mark.parametrize("name", ["fifo", "looped", "device", "absent", "x" * 5000, "a\0b"])
def test_what_is_no_folder(tmp_path, name):
    for make in (fifo, looped, device):
        make(tmp_path / make.__name__)
    with pytest.raises(DataError, match=r"unknown data set .*, and no such folder"):
        load_data(name, data_root=tmp_path)
    for kind in ("folder", "cifar10"):
        with pytest.raises(DataError, match="no such folder"):
            load_data(kind, data_root=tmp_path / name)


def fifo(file: Path) -> None:
    os.mkfifo(file)


def looped(file: Path) -> None:
    file.symlink_to(file.name)


def broken(file: Path) -> None:
    file.symlink_to("absent.png")


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, looped, broken, device], ids=lambda make: make.__name__)
def test_only_regular_files_are_images(tmp_path, make):
    write_images(tmp_path, {"red": 5, "green": 5})
    data = load_data("folder", data_root=tmp_path, image_size=8)
    file = Path(data.test_set.samples[0][0])
    file.unlink()
    make(file)
    with pytest.raises(
        DataError, match=r"^\S+/\d\.png: no regular file, but a FIFO, a device or a broken link; remove it$"
    ):
        load_data("folder", data_root=tmp_path)
    # It took the place of an image after the folder was listed.
    with pytest.raises(DataError, match=r"^\S+/\d\.png: (no regular file|not a readable image \((No such|Too many))"):
        data.test_set[0]


def test_a_walk_is_bounded(tmp_path, monkeypatch):
    write_images(tmp_path, {"red": 2, "green": 2})
    for i in range(30):
        (tmp_path / "red" / f"{i}.txt").touch()
    monkeypatch.setattr(walk, "MAX_OTHERS", 20)
    monkeypatch.setattr(walk, "OTHERS_PER_IMAGE", 0)
    with pytest.raises(DataError, match=r"more than 20 files and folders that are no images, and \d images: give the"):
        load_data("folder", data_root=tmp_path)


def test_the_root_of_the_file_system(tmp_path):
    with pytest.raises(DataError, match=r"^/: the root of the file system; give the folder that holds the class"):
        load_data("/")
    (tmp_path / "up").symlink_to("/")
    with pytest.raises(DataError, match="up: the root of the file system"):
        load_data("up", data_root=tmp_path)


def test_training_folder_alone_is_split(tmp_path):
    write_images(tmp_path / "train", {"red": 5, "green": 5})
    data = load_data("folder", data_root=tmp_path)
    assert data.classes == ("green", "red")
    assert (len(data.train_labels), len(data.test_labels)) == (8, 2)


def test_images_are_resized_cropped_and_normalised(tmp_path):
    write_images(tmp_path, {"red": 5, "green": 5})
    data = load_data("folder", data_root=tmp_path, image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.image_shape == (3, 16, 16)
    (images, labels), *_ = eval_loader(data, "train", batch_size=4)
    assert images.shape == (4, 3, 16, 16)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 0, 0, 0]
    # The right border is green; the left is black.
    assert images[:, 1, :, -1].min() > 0.9
    assert images[:, 1, :, 0].max() < 0.1
    default = load_data("folder", data_root=tmp_path, image_size=16)
    (shifted, _), *_ = eval_loader(default, "train", batch_size=4)
    torch.testing.assert_close(shifted[:, 1], (images[:, 1] - 0.456) / 0.224)


def test_what_is_given_takes_the_place_of_the_networks_own(tmp_path):
    write_images(tmp_path, {"red": 5, "green": 5})
    own = Preprocessing(12, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, squash=True)
    data = load_data("folder", data_root=tmp_path, preprocessing=own)
    assert data.test_set.transform == Prepare(own, augment=False)
    assert (data.image_shape, data.mean) == ((3, 12, 12), own.mean)
    given = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "box", "crop": 1.0}
    changed = load_data("folder", data_root=tmp_path, preprocessing=own, image_size=10, **given)
    wanted = Preprocessing(10, (0.1,) * 3, (0.2,) * 3, "box", 1.0, squash=True)
    assert changed.train_set.transform == Prepare(wanted, augment=True)


def test_training_images_are_augmented_alike_for_any_workers(tmp_path):
    write_images(tmp_path, {"red": 6, "green": 6})
    data = load_data("folder", data_root=tmp_path, image_size=8)
    loaders = [train_loader(data, batch_size=3, seed=0, workers=w) for w in (0, 2)]
    for (x, y), (u, v) in zip(*(loader.iterate(1) for loader in loaders), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    first, second = (torch.cat([x for x, _ in loaders[0].iterate(e)]) for e in (0, 1))
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    plain = load_data("folder", data_root=tmp_path, image_size=8, augment="none")
    first, second = (torch.cat([x for x, _ in train_loader(plain, batch_size=3, seed=0).iterate(e)]) for e in (0, 1))
    assert torch.equal(first.flatten(1).sum(1).sort().values, second.flatten(1).sum(1).sort().values)


def test_the_data_can_be_sent_to_workers_that_are_not_forked(tmp_path):
    data = load_data("folder", data_root=write_images(tmp_path, {"red": 5, "green": 5}), image_size=8)
    for part in (data.train_set, data.test_set):
        sent = pickle.loads(pickle.dumps(part))
        with isolated(0):
            image, label = sent[0]
        with isolated(0):
            assert torch.equal(image, part[0][0])
        assert label == part[0][1]


def test_subset_and_validation_part(tmp_path):
    data = load_data("folder", data_root=write_images(tmp_path, {"red": 10, "green": 10}), image_size=8)
    chosen = torch.tensor([0, 1, 10])
    part = data.subset(chosen)
    assert part.train_labels.tolist() == [0, 0, 1]
    labels = torch.cat([y for _, y in train_loader(data, batch_size=2, seed=0, indices=chosen)])
    assert sorted(labels.tolist()) == [0, 0, 1]
    (images, labels), *_ = eval_loader(data, "train", batch_size=9, indices=chosen)
    assert labels.tolist() == [0, 0, 1]
    assert torch.equal(images[2], data.plain_train_set[10][0])
    (same, labels), *_ = eval_loader(part, "train", batch_size=9)
    assert torch.equal(same, images)
    assert labels.tolist() == [0, 0, 1]


def empty(root: Path) -> None:
    root.mkdir(exist_ok=True)


def one_class(root: Path) -> None:
    write_images(root, {"red": 5})


def one_training_class(root: Path) -> None:
    write_images(root / "train", {"red": 5})
    write_images(root / "test", {"red": 5})


def empty_class(root: Path) -> None:
    write_images(root, {"red": 5, "green": 5, "blue": 0})


def images_without_classes(root: Path) -> None:
    write_images(root, {"red": 2})
    (root / "red" / "0.png").rename(root / "0.png")
    (root / "red" / "1.png").unlink()
    (root / "red").rmdir()


def wrapped(root: Path) -> None:
    write_images(root / "archive" / "train", {"red": 5, "green": 5})


def flat_splits(root: Path) -> None:
    write_images(root, {"train": 5, "test": 5})


def no_training(root: Path) -> None:
    write_images(root / "val", {"red": 5, "green": 5})
    write_images(root, {"red": 5, "green": 5})


def twice(root: Path) -> None:
    for name in ("train", "val", "Validation"):
        write_images(root / name, {"red": 5, "green": 5})


def no_test_image(root: Path) -> None:
    write_images(root / "train", {"red": 5, "green": 5})
    write_images(root / "test", {"red": 0})


def unknown_test_class(root: Path) -> None:
    write_images(root / "train", {"red": 5, "green": 5})
    write_images(root / "test", {"blue": 5})


BAD = {
    empty: "no subfolders in it; an image folder has one subfolder of images per class",
    one_class: r"only one class \(red\); a classifier needs at least two subfolders",
    one_training_class: r"train: only one class \(red\)",
    empty_class: "no image in the folders blue; add images to these folders, or remove them",
    wrapped: r"only one class \(archive\).*; if \S+archive is the data set, give that$",
    flat_splits: "test and train have no class folders in them, one per class",
    no_training: "val has class folders, but there is no folder for training beside it: call one train or training",
    twice: "Validation and val are both for validation: keep one of them",
    no_test_image: "test: no image in it that can be read",
    images_without_classes: "no subfolders in it",
    unknown_test_class: "the class 'blue' has no training images; there are green, red",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_folders(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match=BAD[make]):
        load_data("folder", data_root=tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named(tmp_path, workers):
    write_images(tmp_path, {"red": 5, "green": 5})
    for file in (tmp_path / "red").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    data = load_data("folder", data_root=tmp_path, image_size=8)
    with pytest.raises(DataError, match=r"^\S*red/\d\.png: not a readable image .*replace or remove it$"):
        list(train_loader(data, batch_size=2, seed=0, workers=workers))


def test_missing_folder_and_options(tmp_path):
    with pytest.raises(DataError, match=r"no such folder: .*absent"):
        load_data("folder", data_root=tmp_path / "absent")
    with pytest.raises(DataError, match="'folder' needs data_root"):
        load_data("folder")
    with pytest.raises(DataError, match="augment=cutout does not apply to the data set 'folder'"):
        load_data("folder", data_root=tmp_path, augment="cutout")
    for size, said in ((0, "a whole number >= 1"), (10**9, "at most 8192")):
        with pytest.raises(DataError, match=f"image_size must be {said}; got {size}"):
            load_data("folder", data_root=tmp_path, image_size=size)
    with pytest.raises(DataError, match=r"crop is a share of the image in \(0, 1\]; got 2"):
        load_data("folder", data_root=tmp_path, crop=2)


@pytest.mark.skipif(not DTD.exists(), reason="../shared/data/dtd10 is not there")
def test_photographs():
    data = load_data(str(DTD), image_size=64)
    assert data.num_classes == 10
    assert torch.bincount(data.train_labels).tolist() == [96] * 10
    assert torch.bincount(data.test_labels).tolist() == [24] * 10
    assert summary(data)["classes"].startswith("10 (banded, blotchy, ")
    images, labels = next(iter(train_loader(data, batch_size=16, seed=0, workers=2)))
    assert images.shape == (16, 3, 64, 64)
    assert labels.shape == (16,)
    # Normalised photographs: neither constant nor far from deviation 1.
    assert 0.5 < float(images.std()) < 2


def test_the_command_shows_parts_classes_and_what_is_to_be_said(tmp_path, capsys):
    for part, counts in (("train", {"red": 5, "green": 3}), ("Test", {"red": 1, "green": 2}), ("dev", {"red": 4})):
        write_images(tmp_path / part, counts)
    write_images(tmp_path, {"unlabeled": 2})
    assert main(["data", "--data", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    assert ["green", "3", "0", "2"] in lines
    assert ["red", "5", "4", "1"] in lines
    assert ["validation", "samples", "4"] in lines
    assert any("used: unlabeled (no class folders" in " ".join(line) for line in lines)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_sample_is_read_if_that_is_asked_for(tmp_path, capsys, workers):
    for part in ("train", "val", "test"):
        write_images(tmp_path / part, {"red": 3, "green": 2})
    command = ["data", "--data", str(tmp_path), "--image_size", "8", "--workers", workers]
    assert main([*command, "--read_all"]) == 0
    assert "every sample was read" in capsys.readouterr().out
    (tmp_path / "val" / "red" / "1.png").write_bytes((tmp_path / "val" / "red" / "1.png").read_bytes()[:60])
    (tmp_path / "test" / "green" / "0.png").write_bytes(b"")
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--read_all"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"validation sample 3: .*val.red.1\.png", said)
    assert re.search(r"test sample 0: .*test.green.0\.png", said)
    assert "2 samples cannot be used" in said
    assert unreadable(load_data("digits")) == []


def test_what_a_data_set_of_ones_own_raises_is_named(tmp_path):
    class Own(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 1:
                raise KeyError("gone")
            return torch.full((2,), float("nan") if index == 2 else 1.0), 0

    good = TensorDataset(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    folder = load_data(str(write_images(tmp_path, {"red": 5, "green": 5})))
    data = replace(folder, plain_train_set=good, test_set=Own(), image_shape=(2,))
    first, second = unreadable(data)
    assert first == "test sample 1: KeyError: 'gone'"
    assert second.startswith("test sample 2: inputs contain nan")
