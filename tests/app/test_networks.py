"""Networks of other libraries through the command line: images as they were trained with, and what may be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from pof.app.cards import card_of, check_fits, load_network
from pof.app.cli import main, parse
from pof.app.options import DataOptions, ModelOptions
from pof.app.run_files import read_config, read_result
from pof.app.runs import load_run
from pof.app.splits import load
from pof.data.images import Prepare
from pof.models import Preprocessing, build_model, preprocessing_of
from pof.models.build import published_classes
from pof.weights import load_weights, save_model
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


TIMM = "timm:test_resnet"


def test_what_another_library_exports_is_read_with_its_own_preprocessing(
    tmp_path: Path, animals: str, capsys: Any
) -> None:
    """TimmWrapper's folder has no image processor: its ``pretrained_cfg`` says how images were prepared."""
    own = ["--image_size", "32", "--mean", "0.9,0.1,0.5", "--std", "0.1,0.2,0.1", "--interpolation", "box"]
    assert main(["train", "--model", TIMM, "--data", animals, *own, *TRAIN, "--out", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "hf", "--out", str(tmp_path / "hf")]) == 0
    found = preprocessing_of(f"hf:{tmp_path / 'hf'}")
    wanted = load_run(tmp_path / "run").card.preprocessing
    assert found is not None and wanted is not None
    assert (found.size, found.mean, found.std, found.interpolation) == (32, wanted.mean, wanted.std, "box")
    capsys.readouterr()
    asked = ["--data", animals, "--device", "cpu", "--workers", "0"]
    again = ["--model", f"hf:{tmp_path / 'hf'}", "--weights", "pretrained"]
    figures = []
    for network in ([str(tmp_path / "run")], again):
        assert main(["evaluate", *network, *asked, "--json", "-"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["metrics"]["nll"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def test_a_folder_without_a_processor_has_that_of_its_base_or_says_so(tmp_path: Path) -> None:
    folders.vit(tmp_path / "base")
    folders.vit(tmp_path / "own")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "own" / name).unlink(missing_ok=True)
    base, own = f"hf:{tmp_path / 'base'}", str(tmp_path / "own")
    assert preprocessing_of(base, weights=own) == preprocessing_of(base)
    with pytest.warns(UserWarning, match=r"without preprocessor_config.json, so images get the 32 px"):
        found = preprocessing_of(f"hf:{own}")
    assert found is not None and found.size == 32


@pytest.mark.parametrize("command", ["evaluate", "export", "post-train", "improve"])
def test_a_head_that_is_new_is_not_taken_for_a_trained_one(
    tmp_path: Path, animals: str, capsys: Any, command: str
) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folders.vit(tmp_path / "five", classes=("a", "b", "c", "d", "e"))
    ViTModel(ViTConfig(image_size=32, patch_size=8, **folders.SIZES)).save_pretrained(tmp_path / "none")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "none")
    out = tmp_path / "out.safetensors"
    more = {"evaluate": [], "export": ["--format", "safetensors", "--out", str(out)]}.get(command)
    more = [*TRAIN, "--out", str(out)] if command == "post-train" else more
    more = ["--out", str(out), "--budget", "1"] if more is None else more
    for name, has in (("five", "a head of 5 classes"), ("none", "no head")):
        for weights in ("pretrained", str(tmp_path / name)):
            asked = ["--model", f"hf:{tmp_path / name}", "--weights", weights, "--data", animals]
            assert main([command, *asked, *more]) == 2
            assert f"has {has}, and animals needs 3 outputs" in " ".join(capsys.readouterr().err.split())
            assert not out.exists()


def test_a_new_head_is_fine_tuned_and_has_no_figures_before(tmp_path: Path, animals: str, capsys: Any) -> None:
    folders.vit(tmp_path / "five", classes=("a", "b", "c", "d", "e"))
    asked = ["--model", f"hf:{tmp_path / 'five'}", "--weights", "pretrained", "--data", animals, *TRAIN]
    assert main(["fine-tune", *asked, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert read_result(tmp_path / "run")["test_before"] is None
    assert main(["train", *asked, "--method", "finetune", "--out", str(tmp_path / "plain")]) == 0
    assert read_result(tmp_path / "plain")["test_before"] is None
    capsys.readouterr()
    for command, *dry in (["train"], ["fine-tune"], ["train", "--dry_run"], ["fine-tune", "--dry_run"]):
        assert main([command, *asked, "--method", "pof", "--out", str(tmp_path / "pof"), *dry]) == 2
        assert "gets a new head, and pof would hold that fixed" in " ".join(capsys.readouterr().err.split())
    for dry in ([], ["--dry_run"]):
        assert main(["post-train", *asked, "--source_classes", "5", "--out", str(tmp_path / "pof"), *dry]) == 2
        assert "--source_classes 5 gives the network a new head, and post-train needs" in capsys.readouterr().err
    # Nor is a head of other classes than it has been said to have the one that Co-Tuning is to transfer.
    assert main(["fine-tune", *asked, "--method", "co-tuning", "--out", str(tmp_path / "co")]) == 2
    assert "the number of classes of their head" in " ".join(capsys.readouterr().err.split())
    right = ["--method", "co-tuning", "--source_classes", "5", "--out", str(tmp_path / "co")]
    assert main(["fine-tune", *asked, *right]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_what_published_weights_set_is_in_the_card(
    tmp_path: Path, animals: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """torchvision's constructors set more than weights where they get some: without it a run was another network."""
    from torchvision.models._api import WeightsEnum

    model = ModelOptions(f"torchvision:{name}", weights="pretrained")
    plain = getattr(torchvision.models, name)(weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: plain)
    loaded = load(DataOptions(animals, image_size=75), model)
    network = load_network(model, loaded).eval()
    card = card_of(model, loaded, "fc")
    save_model(network, tmp_path / "net.safetensors", metadata=card.metadata())
    again = card.build().eval()
    load_weights(again, tmp_path / "net.safetensors")
    assert again.transform_input is network.transform_input is True
    images = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(images), network(images))
    # A stage of a recipe says the arguments that its user gave, if any.
    check_fits(card, ModelOptions(model.model, str(tmp_path / "net.safetensors")), loaded)
    with pytest.raises(ValueError, match="model_args"):
        other = ModelOptions(model.model, str(tmp_path / "net.safetensors"), model_args={"transform_input": False})
        check_fits(card, other, loaded)


def test_soft_labels_are_refused_where_errors_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "soft_data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "class Named(TensorDataset):\n"
        "    classes = ['a', 'b', 'c']\n"
        "def parts(train, test, kind=Named):\n"
        "    images, soft = torch.randn(12, 3, 8, 8), torch.eye(3).repeat(4, 1)\n"
        "    return tuple(kind(images, soft if each else soft.argmax(1)) for each in (train, test))\n"
        "def hard(): return parts(False, False)\n"
        "def training(): return parts(True, False)\n"
        "def both(): return parts(True, True)\n"
        "def test(): return parts(False, True)\n"
        "def nameless(): return parts(False, True, TensorDataset)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*asked: str) -> str:
        code = main([*asked, "--model", "small-cnn"])
        found = " ".join(capsys.readouterr().err.split())
        assert code == (2 if found else 0)
        return found

    for name in ("hard", "training"):
        assert not run("train", "--data", f"soft_data:{name}", *TRAIN, "--out", name)
    for name in ("both", "test", "nameless"):
        for more in ([], ["--dry_run"]):
            found = run("train", "--data", f"soft_data:{name}", *TRAIN, "--out", name, *more)
            assert "has probabilities as test labels" in found
            assert not (tmp_path / name).exists()
    found = run("train", "--data", "soft_data:training", *TRAIN, "--validation", "0.5", "--out", "held")
    assert "has probabilities as train labels, and errors are counted by classes: give other data" in found
    of = ["--data", "soft_data:test", "--weights", "hard/model.safetensors"]
    assert "has probabilities as test labels" in run("evaluate", *of)
    assert "has probabilities as test labels" in run("improve", *of, "--budget", "4", "--out", "better")
    assert not (tmp_path / "better").exists()


def test_a_users_own_class_has_its_head_and_soft_labels_elsewhere_are_no_matter(
    tmp_path: Path, animals: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folders.vit(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**config, "architectures": ["Mine"]}))
    asked = ["--model", f"hf:{tmp_path / 'own'}", "--weights", "pretrained", "--data", animals]
    assert main(["evaluate", *asked, "--device", "cpu", "--workers", "0"]) == 0, capsys.readouterr().err
    (tmp_path / "several.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def labels():\n"
        "    images, labels = torch.randn(12, 3, 8, 8), torch.tensor([[1.0, 1, 0], [0, 1, 1]]).repeat(6, 1)\n"
        "    return TensorDataset(images, labels), TensorDataset(images, labels)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(build_model("small-cnn", num_classes=3).state_dict(), tmp_path / "net.pt")
    asked = ["--model", "small-cnn", "--weights", "net.pt", "--data", "several:labels"]
    assert main(["export", *asked, "--format", "safetensors", "--out", "net.safetensors"]) == 0, capsys.readouterr().err


def test_the_configuration_that_timm_is_given_says_the_classes() -> None:
    described = {"num_classes": 5, "input_size": [3, 40, 40], "mean": [0.1] * 3, "std": [0.2] * 3}
    assert published_classes("timm:test_resnet", {"pretrained_cfg": described}, "pretrained") == 5
    assert published_classes("timm:test_resnet", {"pretrained_cfg": "r160_in1k"}, "pretrained") is None
    assert published_classes("timm:test_resnet", {}, "pretrained") == 1000
    how = preprocessing_of("timm:test_resnet", {"pretrained_cfg": described})
    assert how is not None and (how.size, how.mean) == (40, (0.1,) * 3)
