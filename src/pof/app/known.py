"""A trained network and its card, from whatever names it: a run folder, weights with a card, or weights and data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from pof.app.cards import card_in, card_of, check_said, load_network, same_model, weights_file
from pof.app.inherit import check_split, consent_to, inherited
from pof.app.options import DataOptions, ModelOptions
from pof.app.splits import load, validation_of
from pof.data import eval_loader
from pof.data.description import Loader
from pof.models.card import NetworkCard
from pof.weights import load_weights


def known_network(
    model: ModelOptions, data: DataOptions, given: Collection[str], *, purpose: str
) -> tuple[nn.Module, NetworkCard]:
    """Load a network; the data are read only if its weights do not say what it is for.

    Args:
        model: which network.
        data: of weights without a card: data of the network's classes and inputs.
        given: names of the options that were given.
        purpose: name of the command, for an error.

    Raises:
        ValueError: if there are no weights, nothing says which network they are of, or it is a factory that was not
            named.
    """
    weights = model.weights
    if weights is None:
        raise ValueError(f"{purpose} needs a trained network: give the folder of a run, or --weights FILE")
    card = card_in(weights)
    if card is None:
        model, data = inherited(model, data, given)
        loaded = load(data, model)
        return load_network(model, loaded, purpose=purpose).eval(), card_of(model, loaded, model.head)
    if "model" in given and not same_model(model.model, card.model):
        raise ValueError(f"--model {model.model}: the network in {model.weights} is {card.model}: leave out --model")
    if replace(model, model=card.model).is_factory and "model" not in given:
        raise consent_to(weights, {"model": card.model})
    check_said(card, model, data)
    network = card.build()
    load_weights(network, weights_file(weights))
    return network.eval(), card


def held_out(model: ModelOptions, data: DataOptions, given: Collection[str], *, batch_size: int) -> Loader:
    """The loader of the samples that the training of a run folder did not see, or of those held out of other data."""
    model, data = inherited(model, data, given)
    check_split(model, data)
    loaded = load(data, model)
    part, rows = validation_of(loaded, data)
    return eval_loader(loaded, part, batch_size=batch_size, indices=rows, workers=data.workers)
