"""Networks of timm, torchvision and factories: their logits are the library's own; names, sizes and arguments."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

import pof
from pof.models import build_model
from pof.models.sources import PREFIXED, find_source, own

X, Y = torch.rand(6, 3, 64, 64), torch.arange(6) % 3


def trained(model: nn.Module, images: torch.Tensor = X) -> None:
    """One epoch of PoF changes the extractor."""
    before = next(model.parameters()).clone()
    assert pof.fit(pof.PoF(model), [(images, Y)] * 2, epochs=1, device="cpu").steps == 2
    assert not torch.equal(next(model.parameters()), before)


@pytest.mark.parametrize(
    ("name", "head"),
    [("timm:test_resnet", "fc"), ("test_vit", "head"), ("torchvision:shufflenet_v2_x0_5", "fc")],
)
def test_logits_are_the_librarys_own(name, head):
    plain = name.split(":")[-1]
    torch.manual_seed(0)
    size = {"image_size": 64} if name == "test_vit" else {}
    model = build_model(name, num_classes=3, **size).eval()
    torch.manual_seed(0)
    if name.startswith("torchvision"):
        theirs = torchvision.models.get_model(plain, weights=None, num_classes=3).eval()
    else:
        theirs = timm.create_model(plain, num_classes=3, **({"img_size": 64} if size else {})).eval()
    assert torch.equal(model(X), theirs(X))
    assert pof.find_head(model) == head
    trained(model)


def test_a_folder_that_timm_saved(tmp_path):
    theirs = timm.create_model("test_resnet", num_classes=3).eval()
    timm.models.save_for_hf(theirs, tmp_path, model_config={"num_classes": 3})
    model = build_model(f"timm:local-dir:{tmp_path}", num_classes=3, weights="pretrained").eval()
    assert torch.equal(model(X), theirs(X))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torchvision's published weights, as far as they are here: those of a network of random weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)

    def publish(name: str) -> nn.Module:
        model = torchvision.models.get_model(name, weights=None).eval()
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / url.split("/")[-1])
        return model

    return publish


def test_published_weights_of_torchvision(published):
    theirs = published("squeezenet1_1")
    model = build_model("torchvision:squeezenet1_1", num_classes=1000, weights="pretrained").eval()
    assert torch.equal(model(X), theirs(X))
    new = build_model("torchvision:squeezenet1_1", num_classes=3, weights="pretrained").eval()
    assert new(X).shape == (6, 3)
    assert torch.equal(new.features(X), theirs.features(X))
    assert pof.find_head(new) == "classifier"
    trained(new)


def test_networks_of_a_fixed_size_follow_the_images():
    model = build_model("timm:test_vit", num_classes=3, image_size=32)
    assert model(X[..., :32, :32]).shape == (6, 3)
    assert model.patch_embed.img_size == (32, 32)
    free = build_model("timm:test_vit", num_classes=3, image_size=32, args={"dynamic_img_size": True})
    assert free.patch_embed.img_size == (160, 160)
    given = build_model("timm:test_vit", num_classes=3, args={"img_size": 64})
    assert given(X).shape == (6, 3)
    options = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    for size, args in ((64, options), (None, {**options, "image_size": 64})):
        with pytest.raises(ValueError, match="torchvision cannot build 'vit_b_16'.*multiple values"):
            build_model("torchvision:vit_b_16", num_classes=3, image_size=size, args=args)
    with pytest.raises(ValueError, match=r"img_size is 64, but the images have 32 px: give the same size for both"):
        build_model("timm:test_vit", num_classes=3, image_size=32, args={"img_size": 64})
    with pytest.raises(ValueError, match="'mixer_s32_224' takes images of 224 px, not of 32: give --image_size 224"):
        build_model("timm:mixer_s32_224", num_classes=3, image_size=32)
    with pytest.raises(ValueError, match="'vit_b_16' are for images of 224 px, not of 64: give --image_size 224"):
        build_model("torchvision:vit_b_16", num_classes=3, image_size=64, weights="pretrained")


def test_arguments():
    model = build_model("timm:test_resnet", num_classes=3, args={"drop_rate": 0.25})
    assert model.drop_rate == 0.25
    with pytest.raises(ValueError, match=r"'small-cnn' cannot take the arguments \{'depth': 3\}"):
        build_model("small-cnn", num_classes=3, args={"depth": 3})
    with pytest.raises(ValueError, match="timm cannot build 'test_resnet' .*drop_rat=0.1.*TypeError"):
        build_model("timm:test_resnet", num_classes=3, args={"drop_rat": 0.1})
    with pytest.raises(ValueError, match="torchvision cannot build 'resnet18' .*nothing=1.*TypeError"):
        build_model("torchvision:resnet18", num_classes=3, args={"nothing": 1})
    with pytest.raises(ValueError, match="num_classes is no further argument of a network"):
        build_model("timm:test_resnet", num_classes=3, args={"num_classes": 4})
    with pytest.raises(ValueError, match="takes images of 3 channels, not of 1: timm has networks for any number"):
        build_model("torchvision:resnet18", num_classes=3, in_channels=1)


def test_arguments_of_factories(tmp_path, monkeypatch):
    text = "from torch import nn\ndef make(num_classes, width=2, image_size=None):\n    return nn.Linear(width, num_classes)"
    (tmp_path / "a_factory.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert build_model("a_factory:make", num_classes=3, args={"width": 7}, image_size=8).in_features == 7
    with pytest.raises(
        ValueError, match="'a_factory:make' takes no argument 'depth'; it takes image_size, num_classes"
    ):
        build_model("a_factory:make", num_classes=3, args={"depth": 7})
    sys.modules.pop("a_factory", None)


def test_a_name_of_two_sources_is_refused_and_a_near_miss_named_for_all():
    with pytest.raises(
        ValueError, match="is a network of timm and of torchvision: write timm:resnet50 or torchvision:"
    ):
        build_model("resnet50", num_classes=3)
    assert find_source("shufflenet_v2_x0_5") == (PREFIXED["torchvision"], "shufflenet_v2_x0_5")
    assert find_source("test_vit") == (PREFIXED["timm"], "test_vit")
    assert find_source("resnet20") == (own.OWN, "resnet20")
    with pytest.raises(ValueError, match=r"similar: .*timm:resnet50 or torchvision:resnet50"):
        build_model("resnett50", num_classes=3)
    with pytest.raises(ValueError, match=r"similar: .*torchvision:shufflenet_v2_x0_5"):
        build_model("timm:shufflenet_v2_x05", num_classes=3)


def test_a_folder_of_transformers_without_its_prefix(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"similar: hf:{tmp_path}"):
        build_model(str(tmp_path), num_classes=3)


def test_names_of_classes_are_as_many_as_classes():
    with pytest.raises(ValueError, match="num_classes=3, but there are 2 names in classes"):
        build_model("small-cnn", num_classes=3, classes=("a", "b"))
