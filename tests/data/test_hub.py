"""Folders of Hugging Face's ``datasets``, and WebDataset shards, against readings by hand."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from pof.data import Data, DataError, eval_loader, load_data, train_loader
from tests.data.test_folder import write_images

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RNG = numpy.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 8, 8, 3), dtype=numpy.uint8)
ROWS = {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}
NAMES = ["zebra", "ant"]


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(stream, "PNG")
    return stream.getvalue()


def expected(row: int) -> Tensor:
    """At size 7 an image of 8 pixels is cropped only."""
    crop = PIXELS[row][0:7, 0:7]
    return (torch.from_numpy(crop).permute(2, 0, 1) / 255 - 0.5) / 0.25


def check(data: Data, classes: tuple[str, ...], labels: list[int]) -> None:
    assert data.classes == classes
    for split, rows in ROWS.items():
        ((pixels, found),) = eval_loader(data, split, batch_size=12)
        assert torch.allclose(pixels, torch.stack([expected(row) for row in rows]), atol=1e-6)
        assert found.tolist() == [labels[row] for row in rows]
    assert next(iter(train_loader(data, batch_size=3, seed=0, workers=1)))[0].shape == (3, 3, 7, 7)


def options(**others: Any) -> Any:
    return {"image_size": 7, "mean": MEAN, "std": STD, **others}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("datasets", reason="folders of datasets need it: pip install 'pof[data]'")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found.disable_progress_bars()
    return found


def table(datasets: Any, rows: range, **columns: Any) -> Any:
    content = {"image": [{"bytes": png(row), "path": None} for row in rows], "label": [row % 2 for row in rows]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict(content | columns, features=datasets.Features(features))


def test_saved_to_disk(datasets, tmp_path):
    datasets.DatasetDict({part: table(datasets, rows) for part, rows in ROWS.items()}).save_to_disk(tmp_path / "set")
    for name in (str(tmp_path / "set"), f"hf:{tmp_path / 'set'}"):
        check(load_data(name, **options()), ("zebra", "ant"), [row % 2 for row in range(12)])


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_shards(datasets, tmp_path, inside):
    (tmp_path / "set" / inside).mkdir(parents=True)
    for part, rows in ROWS.items():
        whole = table(datasets, rows)
        for number in range(2):
            whole.shard(2, number).to_parquet(tmp_path / "set" / inside / f"{part}-0000{number}-of-00002.parquet")
    check(load_data(f"hf:{tmp_path / 'set'}", **options()), ("zebra", "ant"), [row % 2 for row in range(12)])
    os.remove(tmp_path / "set" / inside / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="1 of 2 shards of train are there; copy the others"):
        load_data(str(tmp_path / "set"))


def test_one_table_without_names_of_classes(datasets, tmp_path):
    content = {"img": [Image.fromarray(PIXELS[row]) for row in range(12)], "target": [row % 2 + 9 for row in range(12)]}
    datasets.Dataset.from_dict(content).cast_column("img", datasets.Image()).save_to_disk(tmp_path / "set")
    data = load_data(str(tmp_path / "set"), **options())
    assert data.classes == ("9", "10")
    assert [len(data.train_labels), len(data.test_labels)] == [10, 2]


def test_what_is_said_and_refused(datasets, tmp_path):
    hidden = table(datasets, ROWS["test"], label=[-1, -1])
    whole = {"train": table(datasets, ROWS["train"]), "test": hidden, "unsupervised": table(datasets, ROWS["test"])}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "a")
    with pytest.warns(UserWarning) as said:
        data = load_data(str(tmp_path / "a"))
    assert {str(w.message).split(": ", 1)[1] for w in said} == {
        "test has no labels (-1): not used",
        "not used: unsupervised (no usual name of a part)",
    }
    assert [len(data.train_labels), len(data.test_labels)] == [6, 2]
    text = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    for name, made, sentence in (
        ("b", text, r"no column of images among text \(string\), label \(int64\); text is read by the tokenizer"),
        ("c", table(datasets, range(8), label=[0, 1] * 3 + [0, -1]), "row 7 has the label -1, which is no class"),
        ("d", table(datasets, range(8)).rename_column("label", "what").cast_column("what", datasets.Value("int64")),
         r"which column has the labels\? There are image .*: keep one ClassLabel, or call it label"),
        ("e", table(datasets, range(8)).add_column("twin", [None] * 8).cast_column("twin", datasets.Image()),
         "image and twin are both images"),
        ("f", datasets.DatasetDict({"test": table(datasets, range(8))}), "no part for training; there are test"),
    ):  # fmt: skip
        made.save_to_disk(tmp_path / name)
        with pytest.raises(DataError, match=sentence):
            load_data(str(tmp_path / name))
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "state.json").write_text("{")
    with pytest.raises(DataError, match="not a readable folder of datasets"):
        load_data(str(tmp_path / "g"))
    with pytest.raises(DataError, match=r"hf:nothing: nothing is no folder that datasets wrote: give one of save_to"):
        load_data("hf:nothing")


def test_a_row_without_an_image_is_named(datasets, tmp_path):
    content = [{"bytes": png(row), "path": None} for row in range(7)] + [None]
    table(datasets, range(8), image=content).save_to_disk(tmp_path / "set")
    data = load_data(str(tmp_path / "set"), **options())
    with pytest.raises(DataError, match=r"\(train\), row 7: no image in this row; replace or remove it"):
        [list(eval_loader(data, split, batch_size=4)) for split in ("train", "test")]


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members(rows: range | list[int], label: str = "{}") -> dict[str, bytes]:
    found = {}
    for row in rows:
        found |= {f"./{row:04d}.png": png(row), f"./{row:04d}.cls": label.format(row % 2 + 9).encode()}
    return found


def test_shards_of_a_folder(tmp_path):
    shard(tmp_path / "set" / "birds-train-000000.tar", members(range(5)))
    shard(tmp_path / "set" / "birds-train-000001.tar", members(range(5, 8)))
    shard(tmp_path / "set" / "birds-val-000000.tar", members(ROWS["validation"]))
    shard(tmp_path / "set" / "birds-test-000000.tar", members(ROWS["test"]))
    data = load_data(str(tmp_path / "set"), **options())
    check(data, ("9", "10"), [row % 2 for row in range(12)])
    loader = train_loader(data, batch_size=3, seed=1)
    assert torch.equal(next(loader.iterate(1, 2))[0], list(loader.iterate(1))[2][0])


def test_shards_that_the_library_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="compares with webdataset: pip install webdataset")
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"shards-00{number}.tar")) as writer:
            for row in range(6 * number, 6 * number + 6):
                writer.write({"__key__": f"{row:04d}", "png": Image.fromarray(PIXELS[row]), "cls": row % 2, "json": {}})
    with pytest.warns(UserWarning, match=r"members left out, as neither images nor labels \(.cls\): 12 .json"):
        data = load_data("shards-{000..001}.tar", data_root=tmp_path, **options())
    assert data.classes == ("0", "1")
    both = [next(iter(eval_loader(data, split, batch_size=12))) for split in ("train", "test")]
    pixels, labels = (torch.cat(parts) for parts in zip(*both, strict=True))
    rows = [next(row for row in range(12) if torch.allclose(image, expected(row), atol=1e-6)) for image in pixels]
    assert sorted(rows) == list(range(12))
    assert [row % 2 for row in rows] == labels.tolist()


SHARDS = {
    "no label": ({"0.png": b"", "1.png": b""}, "the sample /0 has no label"),
    "no image": ({"0.cls": b"1"}, "the sample /0 has no image; its members must stand side by side"),
    "two images": ({"0.png": b"", "0.jpg": b"", "0.cls": b"0"}, "the sample /0 has two images, 0.png and 0.jpg"),
    "nothing": ({}, "no samples for train in its shards"),
    "a label that is no text": ({"0.png": b"", "0.cls": b"\xff"}, "not a readable .tar file"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_refused_in_one_sentence(tmp_path, case):
    content, sentence = SHARDS[case]
    with pytest.raises(DataError, match=sentence):
        load_data(str(shard(tmp_path / "a.tar", content)))


def test_damaged_and_absent_shards(tmp_path):
    whole = shard(tmp_path / "a-0.tar", members(range(4))).read_bytes()
    with pytest.raises(DataError, match=r"1 of 2 shards are not there, or no regular files: .*a-1\.tar"):
        load_data("a-{0..1}.tar", data_root=tmp_path)
    with pytest.raises(DataError, match="stands for no shard, or for more than 100,000"):
        load_data("a-{0..999999999}.tar", data_root=tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no archive")
    (tmp_path / "c.tar").write_bytes(whole[: 512 + 100])
    os.mkfifo(tmp_path / "d.tar")
    for name, sentence in (("b", "not a readable .tar"), ("c", "0000.png is cut off; copy"), ("d", "no regular file")):
        with pytest.raises(DataError, match=sentence):
            load_data(str(tmp_path / f"{name}.tar"))
    shard(tmp_path / "e" / "test-0.tar", members(range(4)))
    with pytest.raises(DataError, match="no shard is for training"):
        load_data(str(tmp_path / "e"))
    shard(tmp_path / "e" / "train-0.tar", members(range(4), "x"))
    with pytest.raises(
        DataError, match=r"test-0\.tar: \./0000\.png: the class '9' has no training images; there are x"
    ):
        load_data(str(tmp_path / "e"))


@pytest.mark.parametrize("damage", ["header", "cut in a header", "cut behind a sample"])
def test_a_damaged_header_does_not_pass_for_the_end_of_a_shard(tmp_path, damage):
    path = shard(tmp_path / "a.tar", members(range(4)))
    with tarfile.open(path) as archive:
        third = archive.getmember("./0002.png").offset
    content = path.read_bytes()
    path.write_bytes(
        {
            "header": content[:third] + b"x" * 20 + content[third + 20 :],
            "cut in a header": content[: third + 300],
            "cut behind a sample": content[:third],
        }[damage]
    )
    with pytest.raises(DataError, match=rf"a\.tar: damaged or cut off behind {third:,} bytes; copy the shard"):
        load_data(str(path))


def test_archives_and_tables_beside_class_folders_are_no_data(tmp_path):
    write_images(tmp_path, {"red": 5, "green": 5})
    shard(tmp_path / "images.tar", members(range(4)))
    (tmp_path / "index.parquet").write_bytes(b"")
    numpy.save(tmp_path / "x.npy", PIXELS)
    assert load_data(str(tmp_path)).classes == ("green", "red")
