from __future__ import annotations

import sys

import pytest
import timm
import torch

from pof.models import build_model, import_factory

FACTORIES = """
import torch
from torch import nn

def full(num_classes, in_channels=3):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes * in_channels))

def none():
    return nn.Linear(3, 3)

def open_ended(width=2, **options):
    assert set(options) == {"num_classes"}, options
    return nn.Linear(width, options["num_classes"])

def needy(depth, num_classes):
    return nn.Linear(depth, num_classes)

def wrong():
    return 3

class Namespace:
    linear = none

number = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "strangers_models.py").write_text(FACTORIES)
    (tmp_path / "broken_models.py").write_text("import no_such_package_anywhere")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield "strangers_models"
    assert sys.path == path
    sys.modules.pop("strangers_models", None)


def test_factories_get_what_they_accept(factories):
    model = build_model(f"{factories}:full", num_classes=5, in_channels=2)
    assert model(torch.ones(1, 2, 2, 2)).shape == (1, 10)
    assert build_model(f"{factories}:none", num_classes=5).out_features == 3
    assert build_model(f"{factories}:open_ended", num_classes=5).out_features == 5
    assert build_model(f"{factories}:Namespace.linear", num_classes=5).out_features == 3
    assert build_model("torchvision.models:resnet18", num_classes=5).fc.out_features == 5


BAD = {
    ":needy": "needs the argument 'depth'.*at most num_classes, in_channels",
    ":wrong": "must return a torch.nn.Module; it returned a int",
    ":absent": "'strangers_models' has no 'absent'",
    ":number": "is a int, not something to call",
    ":": "named package.module:factory",
}


@pytest.mark.parametrize("attribute", BAD)
def test_bad_factories(factories, attribute):
    with pytest.raises(ValueError, match=BAD[attribute]):
        build_model(f"{factories}{attribute}", num_classes=2)


def test_modules_that_cannot_be_imported(factories):
    with pytest.raises(ValueError, match=r"cannot import the module 'no\.such'"):
        import_factory("no.such:factory")
    with pytest.raises(ValueError, match=r"'broken_models'.*No module named 'no_such_package_anywhere'"):
        import_factory("broken_models:factory")


@pytest.mark.parametrize("name", ["timm:resnet18", "mobilenetv3_small_050"])
def test_timm_models(name):
    model = build_model(name, num_classes=4, in_channels=1).eval()
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 4)


def test_own_names_come_before_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert build_model("resnet20", num_classes=3).linear.out_features == 3
    with pytest.raises(ValueError, match=r"unknown model 'resnet18'.*pip install timm torchvision"):
        build_model("resnet18", num_classes=3)


def test_unknown_names_list_similar_ones():
    with pytest.raises(ValueError, match=r"unknown model 'resnet-20'; similar: resnet20"):
        build_model("resnet-20", num_classes=3)
    with pytest.raises(ValueError, match=r"unknown model 'timm:nothing-at-all-xyz'.*timm's names"):
        build_model("timm:nothing-at-all-xyz", num_classes=3)


def test_timm_model_that_cannot_be_built():
    with pytest.raises(ValueError, match="timm cannot build 'resnet18' with num_classes=3, in_chans=0"):
        build_model("timm:resnet18", num_classes=3, in_channels=0)


def test_one_class_is_no_classifier():
    with pytest.raises(ValueError, match="at least 1 output; got num_classes=0"):
        build_model("resnet20", num_classes=0)


def test_pretrained_is_for_libraries_that_publish_weights(monkeypatch):
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create)
    build_model("timm:resnet18", num_classes=4, weights="pretrained")
    assert asked == {"name": "resnet18", "pretrained": True, "num_classes": 4, "in_chans": 3}
    for name in ("resnet20", "torchvision.models:resnet18"):
        with pytest.raises(ValueError, match=r"'pretrained' is known for timm:, torchvision:, hf: only; for .* give"):
            build_model(name, num_classes=4, weights="pretrained")


def test_weights_are_loaded(tmp_path):
    source = build_model("resnet20", num_classes=4)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = build_model("resnet20", num_classes=4, weights=tmp_path / "w.pt")
    assert torch.equal(model.linear.weight, source.linear.weight)
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        build_model("resnet20", num_classes=4, weights=tmp_path / "absent.pt")
