"""The description of a network in the header of its weights."""

import dataclasses

import pytest
import torch

from pof._support.preprocessing import Preprocessing
from pof.models.card import KEY, NetworkCard
from pof.weights import load_weights, read_metadata, save_model

PREPARED = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "bicubic", 0.9, squash=True)
CARD = NetworkCard("small-cnn", ("cat", "dog", "é"), (1, 8, 8), {"width": 2}, "head", PREPARED)


def test_a_card_comes_back_from_a_file_with_its_network(tmp_path):
    card = dataclasses.replace(CARD, model_args={})
    network = card.build()
    save_model(network, tmp_path / "w.safetensors", metadata=card.metadata())
    read = NetworkCard.read(read_metadata(tmp_path / "w.safetensors"))
    assert read == card
    again = read.build()
    load_weights(again, tmp_path / "w.safetensors")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.eval()(x), network.eval()(x))
    assert again(x).shape == (4, 3)


class TwoHeads(torch.nn.Module):
    """The one that counts is not the last."""

    def __init__(self, num_classes: int, in_features: int, width: int = 3) -> None:
        super().__init__()
        self.body = torch.nn.Linear(in_features, width)
        self.main, self.other = (torch.nn.Linear(width, num_classes) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.main(self.body(inputs))


def test_a_network_is_built_with_its_arguments_and_its_new_head():
    card = NetworkCard(f"{__name__}:TwoHeads", ("a", "b"), (4,), {"width": 5}, "main", source_classes=7)
    shapes = {name: tuple(p.shape) for name, p in card.build().named_parameters() if p.ndim == 2}
    assert shapes == {"body.weight": (5, 4), "main.weight": (2, 5), "other.weight": (7, 5)}


def test_all_of_a_card_is_kept():
    assert NetworkCard.read(CARD.metadata()) == CARD


def test_weights_without_a_card_have_none(tmp_path):
    save_model(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
    assert NetworkCard.read(read_metadata(tmp_path / "w.safetensors")) is None
    torch.save({}, tmp_path / "w.pt")
    assert read_metadata(tmp_path / "w.pt") == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1}', CARD.metadata()[KEY].replace('"head"', '"neck"')])
def test_a_damaged_card_is_said(text):
    with pytest.raises(ValueError, match="no description of a network"):
        NetworkCard.read({KEY: text})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"size": 0}, "image_size"), ({"crop": 1.5}, "1.5"), ({"interpolation": "sinc"}, "'sinc'"), ({"crop": 0}, "crop")],
)
def test_values_out_of_range(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(PREPARED, **change)
