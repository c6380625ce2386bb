"""CSV and Parquet indexes, against readings by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pof.data import DataError, eval_loader, load_data, summary
from tests.data.test_folder import write_images

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
COLOURS = ("green", "red")
"""In this order in the rows of the test set, in the other elsewhere."""


def write(root: Path, text: str, name: str = "index.csv") -> str:
    (root / name).write_text(text, encoding="utf-8")
    return str(root / name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", {"red": 5, "green": 5}).parent


def rows(*, split: bool = False) -> list[tuple[str, ...]]:
    parts = ("train", "train", "Test", "val", "train")
    found = [(f"images/{c}/{i}.png", c, parts[i]) for i in range(5) for c in COLOURS[:: 1 if i == 2 else -1]]
    return found if split else [row[:2] for row in found]


def table(header: str, lines: list[tuple[str, ...]], separator: str = ",") -> str:
    return "\n".join([header.replace(",", separator), *(separator.join(line) for line in lines), ""])


@pytest.mark.parametrize(
    ("header", "separator", "name"),
    [("path,label,split", ",", "a.csv"), ("File Name,Class,subset", ";", "a.csv"), ("img,target,part", "\t", "a.tsv")],
)
def test_pixels_labels_and_parts_are_those_of_a_reading_by_hand(images, header, separator, name):
    index = write(images, "\ufeff" + table(header, rows(split=True), separator), name)
    data = load_data(index, image_size=7, mean=MEAN, std=STD)
    assert data.classes == ("green", "red")
    assert [len(labels) for labels in (data.train_labels, data.val_labels, data.test_labels)] == [6, 2, 2]
    (pixels, labels), *_ = eval_loader(data, "test", batch_size=9)
    assert labels.tolist() == [0, 1]
    for found, colour in zip(pixels, COLOURS, strict=True):
        image = Image.open(images / "images" / colour / "2.png").resize((11, 8), Image.Resampling.BILINEAR)
        by_hand = torch.tensor([[image.getpixel((x, y)) for x in range(2, 9)] for y in range(7)]).permute(2, 0, 1)
        assert (by_hand / 255 - 0.5).div(0.25).sub(found).abs().max() < 1e-6  # float32 in another order


def test_parquet_is_the_same_as_csv(images):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'pof[data]'")
    from pyarrow import parquet

    path, label, split = zip(*rows(split=True), strict=True)
    parquet.write_table(pyarrow.table({"path": path, "label": label, "split": split}), images / "a.parquet")
    by_csv = load_data(write(images, table("path,label,split", rows(split=True))))
    found = load_data("a.parquet", data_root=images)
    assert found.train_set.samples == by_csv.train_set.samples
    assert found.test_set.samples == by_csv.test_set.samples
    assert found.classes == by_csv.classes
    parquet.write_table(pyarrow.table({"image": [{"bytes": b""}], "label": [0]}), images / "c.parquet")
    with pytest.raises(DataError, match="image holds no paths, but images: give the folder of the shards, hf:FOLDER"):
        load_data("c.parquet", data_root=images)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_data(write(images, "PAR1", "b.parquet"))


def test_without_parts_a_fifth_is_the_test_set_and_numbers_are_sorted_by_value(images):
    lines = [(path, "10" if label == "red" else "9") for path, label in rows()]
    data = load_data(write(images, table("path,label", lines)))
    assert data.classes == ("9", "10")
    assert [len(data.train_labels), len(data.test_labels)] == [8, 2]
    assert data.val_labels is None and data.test_taken
    assert summary(data)["test samples"] == "2 (a fifth of the training samples: there are no test data)"
    lines = [(path, "10.0" if label == "red" else "9.0") for path, label in rows()]  # as pandas writes them beside gaps
    assert load_data(write(images, table("path,label", lines))).classes == ("9.0", "10.0")


def test_what_is_left_out_is_said(images):
    lines = [(*row, "x") for row in rows()]
    with pytest.warns(UserWarning) as said:
        data = load_data(write(images, table("path,label,width", [*lines, lines[0], lines[0]])))
    assert [str(warning.message).split(": ", 1)[1] for warning in said] == [
        "columns not used: 'width'",
        "2 rows left out, which were there already",
    ]
    assert len(data.train_labels) + len(data.test_labels) == 10


ALL = table("path,label", rows())
REFUSED = {
    "empty": ("", "empty; its first line names the columns"),
    "no rows": ("path,label\n\n", "no rows"),
    "no label": ("path,label\nimages/red/0.png,\n", "row 2 has no label"),
    "too few values": ("path,label\nimages/red/0.png\n", "row 2 has 1 values, too few"),
    "no column of labels": ("path,breed\n", r"no column for the label; the columns are path, breed: call one label or"),
    "two of paths": ("path,file,label\n", "the columns 'path' and 'file' are both the path"),
    "absent": (ALL + "images/blue/0.png,red\n", r"1 of 11 images are not there.*blue/0\.png'; paths are relative"),
    "outside and absent": (ALL + "../../nothing.png,red\n", "1 of 11 images are not there"),
    "a folder": (ALL + "images,red\n", "1 of 11 images are not there, or no regular files"),
    "NUL": (ALL + "im\0age.png,red\n", "1 of 11 images are not there|not a CSV"),
    "two labels of an image": (ALL + "images/red/0.png,green\n", r"rows 2 and 12 are of the same image.*keep one"),
    "in two parts": (
        "path,label,split\nimages/red/0.png,red,train\nimages/green/../red/0.png,red,test\n",
        "rows 2 and 3 are of the same image",
    ),
    "an unknown part": ("path,label,split\nimages/red/0.png,red,holdout\n", "row 2 is of the part 'holdout'"),
    "no training part": ("path,label,split\nimages/red/0.png,red,test\n", r"class 'red' of row 2 has no training"),
    "a class for testing only": (
        "path,label,split\nimages/red/0.png,red,train\nimages/green/1.png,green,test\n",
        "the class 'green' of row 3 has no training images; there are red",
    ),
    "one class": ("path,label\n" + "".join(f"images/red/{i}.png,red\n" for i in range(5)), "of one class"),
    "a quote": ('path,label\n"images/red/0.png,red\n', "not a CSV file in UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(images, case):
    text, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence):
        load_data(write(images, text))


def test_other_encodings_and_fifos(images):
    (images / "latin.csv").write_bytes("path,label\nf\xfc.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        load_data(str(images / "latin.csv"))
    os.mkfifo(images / "pipe.csv")
    with pytest.raises(DataError, match="no regular file"):
        load_data(str(images / "pipe.csv"))
    with pytest.raises(DataError, match=r"no such folder or file: .*absent\.csv"):
        load_data(str(images / "absent.csv"))


def test_a_damaged_image_is_named_when_it_is_read(images):
    (images / "images" / "red" / "0.png").write_bytes(b"no image")
    data = load_data(write(images, ALL), image_size=8)
    with pytest.raises(DataError, match=r"red/0\.png: not a readable image"):
        list(eval_loader(data, "train", batch_size=4))
