"""docs/sources.md: each command of its table runs as it stands, on small files of the names that are in it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

import pof
from pof.app.cli import main
from pof.app.run_files import read_result
from pof.data.images import Prepare
from pof.models import Preprocessing
from tests.app.test_networks import TEXTS
from tests.data.test_hub import shard
from tests.data.test_images import photograph
from tests.models import folders

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sources.md"
ROW = re.compile(r"^\| (?P<source>[^|]+?) \| `(?P<command>pof [^`|]+)` \| (?P<gives>[^|]+) \|$", flags=re.MULTILINE)
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = {found["source"]: (found["command"], found["gives"]) for found in ROW.finditer(TEXT)}
RUN = re.compile(r"`(?P<out>[^`]+)`, inputs of (?P<shape>[\d x]+)")
PARTS = {"train": 4, "val": 2, "test": 1}
SAMPLES = [
    (part, name, f"{part}/{name}/{i}.png")
    for part, count in PARTS.items()
    for name in folders.NAMES
    for i in range(count)
]
FACTORY = """
from torch import nn

def network(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, num_classes))

def vectors(in_features, num_classes):
    return nn.Sequential(nn.Linear(in_features, 7), nn.ReLU(), nn.Linear(7, num_classes))
"""


def animals(root: Path) -> None:
    """Three classes with four images for training, two for validation and one for testing."""
    for number, (_, _, file) in enumerate(SAMPLES):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        photograph(40 + number, 50).save(root / file)


def of_timm(here: Path, patch: pytest.MonkeyPatch) -> None:
    """Its hub's cache has the network, with random weights."""
    from safetensors.torch import save_file

    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    repository = here / "hub" / "models--timm--test_resnet.r160_in1k"
    for folder in ("refs", "snapshots/1"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1")
    save_file(timm.create_model("test_resnet").state_dict(), repository / "snapshots" / "1" / "model.safetensors")
    animals(here / "animals")


def of_torchvision(here: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TORCH_HOME", str(here))
    (here / "hub" / "checkpoints").mkdir(parents=True)
    name = "shufflenet_v2_x0_5"
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(torchvision.models.get_model(name).state_dict(), here / "hub" / "checkpoints" / Path(url).name)
    animals(here / "animals")


def of_transformers(here: Path, _: pytest.MonkeyPatch) -> None:
    folders.vit(here / "vit")
    animals(here / "animals")


def of_texts(here: Path, _: pytest.MonkeyPatch) -> None:
    folders.bert(here / "bert")
    (here / "reviews.py").write_text(TEXTS)


def of_clip(here: Path, _: pytest.MonkeyPatch) -> None:
    folders.clip(here / "clip")
    animals(here / "animals")


def made(run: str) -> None:
    """A run by the command that the page has for it, below the table."""
    (command,) = re.findall(rf"^pof (.* --out {run})$", TEXT, flags=re.MULTILINE)
    assert main(shlex.split(command)) == 0


def of_a_factory(here: Path, _: pytest.MonkeyPatch) -> None:
    """Fine-tuned: 1000 classes become three."""
    (here / "mine.py").write_text(FACTORY)
    animals(here / "animals")
    made("runs/tuned")


def of_a_run(here: Path, _: pytest.MonkeyPatch) -> None:
    animals(here / "animals")
    made("runs/base")


def of_images(here: Path, _: pytest.MonkeyPatch) -> None:
    animals(here / "animals")


def of_csv(here: Path, _: pytest.MonkeyPatch) -> None:
    animals(here)
    rows = ["path,label,split", *(f"{file},{name},{part}" for part, name, file in SAMPLES)]
    (here / "animals.csv").write_text("\n".join(rows))


def of_parquet(here: Path, _: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'pof[data]'")
    from pyarrow import parquet

    animals(here)
    split, label, path = zip(*SAMPLES, strict=True)
    parquet.write_table(arrow.table({"path": path, "label": label, "split": split}), here / "animals.parquet")


def arrays(file: Path, shape: tuple[int, ...], kind: type) -> None:
    saved: dict[str, Any] = {"classes": numpy.array(folders.NAMES)}
    for part, count in PARTS.items():
        labels = numpy.repeat(numpy.arange(3), count)
        values = numpy.random.default_rng(0).integers(0, 256, (len(labels), *shape))
        saved |= {f"x_{part}": values.astype(kind), f"y_{part}": labels}
    numpy.savez(file, **saved)


def of_image_arrays(here: Path, _: pytest.MonkeyPatch) -> None:
    arrays(here / "pixels.npz", (12, 12, 3), numpy.uint8)


def of_vectors(here: Path, _: pytest.MonkeyPatch) -> None:
    arrays(here / "measured.npz", (5,), numpy.float32)
    (here / "mine.py").write_text(FACTORY)


def of_datasets(here: Path, patch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="folders of datasets: pip install 'pof[data]'")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    datasets.disable_progress_bars()
    animals(here / "files")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(folders.NAMES))})
    made = {}
    for part in PARTS:
        rows = [(str(here / "files" / file), folders.NAMES.index(name)) for p, name, file in SAMPLES if p == part]
        images, labels = map(list, zip(*rows, strict=True))
        made["validation" if part == "val" else part] = datasets.Dataset.from_dict(
            {"image": images, "label": labels}, features=features
        )
    datasets.DatasetDict(made).save_to_disk(here / "animals")


def of_shards(here: Path, _: pytest.MonkeyPatch) -> None:
    animals(here / "files")
    for part in PARTS:
        members = {}
        for number, (_, name, file) in enumerate(sample for sample in SAMPLES if sample[0] == part):
            members |= {f"{number:04d}.png": (here / "files" / file).read_bytes(), f"{number:04d}.cls": name.encode()}
        shard(here / "shards" / f"animals-{part}-000000.tar", members)


FILES: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "timm": of_timm,
    "torchvision": of_torchvision,
    "Transformers, images": of_transformers,
    "Transformers, texts": of_texts,
    "CLIP, SigLIP": of_clip,
    "your function, fine-tuned and used again": of_a_factory,
    "folder of a run": of_a_run,
    "image folder with `val`": of_images,
    "CSV": of_csv,
    "Parquet": of_parquet,
    "npz of images": of_image_arrays,
    "npz of feature vectors": of_vectors,
    "Hugging Face dataset": of_datasets,
    "WebDataset": of_shards,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, from which modules are imported, without a hub."""
    monkeypatch.chdir(tmp_path)
    for module in ("mine", "reviews"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_every_source_has_a_row_and_files() -> None:
    table = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(ROWS) == len(table) - 2 == 14, "a row that is not read as one"
    assert ROWS.keys() == FILES.keys()


def value_of(flag: str, command: str, *, default: str) -> str:
    words = shlex.split(command)
    return words[words.index(f"--{flag}") + 1] if f"--{flag}" in words else default


def assert_as_timm_prepares(images: Path, how: Preprocessing | None) -> None:
    """Number by number; the normalisation rounds in another order."""
    assert how is not None
    theirs = create_transform(**resolve_data_config({}, model=timm.create_model("test_resnet")), is_training=False)
    for file in images.rglob("*.png"):
        with Image.open(file) as image:
            torch.testing.assert_close(Prepare(how, augment=False)(image), theirs(image), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:batch_size 128 is larger than the training data:UserWarning")
@pytest.mark.parametrize("source", ROWS)
def test_the_command_gives_what_the_page_says(
    source: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, gives = ROWS[source]
    FILES[source](here, monkeypatch)
    capsys.readouterr()
    code = main(shlex.split(command)[1:])
    said = capsys.readouterr()
    assert code == 0, said.err
    run = RUN.fullmatch(gives)
    assert run is None or run["out"] in shlex.split(command)
    for name in gives.split(", ") if run is None else ("error", "NLL", "ECE"):
        assert re.search(rf"│ {name} +│ +[\d.]+", said.out), name
    if run is not None:
        result, card = read_result(here / run["out"]), pof.load_run(here / run["out"], trust_factories=True).card
        assert card.model == value_of("model", command, default="small-cnn")
        assert card.input_shape == tuple(map(int, run["shape"].split(" x ")))
        texts = "reviews" in command
        assert card.classes == (("0", "1", "2") if texts else folders.NAMES)
        assert result["test_after"]["n"] == (12 if texts else 3) and result["steps"] == 1
        assert texts or result["validation_after"]["n"] == 6, "its own validation data"
        if source == "timm":
            assert_as_timm_prepares(here / "animals", card.preprocessing)
