"""Exports of four networks give the network's own logits in the program that they are for; what cannot is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from pof._support.preprocessing import Preprocessing
from pof.app.cards import convolutions_channels_last
from pof.app.export import write
from pof.app.export.folders import ExportError
from pof.app.export.write import FILES, Exported, export
from pof.models import build_model
from pof.models.card import NetworkCard
from pof.weights import load_model, read_metadata

CLASSES = ("cat", "dog", "owl")
HOW = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), interpolation="bicubic", crop=0.8)
TOLERANCE = 1e-4  # the issue's: float32 sums in another order


def tiny_vit(**changes: Any) -> nn.Module:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    made = transformers.ViTConfig(**config, image_size=32, patch_size=16, num_labels=3, **changes)
    return transformers.ViTForImageClassification(made)


def card(model: str, *, channels: int = 3, size: int = 32, how: Preprocessing | None = HOW) -> NetworkCard:
    return NetworkCard(model, CLASSES, (channels, size, size), preprocessing=how)


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[nn.Module, NetworkCard]]:
    """Trained ones, as far as an export can tell: batch norms have statistics of their own."""
    torch.manual_seed(0)
    found = {
        "small-cnn": (build_model("small-cnn", num_classes=3), card("small-cnn")),
        "timm": (build_model("timm:test_resnet", num_classes=3), card("timm:test_resnet")),
        "hf": (tiny_vit(), card("hf:folder")),
        "factory": (
            build_model("tests.strangers:dropping", num_classes=3),
            card("tests.strangers:dropping", channels=1, size=8, how=None),
        ),
    }
    for network, of in found.values():
        convolutions_channels_last(network)
        network.train()
        with torch.no_grad():
            network(torch.randn(16, *of.input_shape) * 2 + 1)
    return found


def expected(network: nn.Module, inputs: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        out = network(inputs)
    network.train()
    return getattr(out, "logits", out)


def inputs_of(of: NetworkCard, count: int = 7) -> Tensor:
    return torch.randn(count, *of.input_shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["small-cnn", "timm", "hf", "factory"])
def test_onnx_gives_the_networks_logits_for_a_batch_of_any_size(name: str, networks: Any, tmp_path: Path) -> None:
    import onnxruntime

    network, of = networks[name]
    found = export(network, of, tmp_path / "net.onnx", format="onnx", samples=inputs_of(of))
    assert network.training and found.samples == 7 and 0 <= found.difference <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for count in (1, 3):
        inputs = inputs_of(of, count)
        logits = torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])
        torch.testing.assert_close(logits, expected(network, inputs), atol=TOLERANCE, rtol=0)
    assert NetworkCard.read(session.get_modelmeta().custom_metadata_map) == of
    beside = json.loads((tmp_path / "net.preprocessing.json").read_text())
    assert beside["classes"] == list(CLASSES)
    assert beside["preprocessing"] == (None if of.preprocessing is None else json.loads(json.dumps(vars(HOW))))


@pytest.mark.parametrize("name", ["small-cnn", "timm", "hf", "factory"])
def test_torch_export_and_safetensors_give_the_networks_logits(name: str, networks: Any, tmp_path: Path) -> None:
    network, of = networks[name]
    inputs = inputs_of(of, 3)
    export(network, of, tmp_path / "net.pt2", format="torch-export")
    extra = {"pof.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    torch.testing.assert_close(program(inputs), expected(network, inputs), atol=TOLERANCE, rtol=0)
    assert NetworkCard.read({"pof": extra["pof.json"]}) == of
    found = export(network, of, tmp_path / "net.safetensors", format="safetensors")
    assert found == Exported((tmp_path / "net.safetensors",), 0.0, 0)
    assert NetworkCard.read(read_metadata(tmp_path / "net.safetensors")) == of
    again = tiny_vit() if name == "hf" else of.build()
    load_model(again, tmp_path / "net.safetensors")
    torch.testing.assert_close(expected(again, inputs), expected(network, inputs), atol=1e-6, rtol=1e-5)


def picture(seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return functional.to_pil_image(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator))


def prepared(image: Image.Image) -> Tensor:
    """HOW, said with torchvision: to the shorter side 32 / 0.8, the middle 32 pixels, normalised."""
    square = functional.center_crop(functional.resize(image, [40], functional.InterpolationMode.BICUBIC), [32])
    return functional.normalize(functional.to_dtype(functional.pil_to_tensor(square), scale=True), HOW.mean, HOW.std)


# One grey level of 255, where the libraries round the resized image differently.
ONE_LEVEL = 1 / 255 / 0.2 * 1.01


@pytest.mark.parametrize("name", ["hf", "timm"])
def test_from_pretrained_reads_the_hf_folder_with_classes_and_preprocessing(
    name: str, networks: Any, tmp_path: Path
) -> None:
    network, of = networks[name]
    inputs = inputs_of(of)
    assert export(network, of, tmp_path / "out", format="hf").paths == (tmp_path / "out",)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(expected(again, inputs), expected(network, inputs), atol=TOLERANCE, rtol=0)
    assert again.config.id2label == dict(enumerate(CLASSES))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(picture(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, prepared(picture()), atol=ONE_LEVEL, rtol=0)


def test_timm_reads_its_folder_with_classes_and_preprocessing(networks: Any, tmp_path: Path) -> None:
    network, of = networks["timm"]
    export(network, of, tmp_path / "out", format="timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    inputs = inputs_of(of)
    # Another order of the weights in memory is another order of the sums.
    torch.testing.assert_close(expected(again, inputs), expected(network, inputs), atol=1e-6, rtol=1e-5)
    assert again.pretrained_cfg["label_names"] == list(CLASSES)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=again), is_training=False)
    torch.testing.assert_close(transform(picture()), prepared(picture()), atol=ONE_LEVEL, rtol=0)


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_squashed_preprocessing_is_written_as_such(format: str, tmp_path: Path) -> None:
    network = tiny_vit() if format == "hf" else build_model("timm:test_resnet", num_classes=3)
    how = Preprocessing(32, HOW.mean, HOW.std, crop=1.0, squash=True)
    export(network, card("x", how=how), tmp_path / "out", format=format)
    if format == "hf":
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
        pixels = processor(picture(), return_tensors="pt")["pixel_values"][0]
    else:
        again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model=again), is_training=False)
        pixels = transform(picture())
    resized = functional.to_dtype(functional.pil_to_tensor(functional.resize(picture(), [32, 32])), scale=True)
    torch.testing.assert_close(pixels, functional.normalize(resized, HOW.mean, HOW.std), atol=ONE_LEVEL, rtol=0)


class Wrong(nn.Module):
    """Gives other logits for another number of samples than the export sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs) * (1.0 if torch.compiler.is_exporting() else 1.001)


class PerSample(nn.Module):
    """Cannot be exported for a batch of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.fc(inputs[i]) * (1 if float(inputs[i, 0]) > 0 else 2) for i in range(len(inputs))])


VECTORS = NetworkCard("mine", CLASSES, (4,))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert list(tmp_path.iterdir()) == [], "a refused export leaves something behind"


def test_other_logits_are_an_error(empty: Path) -> None:
    with pytest.raises(ExportError, match=r"gives other logits: they differ by .*, and 0.0001\d* is allowed"):
        export(Wrong(), VECTORS, empty / "net.pt2", format="torch-export")


def test_large_logits_may_differ_by_a_share_of_the_largest(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(4, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([2000.0, 0.0, -1.0]))
    for off, refused in ((0.19, False), (0.21, True)):

        def writer(subject: nn.Module, of: NetworkCard, file: Path, off: float = off) -> Any:
            file.write_text("")
            return lambda inputs: subject(inputs) + torch.tensor([0.0, off, 0.0])

        monkeypatch.setitem(write.WRITERS, "safetensors", writer)
        if refused:
            with pytest.raises(ExportError, match=r"differ by 0.21, and 0.2 is allowed"):
                export(network, VECTORS, empty / "n.safetensors", format="safetensors")
        else:
            done = export(network, VECTORS, empty / "n.safetensors", format="safetensors")
            assert done.difference == pytest.approx(off)
            done.paths[0].unlink()


def test_what_cannot_be_traced_is_named(empty: Path) -> None:
    with pytest.raises(ExportError, match="torch cannot export mine for a batch of any size as torch-export: "):
        export(PerSample(), VECTORS, empty / "net.pt2", format="torch-export")


def test_a_folder_of_timm_is_not_read_for_classes_in_another_order(networks: Any, tmp_path: Path) -> None:
    network, of = networks["timm"]
    export(network, of, tmp_path / "folder", format="timm")
    name = f"timm:local-dir:{tmp_path / 'folder'}"
    build_model(name, num_classes=3, weights="pretrained", classes=CLASSES)
    with pytest.raises(ValueError, match="has its classes in the order cat, dog, owl, the data in another"):
        build_model(name, num_classes=3, weights="pretrained", classes=("dog", "cat", "owl"))


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_a_format_that_cannot_hold_the_network_names_those_that_can(format: str, networks: Any, empty: Path) -> None:
    network, of = networks["small-cnn"]
    with pytest.raises(ExportError, match=r"small-cnn is a SmallCNN: onnx, torch-export and safetensors hold it"):
        export(network, of, empty / "out", format=format)


def test_a_format_whose_own_network_takes_another_size_is_named(tmp_path: Path) -> None:
    """Positions that are interpolated for other images are so by an argument, which no folder holds."""
    tiny_vit().save_pretrained(tmp_path / "vit")
    name = f"hf:{tmp_path / 'vit'}"
    network = build_model(name, num_classes=3, image_size=48)
    with pytest.raises(ExportError, match=r"does not take inputs \(1, 3, 48, 48\), as the network does .*: another"):
        export(network, card(name, size=48), tmp_path / "hf", format="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_texts_go_to_hf_alone(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.BertConfig(**sizes, vocab_size=20, num_labels=3)
    network = transformers.BertForSequenceClassification(config)
    of = NetworkCard("hf:texts", CLASSES, ())
    with pytest.raises(ExportError, match="hf:texts takes texts: use hf"):
        export(network, of, tmp_path / "net.onnx", format="onnx")
    export(network, of, tmp_path / "out", format="hf")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(again(tokens).logits, network.eval()(tokens).logits, atol=TOLERANCE, rtol=0)


BAD_TARGETS = [
    ("onnx", "net.pt2", "onnx ends in .onnx"),
    ("torch-export", "net", "torch-export ends in .pt2"),
    ("onnx", "nowhere/net.onnx", "no such folder"),
    ("pickle", "net.pkl", "format is one of onnx, torch-export, safetensors, hf, timm; got 'pickle'"),
]


@pytest.mark.parametrize(("format", "name", "said"), BAD_TARGETS)
def test_a_target_that_cannot_be_is_refused_before_the_work(format: str, name: str, said: str, empty: Path) -> None:
    with pytest.raises(ExportError, match=said):
        export(nn.Linear(4, 3), VECTORS, empty / name, format=format)


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    network, other = nn.Linear(4, 3), NetworkCard("mine", ("a", "b", "c"), (4,))
    export(network, VECTORS, tmp_path / "net.pt2", format="torch-export")
    before = (tmp_path / "net.pt2").read_bytes()
    with pytest.raises(ExportError, match="is there already: give --out another name"):
        export(network, VECTORS, tmp_path / "net.pt2", format="torch-export")
    (tmp_path / "net.pt2").rename(tmp_path / "kept.pt2")
    with pytest.raises(ExportError, match=r"net.preprocessing.json is there, and of another network"):
        export(network, other, tmp_path / "net.pt2", format="torch-export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.pt2", "net.preprocessing.json"]
    assert (tmp_path / "kept.pt2").read_bytes() == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    with pytest.raises(ExportError, match="is there already"):
        export(tiny_vit(), card("hf:x"), tmp_path / "folder", format="hf")


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    for format, name, library, extra in (
        ("onnx", "n.onnx", "onnxruntime", "export"),
        ("hf", "n", "transformers", "transformers"),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, library, None)
            with pytest.raises(ImportError, match=rf"pip install 'pof\[{extra}\]'"):
                export(nn.Linear(4, 3), VECTORS, empty / name, format=format)


def test_compiled_networks_and_several_outputs_are_read_as_evaluate_reads_them(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            features = self.body(inputs)
            return features, self.fc(features)

    network = Pair()
    export(torch.compile(network, backend="eager"), VECTORS, tmp_path / "net.pt2", format="torch-export")
    inputs = torch.randn(3, 4)
    found = torch.export.load(tmp_path / "net.pt2").module()(inputs)
    torch.testing.assert_close(found, network(inputs)[1])


def test_the_check_compares_with_real_inputs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def writer(subject: nn.Module, of: NetworkCard, file: Path) -> Any:
        file.write_text("")
        return lambda inputs: (seen.append(len(inputs)), subject(inputs) + (len(inputs) == 4))[1]

    monkeypatch.setitem(write.WRITERS, "safetensors", writer)
    with pytest.raises(ExportError, match="differ by 1"):
        export(nn.Linear(4, 3), VECTORS, tmp_path / "n.safetensors", format="safetensors", samples=torch.zeros(4, 4))
    assert seen == [*write.SIZES, 4] and not list(tmp_path.iterdir())
    assert set(FILES) < set(write.WRITERS)
