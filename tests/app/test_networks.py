"""Networks of other libraries through the command line: images as they were trained with, and what may be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pof.app.cards import load_network
from pof.app.cli import main, parse
from pof.app.options import DataOptions, ModelOptions
from pof.app.run_files import read_config, read_result
from pof.app.runs import load_run
from pof.app.splits import load
from pof.data.images import Prepare
from pof.models import Preprocessing, build_model, preprocessing_of
from tests.data.test_images import photograph
from tests.models import folders

pytest.importorskip("transformers", reason="networks of Transformers: pip install 'pof[transformers]'")
TRAIN = ["--epochs", "1", "--batch_size", "4", "--lr", "0.01", "--workers", "0", "--validation", "0", "--device", "cpu"]
TRAIN += ["--precision", "fp32"]
TEXTS = """
import torch
from torch.utils.data import Dataset

class Texts(Dataset):
    labels = torch.arange(12) % 3

    def __len__(self):
        return 12

    def __getitem__(self, index):
        label = int(self.labels[index])
        words = torch.full((6,), label + 1)
        return {"input_ids": words, "attention_mask": torch.ones(6, dtype=torch.int64), "labels": label}

def texts():
    return Texts(), Texts()
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def animals(tmp_path: Path) -> str:
    """An image folder of three classes."""
    for number, name in enumerate(folders.NAMES):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for i in range(5):
            photograph(40 + 3 * i, 50 + number).save(tmp_path / "animals" / name / f"{i}.png")
    return str(tmp_path / "animals")


def prepared(data: DataOptions, model: ModelOptions) -> Preprocessing:
    transform: Any = load(data, model).test_set.transform  # type: ignore[union-attr]
    assert isinstance(transform, Prepare)
    return transform.how


def test_images_are_prepared_as_the_network_says_unless_the_user_does(animals: str) -> None:
    model = ModelOptions("timm:vit_medium_patch16_gap_384.sw_in12k_ft_in1k")
    own = preprocessing_of(model.model)
    assert own is not None
    assert own.squash
    assert prepared(DataOptions(animals), model) == own
    changed = prepared(DataOptions(animals, image_size=64, interpolation="box", crop=0.5), model)
    assert changed == Preprocessing(64, own.mean, own.std, "box", 0.5, squash=True)
    ours = prepared(DataOptions(animals), ModelOptions("small-cnn"))
    assert (ours.size, ours.interpolation, ours.crop, ours.mean[0]) == (224, "bilinear", 7 / 8, 0.485)
    sized = ModelOptions("timm:test_vit", model_args={"img_size": 32})
    assert load(DataOptions(animals), sized).image_shape == (3, 32, 32)


def test_a_network_of_a_fixed_size_is_built_for_the_images(animals: str) -> None:
    model = ModelOptions("timm:test_vit")
    loaded = load(DataOptions(animals, image_size=32), model)
    assert load_network(model, loaded).patch_embed.img_size == (32, 32)


def test_fine_tuned_from_a_folder_of_transformers(tmp_path: Path, animals: str, capsys: Any) -> None:
    folders.vit(tmp_path / "vit", shards="5KB", classes=("a", "b"))
    run = ["fine-tune", "--model", f"hf:{tmp_path / 'vit'}", "--weights", "pretrained", "--data", animals, *TRAIN]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert read_result(tmp_path / "run")["steps"] == 3


def test_post_trained_from_a_folder_and_evaluated(tmp_path: Path, animals: str, capsys: Any) -> None:
    theirs = folders.vit(tmp_path / "vit")
    asked = ["--model", f"hf:{tmp_path / 'vit'}", "--weights", str(tmp_path / "vit"), "--data", animals]
    assert main(["post-train", *asked, *TRAIN, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    result = read_result(tmp_path / "run")
    loaded = load(DataOptions(animals), ModelOptions(asked[1]))
    images = torch.stack([loaded.test_set[i][0] for i in range(len(loaded.test_labels))])  # type: ignore[union-attr]
    wrong = theirs(images).logits.argmax(dim=1) != loaded.test_labels
    assert result["test_before"]["error"] == pytest.approx(float(wrong.float().mean()))
    capsys.readouterr()
    assert main(["evaluate", *asked, "--device", "cpu", "--workers", "0"]) == 0, capsys.readouterr().err
    assert f"{100 * result['test_before']['error']:.2f} %" in capsys.readouterr().out
    asked[3] = str(tmp_path / "run")
    assert main(["evaluate", *asked]) == 0, capsys.readouterr().err


def test_a_run_from_a_folder_of_transformers_is_exported_as_one(tmp_path: Path, animals: str, capsys: Any) -> None:
    import transformers

    folders.vit(tmp_path / "vit", classes=("a", "b"))
    asked = ["--model", f"hf:{tmp_path / 'vit'}", "--weights", "pretrained", "--data", animals]
    assert main(["fine-tune", *asked, *TRAIN, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--format", "hf", "--out", str(out)]) == 0, capsys.readouterr().err
    theirs = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    assert theirs.config.id2label == dict(enumerate(folders.NAMES))
    run = load_run(tmp_path / "run")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(theirs(images).logits, run.model(images))


def test_a_zero_shot_network_with_the_names_of_the_folders(tmp_path: Path, animals: str, capsys: Any) -> None:
    folders.clip(tmp_path / "clip")
    asked = ["--model", f"hf:{tmp_path / 'clip'}", "--weights", "pretrained", "--data", animals]
    assert main(["evaluate", *asked, "--model_args", '{"templates": "a sketch of a {}."}']) == 0
    model = ModelOptions(asked[1], weights="pretrained", model_args={"templates": "a sketch of a {}."})
    made = load_network(model, load(DataOptions(animals), model))
    wanted = build_model(
        asked[1], num_classes=3, weights="pretrained", classes=folders.NAMES, args={"templates": ["a sketch of a {}."]}
    )
    assert torch.equal(made.head.weight, wanted.head.weight)
    assert main(["post-train", *asked, *TRAIN, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err


def test_texts_from_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "text_data.py").write_text(TEXTS)
    monkeypatch.chdir(tmp_path)
    folders.bert(tmp_path / "bert")
    asked = ["--model", f"hf:{tmp_path / 'bert'}", "--weights", "pretrained", "--data", "text_data:texts"]
    assert main(["post-train", *asked, *TRAIN, "--out", "run"]) == 0, capsys.readouterr().err
    assert read_result(tmp_path / "run")["steps"] == 3
    assert main(["evaluate", "run", *asked[4:], "--device", "cpu"]) == 0, capsys.readouterr().err
    assert main(["export", "run", "--format", "hf", "--out", "out"]) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_arguments_of_the_network_on_the_command_line(tmp_path: Path) -> None:
    options = ["--data", "digits", "--model", "timm:test_resnet", "--epochs", "1", "--out", str(tmp_path / "run")]
    model = parse(["train", *options, "--model_args", '{"drop_rate": 0.25, "norm_layer": null}']).options[0]
    assert model.model_args == {"drop_rate": 0.25, "norm_layer": None}
    assert parse(["train", *options, "--model_args.drop_rate", "0.25"]).options[0].model_args == {"drop_rate": 0.25}
    small = ["--model_args", '{"drop_rate": 0.25}', "--train_size", "40", *TRAIN]
    assert main(["train", *options, *small]) == 0
    assert read_config(tmp_path / "run")["model"]["model_args"] == {"drop_rate": 0.25}


def test_what_a_network_cannot_is_one_sentence(animals: str, capsys: Any, tmp_path: Path) -> None:
    folders.vit(tmp_path / "vit")
    cases = {
        "resnet50": "write timm:resnet50 or torchvision:resnet50",
        "torchvision:resnet5": "similar: ",
        f"hf:{tmp_path / 'absent'}": "cannot be read",
        str(tmp_path / "vit"): f"similar: hf:{tmp_path / 'vit'}",
    }
    for model, said in cases.items():
        capsys.readouterr()
        code = main(["train", "--model", model, "--data", animals, *TRAIN, "--out", str(tmp_path / "run")])
        error = capsys.readouterr().err
        assert code == 2
        assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
