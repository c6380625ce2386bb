"""Predictions of image files agree with ``evaluate`` on the same files; tables are safe to open and lose nothing."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pof._support.preprocessing import Preprocessing
from pof.app.predict import check_table, image_files, predict, temperature_on, write_table
from pof.app.run_folder import RunError
from pof.data import eval_loader, load_data
from pof.data.checks import DataError
from pof.models import build_model
from pof.models.card import NetworkCard
from pof.training.evaluation import evaluate, judged

CLASSES = ("blue", "green", "red")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.2)
CARD = NetworkCard("small-cnn", CLASSES, (3, 16, 16), preprocessing=Preprocessing(16, MEAN, STD))


def picture(path: Path, seed: int, colour: int = 0) -> Path:
    pixels = torch.randint(0, 200, (20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    pixels[:, :, 2 - colour] += 40
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 2), ("test", 7)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                picture(root / split / name / f"{i}.png", 10 * label + i, label)
    return root


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = build_model("small-cnn", num_classes=3)
    with torch.no_grad():
        made(torch.randn(16, 3, 16, 16))  # batch norms of their own
    return made


@pytest.mark.parametrize("batch_size", [4, 128])
def test_predictions_reproduce_the_error_of_evaluate(batch_size: int, folder: Path, network: nn.Module) -> None:
    loaded = load_data(str(folder), image_size=16, mean=MEAN, std=STD)
    loader = eval_loader(loaded, "test", batch_size=500)
    paths, note = image_files([str(folder / "test")])
    found = predict(network, CARD, paths, batch_size=batch_size, top=2)
    assert found.paths == tuple(paths) and note == "" and found.unreadable == ()
    wrong = [CLASSES[label] != Path(path).parent.name for path, label in zip(paths, found.labels[:, 0], strict=True)]
    assert sum(wrong) / len(wrong) == evaluate(network, loader).error and 0 < sum(wrong) < len(wrong)
    confidence = judged(network, loader).confidence
    torch.testing.assert_close(found.probabilities[:, 0], confidence, atol=1e-6, rtol=0)  # float32 logits
    assert (found.probabilities[:, 0] >= found.probabilities[:, 1]).all() and found.labels.shape == (21, 2)


def test_a_temperature_divides_the_logits_and_the_fitted_one_is_best(folder: Path, network: nn.Module) -> None:
    loaded = load_data(str(folder), image_size=16, mean=MEAN, std=STD)
    loader = eval_loader(loaded, "test", batch_size=4)
    labelled = [(inputs, torch.arange(len(targets)) % 3) for inputs, targets in loader]
    logits = torch.cat([network.eval()(inputs) for inputs, _ in labelled]).detach().double()
    targets = torch.cat([targets for _, targets in labelled])
    network.train()
    paths, _ = image_files([str(folder / "test")])
    found = predict(network, CARD, paths, temperature=3.0, top=3)
    expected = torch.softmax(logits / 3.0, dim=1).sort(dim=1, descending=True).values
    torch.testing.assert_close(found.probabilities, expected, atol=1e-6, rtol=0)
    better = [(logits[:, :1] * 0 + 4 * torch.nn.functional.one_hot(targets, 3), targets)]
    better[0][1][:2] = (better[0][1][:2] + 1) % 3  # two mistakes, so that a finite temperature is best
    best = temperature_on(nn.Identity(), better)
    nll = [float(nn.functional.cross_entropy(better[0][0] / t, better[0][1])) for t in (0.98 * best, best, 1.02 * best)]
    assert nll[1] < min(nll[0], nll[2])
    with pytest.raises(ValueError, match="no temperature is best on these 3 validation samples"):
        temperature_on(nn.Identity(), [(2 * torch.eye(3), torch.arange(3))])


def test_an_unreadable_image_is_named_and_the_others_are_predicted(
    folder: Path, network: nn.Module, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    paths = [str(folder / "test/red/0.png"), str(broken), str(folder / "test/red/1.png"), str(tmp_path / "gone.png")]
    found = predict(network, CARD, paths, batch_size=2)
    alone = predict(network, CARD, [paths[0], paths[2]])
    assert found.paths == (paths[0], paths[2]) and torch.equal(found.labels, alone.labels)
    assert [text.split(": ")[0] for text in found.unreadable] == [str(broken), str(tmp_path / "gone.png")]
    nothing = predict(network, CARD, [str(broken)], top=2)
    assert nothing.paths == () and nothing.labels.shape == (0, 2) and list(nothing.rows()) == []


def test_images_are_found_in_folders_tables_and_by_name(folder: Path, tmp_path: Path) -> None:
    one = picture(tmp_path / "sub" / "one.png", 1)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "list.csv").write_text("label,path\nred,sub/one.png\n\nblue,sub/one.png\n")
    (tmp_path / "list.tsv").write_text("path\tx\nsub/one.png\t1\n")
    assert image_files([str(tmp_path)]) == (
        [str(one)],
        "files left out, as no images that are read here: 1 .csv, 1 .tsv, 1 .txt",
    )
    assert image_files([str(tmp_path / "list.csv"), str(one)]) == ([str(one)] * 3, "")
    assert image_files([str(tmp_path / "list.tsv")]) == ([str(one)], "")
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'pof[data]'")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"File": ["sub/one.png"], "box": [[1, 2]]}), tmp_path / "list.parquet")
    assert image_files([str(tmp_path / "list.parquet")]) == ([str(one)], "")
    (tmp_path / "list.csv").write_text("name,label\nsub/one.png,red\n")
    (tmp_path / "short.csv").write_text("label,path\nred,sub/one.png\nblue\n")
    for given, said in (
        ("short.csv", "row 3 has 1 values, too few"),
        ("list.csv", "no column for the path; the columns are name, label: call one path or file"),
        ("gone", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=said):
            image_files([str(tmp_path / given)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        image_files([str(tmp_path / "empty")])


class Grey(nn.Module):
    """Logits that are the mean of a grey image, its number of channels, and 0."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.mean(dim=(1, 2, 3))
        return torch.stack([mean, torch.full_like(mean, inputs.shape[1]), torch.zeros_like(mean)], dim=1)


def test_a_network_of_grey_images_gets_their_luminance(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "colour.png")
    card = NetworkCard("grey", CLASSES, (1, 8, 8), preprocessing=Preprocessing(8, (0.5,), (0.25,)))
    found = predict(Grey(), card, [tmp_path / "colour.png"], top=3)
    luminance = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255
    logits = torch.tensor([(luminance - 0.5) / 0.25, 1.0, 0.0], dtype=torch.float64)
    shares = torch.softmax(logits, 0)[found.labels[0]]
    torch.testing.assert_close(found.probabilities[0], shares, atol=1e-6, rtol=0)


class Odd(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=(2, 3)) * float("nan")


def test_what_cannot_be_predicted_is_refused(folder: Path, network: nn.Module) -> None:
    path = str(folder / "test/red/0.png")
    tensors = NetworkCard("mine", CLASSES, (3, 16, 16))
    five = NetworkCard("mine", CLASSES, (5, 16, 16), preprocessing=Preprocessing(16, (0.0,) * 5, (1.0,) * 5))
    more = NetworkCard("mine", (*CLASSES, "x"), (3, 16, 16), preprocessing=CARD.preprocessing)
    cases: list[tuple[nn.Module, NetworkCard, dict[str, Any], str]] = [
        (network, tensors, {}, "nothing says how an image file becomes one"),
        (network, five, {}, "image files have 1 or 3 channels, and mine takes 5"),
        (network, more, {}, r"gives outputs \(1, 3\) for 4 classes"),
        (network, CARD, {"top": 4}, "top is at most 3|top .*3.*4"),
        (network, CARD, {"temperature": 0.0}, "a temperature is a positive finite number; got 0.0"),
        (Odd(), CARD, {}, "logits are not finite for 1 images, the first one .*0.png"),
    ]
    for model, card, options, said in cases:
        with pytest.raises(ValueError, match=said):
            predict(model, card, [path], **options)


def test_tables_hold_what_was_found_and_no_formulas(network: nn.Module, tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).png", "+1,2.png", "plain.png", os.fsdecode(b"\xff.png")]
    for seed, name in enumerate(names):
        picture(tmp_path / name, seed)
    found = predict(network, CARD, [tmp_path / name for name in names], top=2)
    found = type(found)(
        tuple(names), *(getattr(found, f) for f in ("labels", "probabilities", "classes", "unreadable"))
    )
    write_table(found, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "class", "probability", "class_2", "probability_2"]
    assert [row[0] for row in rows] == ["'=HYPERLINK(1).png", "'+1,2.png", "plain.png", "\\xff.png"]
    assert [CLASSES.index(row[3]) for row in rows] == found.labels[:, 1].tolist()
    assert [float(row[2]) for row in rows] == found.probabilities[:, 0].tolist(), "to the last bit"
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow: pip install 'pof[data]'")
    write_table(found, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["path"][0] == names[0] and table["probability"] == found.probabilities[:, 0].tolist()
    assert list(table) == header


def test_only_tables_of_its_own_are_replaced(network: nn.Module, folder: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'pof[data]'")
    from pyarrow import parquet

    found = predict(network, CARD, [folder / "test/red/0.png"])
    for end in (".csv", ".parquet"):
        check_table(tmp_path / f"out{end}")
        write_table(found, tmp_path / f"out{end}")
        check_table(tmp_path / f"out{end}")
    (tmp_path / "mine.csv").write_text("path,label\n")
    parquet.write_table(arrow.table({"path": ["x"]}), tmp_path / "mine.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    for name in ("mine.csv", "mine.parquet", "text.parquet"):
        with pytest.raises(RunError, match="not of this command"):
            check_table(tmp_path / name)
    with pytest.raises(RunError, match=r"written to a .csv or .parquet file; got out.xlsx"):
        check_table(Path("out.xlsx"))
