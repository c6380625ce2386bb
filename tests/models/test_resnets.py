from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pof.models import CifarResNet, SmallCNN, WideResNet, build_model
from pof.models.cifar_resnet import PadShortcut

WEIGHTS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "weights" / "resnet20-12fca82f.th"


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# He et al. 2016, table 6 (0.27, 0.46, 0.66, 0.85, 1.7 million); Zagoruyko & Komodakis 2016, tables 4 and 5.
SIZES = {
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "wrn-16-4": 2.7,
    "wrn-40-4": 8.9,
    "wrn-28-10": 36.5,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=10)
    # The published figures have two or three digits, and round down or up.
    assert count(model) / 1e6 == pytest.approx(SIZES[name], rel=0.02)


@pytest.mark.parametrize("name", ["resnet20", "resnet32-projection", "resnet20x2", "wrn-10-1", "small-cnn"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
def test_logits_of_any_small_image(name, shape):
    model = build_model(name, num_classes=7, in_channels=shape[0])
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_padding_shortcut():
    maps = torch.randn(2, 4, 6, 6)
    result = PadShortcut(5, 2)(maps)
    assert result.shape == (2, 9, 3, 3)
    assert torch.equal(result[:, 2:6], maps[:, :, ::2, ::2])
    assert not result[:, :2].any()
    assert not result[:, 6:].any()


def test_width_and_shortcut_kinds():
    plain = build_model("resnet20", num_classes=10)
    wide = build_model("resnet20x2", num_classes=10)
    assert wide.linear.in_features == 2 * plain.linear.in_features == 128
    projected = build_model("resnet20x2-projection", num_classes=10)
    extra = set(projected.state_dict()) - set(wide.state_dict())
    assert {key.split(".")[2] for key in extra} == {"shortcut"}
    # Two projections of 1x1 with batch norms: 32 -> 64 and 64 -> 128 channels.
    assert count(projected) - count(wide) == 32 * 64 + 64 * 128 + 2 * 64 + 2 * 128


def test_wide_block_activates_before_its_convolutional_shortcut():
    block = WideResNet(10, 2, num_classes=3).layer1[0].double().eval()
    maps = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    active = F.relu(block.bn1(maps))
    inner = F.relu(block.bn2(F.conv2d(active, block.conv1.weight, padding=1)))
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(active, block.shortcut.weight)
    torch.testing.assert_close(block(maps), expected)


def test_wide_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = WideResNet(10, 1, num_classes=3, dropout=0.5)
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model.layer1(model.conv1(images)), model.layer1(model.conv1(images)))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert not any(isinstance(m, nn.Dropout) for m in WideResNet(10, 1, num_classes=3).modules())


@pytest.mark.parametrize(("name", "fan"), [("resnet20", "in"), ("small-cnn", "in"), ("wrn-10-2", "out")])
def test_he_initialisation(name, fan):
    torch.manual_seed(0)
    model = build_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            connections = (module.weight[0] if fan == "in" else module.weight[:, 0]).numel()
            # The deviation of n normal samples is known to 1 / sqrt(2 n): 1.1 % for n = 4000; four times that.
            assert float(module.weight.detach().std()) == pytest.approx((2 / connections) ** 0.5, rel=0.045)
    assert not next(m for m in model.modules() if isinstance(m, nn.Linear)).bias.any()


BAD = {
    "ResNet depth": (lambda: CifarResNet(21, num_classes=2), r"6 n \+ 2 .*got 21"),
    "ResNet width": (lambda: CifarResNet(20, num_classes=2, width=0), "width must be a whole number >= 1; got 0"),
    "shortcut": (lambda: CifarResNet(20, num_classes=2, shortcut="C"), "'pad' or 'projection'; got 'C'"),
    "WRN depth": (lambda: build_model("wrn-27-10", num_classes=2), r"6 n \+ 4 .*got 27"),
    "WRN width": (lambda: build_model("wrn-28-0", num_classes=2), "width must be a whole number >= 1; got 0"),
    "dropout": (lambda: WideResNet(10, 1, num_classes=2, dropout=1.0), r"\[0, 1\); got 1\.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sizes(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_small_cnn_is_small():
    assert count(SmallCNN(num_classes=10, in_channels=1)) < 25_000


@pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/data/weights is not there")
def test_public_resnet20_loads():
    model = build_model("resnet20", num_classes=10, weights=WEIGHTS)
    assert count(model) == 269_722
    # The paper's parameter-free shortcuts: a network with projections has no such file.
    with pytest.raises(ValueError, match=r"missing: layer2\.0\.shortcut"):
        build_model("resnet20-projection", num_classes=10, weights=WEIGHTS)
    with pytest.raises(ValueError, match=r"misshapen: .*linear\.weight \(10, 64\) where the model has \(100, 64\)"):
        build_model("resnet20", num_classes=100, weights=WEIGHTS)
