"""Networks of Transformers: outputs, heads, training and files are those of Transformers itself."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import pof
from pof.models import build_model, preprocessing_of
from pof.models.build import published_classes
from pof.models.card import NetworkCard
from tests.models import folders

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
X, Y = torch.rand(6, 3, 32, 32), torch.arange(6) % 3


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def steps(model: nn.Module, batches: list) -> pof.FitResult:
    return pof.fit(pof.PoF(model), batches, epochs=1, device="cpu")


@pytest.mark.parametrize("shards", ["1GB", "5KB"])
def test_a_folder_gives_the_logits_of_transformers(tmp_path, shards):
    theirs = folders.vit(tmp_path, shards=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shards == "1GB" else 3)
    # The names in the file are those of older versions, the names in the network are others.
    names = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert names != set(theirs.state_dict())
    model = build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained")
    assert model.training
    assert torch.equal(model.eval()(X), theirs(X).logits)
    assert pof.find_head(model) == "model.classifier"


def test_the_weights_may_be_the_folder_or_its_file(tmp_path):
    theirs = folders.vit(tmp_path / "vit")
    for weights in (tmp_path / "vit", tmp_path / "vit" / "model.safetensors"):
        model = build_model(f"hf:{tmp_path / 'vit'}", num_classes=3, weights=weights)
        assert torch.equal(model.eval()(X), theirs(X).logits)
    random = build_model(f"hf:{tmp_path / 'vit'}", num_classes=3)
    assert not torch.equal(random.eval()(X), theirs(X).logits)


def test_post_training_and_a_file_of_ours(tmp_path):
    folders.vit(tmp_path)
    card = NetworkCard(f"hf:{tmp_path}", ("x", "y", "z"), (3, 32, 32))
    model = build_model(card.model, num_classes=3, weights="pretrained")
    before = model.model.vit.embeddings.cls_token.clone()
    steps(model, [(X, Y)] * 3)
    assert not torch.equal(model.model.vit.embeddings.cls_token, before)
    (tmp_path / "ours").mkdir()
    pof.save_model(model, tmp_path / "ours" / "w.safetensors")
    again = card.build()
    pof.load_weights(again, tmp_path / "ours" / "w.safetensors")
    assert torch.equal(again.eval()(X), model.eval()(X))
    assert again.model.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_other_classes_get_a_new_head(tmp_path):
    theirs = folders.vit(tmp_path)
    model = build_model(f"hf:{tmp_path}", num_classes=5, weights="pretrained", classes="abcde")
    assert model(X).shape == (6, 5)
    assert torch.equal(model.model.vit.embeddings.cls_token, theirs.vit.embeddings.cls_token)
    assert model.model.config.id2label == dict(enumerate("abcde"))


def test_images_of_another_size_and_arguments(tmp_path):
    theirs = folders.vit(tmp_path)
    model = build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained", image_size=48).eval()
    large = torch.rand(2, 3, 48, 48)
    assert torch.equal(model(large), theirs(large, interpolate_pos_encoding=True).logits)
    grey = build_model(f"hf:{tmp_path}", num_classes=3, in_channels=1, args={"hidden_dropout_prob": 0.3})
    assert grey(X[:, :1]).shape == (6, 3)
    assert grey.model.config.hidden_dropout_prob == 0.3


def test_texts(tmp_path):
    theirs = folders.bert(tmp_path)
    model = build_model(f"hf:{tmp_path}", num_classes=3, weights="pretrained")
    tokens = {"input_ids": torch.randint(0, 20, (6, 7)), "attention_mask": torch.ones(6, 7, dtype=torch.int64)}
    tokens["attention_mask"][:, 5:] = 0
    assert torch.equal(model.eval()(**tokens), theirs(**tokens).logits)
    assert pof.find_head(model) == "model.classifier"
    batch = {**tokens, "labels": Y}
    result = steps(model, [batch] * 3)
    assert result.steps == 3
    loss = F.cross_entropy(model.eval()(**tokens).detach().double(), Y)
    assert pof.evaluate(model, [batch]).nll == pytest.approx(float(loss), rel=1e-5)


def test_the_length_of_texts_is_no_width_of_vectors(tmp_path):
    theirs = folders.bert(tmp_path / "bert")
    model = build_model(f"hf:{tmp_path / 'bert'}", num_classes=3, in_features=6, weights="pretrained").eval()
    words = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(words), theirs(words).logits)
    assert NetworkCard(f"hf:{tmp_path / 'bert'}", folders.NAMES, (6,)).build()(words).shape == (2, 3)
    folders.vit(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit' takes images, and the data are vectors of 6 features: give a factory"):
        build_model(f"hf:{tmp_path / 'vit'}", num_classes=3, in_features=6)


def test_a_backbone_alone_gets_a_head(tmp_path):
    from transformers import ViTModel

    theirs = folders.vit(tmp_path / "whole")
    ViTModel.from_pretrained(tmp_path / "whole", add_pooling_layer=False).save_pretrained(tmp_path / "body")
    model = build_model(f"hf:{tmp_path / 'body'}", num_classes=4, weights="pretrained")
    assert model(X).shape == (6, 4)
    assert torch.equal(model.model.vit.embeddings.cls_token, theirs.vit.embeddings.cls_token)


def test_refusals(tmp_path):
    folders.vit(tmp_path)
    name = f"hf:{tmp_path}"
    # In part the same, and written another way, are of the same classes too.
    for classes in (("dog", "cat", "eel"), ("Dog", "Cat", "Eel"), ("ant", "cat", "dog")):
        with pytest.raises(ValueError, match="classes in the order cat, dog, eel, the data in another"):
            build_model(name, num_classes=3, weights="pretrained", classes=classes)
    for classes in (("Cat", "dog", "eel"), ("ant", "bee", "cow"), ("cat", "dog", "fox")):
        build_model(name, num_classes=3, weights="pretrained", classes=classes)
    with pytest.raises(ValueError, match="takes images of 3 channels, not of 1"):
        build_model(name, num_classes=3, in_channels=1, weights="pretrained")
    with pytest.raises(ValueError, match="its configuration has no 'hidden_droput'"):
        build_model(name, num_classes=3, args={"hidden_droput": 0.1})
    with pytest.raises(ValueError, match="trust_remote_code is no argument here"):
        build_model(name, num_classes=3, args={"trust_remote_code": True})
    with pytest.raises(ValueError, match=r"hf:no/where cannot be read: .*give a folder that save_pretrained wrote"):
        build_model("hf:no/where", num_classes=3)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="its weights cannot be read"):
        build_model(name, num_classes=3, weights="pretrained")


def test_a_network_of_another_kind_is_refused(tmp_path):
    from transformers import VitMatteConfig

    VitMatteConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vitmatte, of which Transformers has no classifier of images or texts"):
        build_model(f"hf:{tmp_path}", num_classes=3)


def test_a_file_of_ones_own_in_a_folder_of_transformers_is_what_is_read(tmp_path):
    """Training goes on in the folder that a network came in: its best weights lie beside the published ones."""
    published = folders.vit(tmp_path)
    own = copy.deepcopy(published)
    nn.init.ones_(own.classifier.bias)
    for name in ("best.pth", "pytorch_model.bin"):
        torch.save(own.state_dict(), tmp_path / name)
        model = build_model(f"hf:{tmp_path}", num_classes=3, weights=tmp_path / name)
        assert torch.equal(model.eval()(X), own(X).logits)
    (tmp_path / "model.safetensors").unlink()
    model = build_model(f"hf:{tmp_path}", num_classes=3, weights=tmp_path / "pytorch_model.bin")
    assert torch.equal(model.eval()(X), own(X).logits)


BERT = {"vocab_size": 30, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        ("BertForSequenceClassification", 2),
        ("BertForQuestionAnswering", 0),
        ("BertForNextSentencePrediction", 0),
        ("BertForTokenClassification", 0),
        ("BertForMaskedLM", 0),
        ("BertForMultipleChoice", 0),
        ("BertModel", 0),
    ],
)
def test_a_published_head_counts_where_it_is_one_of_classes(tmp_path, kind, classes):
    config = transformers.BertConfig(**BERT)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    assert published_classes(f"hf:{tmp_path}", {}, "pretrained") == classes


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertModel"])
def test_where_the_class_is_not_told_the_weights_tell(tmp_path, kind):
    getattr(transformers, kind)(transformers.BertConfig(**BERT)).save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for names in (None, ["Mine"]):
        (tmp_path / "config.json").write_text(json.dumps({**said, "architectures": names}))
        classes = published_classes(f"hf:{tmp_path}", {}, "pretrained")
        assert classes == (2 if kind == "BertForSequenceClassification" else 0)


def test_weights_of_another_size_than_the_network_they_were_trained_from(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, size in ((small, 32), (large, 48)):
        config = transformers.ViTConfig(image_size=size, patch_size=8, **folders.SIZES)
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    mean = [0.1, 0.2, 0.3]
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean).save_pretrained(small)
    assert preprocessing_of(f"hf:{small}", {}, "pretrained").size == 32
    for arguments in ({}, {"image_size": 48}):
        found = preprocessing_of(f"hf:{small}", arguments, str(large))
        assert (found.size, found.mean) == (48, tuple(mean))
    assert preprocessing_of(f"hf:{small}", {"image_size": 40}, "pretrained").size == 40
    # The network they were trained from need not be there to read them.
    with pytest.warns(UserWarning, match="without preprocessor_config"):
        assert preprocessing_of("hf:nobody/nothing", {}, str(large)).size == 48
