"""Zero-shot classifiers of CLIP and SigLIP: their logits are those of the two towers."""

from __future__ import annotations

import pytest
import torch

import pof
from pof.models import build_model
from tests.models import folders

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
X, Y = torch.rand(6, 3, 32, 32), torch.arange(6) % 3


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_those_of_both_towers(tmp_path, kind):
    theirs = folders.clip(tmp_path, kind)
    model = build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained", classes=("cat", "dog", "red_fox"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [f"a photo of a {name}." for name in ("cat", "dog", "red fox")]
    tokens = tokenizer(texts, padding=True if kind == "clip" else "max_length", return_tensors="pt")
    tokens = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    assert int((tokens["input_ids"] == tokenizer.unk_token_id).sum()) == 0
    with torch.no_grad():
        wanted = theirs(pixel_values=X, **tokens).logits_per_image
        found = model.eval()(X)
    # float32: the scale is multiplied into the head before the sum and not after it.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float(wanted.std()) > 1e-3
    assert pof.find_head(model) == "head"


def test_templates_are_averaged(tmp_path):
    folders.clip(tmp_path)
    name, classes = f"hf:{tmp_path}", ("cat", "dog")
    heads = [
        build_model(name, num_classes=2, weights="pretrained", classes=classes, args=args).head.weight.detach()
        for args in (
            {"templates": "a photo of a {}."},
            {"templates": "a sketch of a {}."},
            {"templates": ["a photo of a {}.", "a sketch of a {}."]},
        )
    ]
    one, other, both = heads
    scale = one.norm(dim=1, keepdim=True)
    torch.testing.assert_close(both, (one + other) / (one + other).norm(dim=1, keepdim=True) * scale)
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match=r"sentences with one \{\} for the name of a class; got 'a photo'"):
        build_model(name, num_classes=2, weights="pretrained", classes=classes, args={"templates": ["a photo"]})


def test_weights_between_zero_shot_and_fine_tuned(tmp_path):
    """WiSE-FT."""
    folders.clip(tmp_path)
    options = {"num_classes": 3, "weights": "pretrained", "classes": folders.NAMES}
    before, after = build_model(f"hf:{tmp_path}", **options), build_model(f"hf:{tmp_path}", **options)
    assert pof.fit(pof.Finetune(after), [(X, Y)] * 2, epochs=1, device="cpu").steps == 2
    assert not torch.equal(after.head.weight, before.head.weight)
    assert torch.equal(pof.interpolate(before, after, 0.0).eval()(X), before.eval()(X))
    half = pof.interpolate(before, after, 0.5)
    torch.testing.assert_close(half.head.weight, (before.head.weight + after.head.weight) / 2)
    pof.save_model(after, tmp_path / "after.safetensors")
    again = build_model(f"hf:{tmp_path}", num_classes=3, classes=folders.NAMES)
    pof.load_weights(again, tmp_path / "after.safetensors")
    assert torch.equal(again.eval()(X), after.eval()(X))


def test_without_names_the_head_is_a_new_one(tmp_path):
    folders.clip(tmp_path)
    model = build_model(f"hf:{tmp_path}", num_classes=5, weights="pretrained", image_size=48)
    assert model(torch.rand(2, 3, 48, 48)).shape == (2, 5)


def test_a_tokenizer_that_is_not_there_is_said(tmp_path):
    folders.clip(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="its tokenizer does not tell the classes apart: cat, dog, eel"):
        build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained", classes=folders.NAMES)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="has no tokenizer that can be read, which the names of the classes need"):
        build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained", classes=folders.NAMES)
    with pytest.raises(ValueError, match="takes images of 3 channels, not of 1"):
        build_model(f"hf:{tmp_path}", num_classes=3, in_channels=1)
