"""A trained network and its card, from whatever names it: a run folder, weights with a card, or weights and data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from pof.app import job
from pof.app.cards import card_in, card_of, same_model, weights_file
from pof.app.inherit import check_split, inherited
from pof.app.options import DataOptions, ModelOptions
from pof.app.run_files import RunError
from pof.data import DatasetLoader, TensorLoader, eval_loader
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
        loaded = job.load(data, model)
        return job.load_network(model, loaded).eval(), card_of(model, loaded, model.head)
    if "model" in given and not same_model(model.model, card.model):
        raise ValueError(f"--model {model.model}: the network in {model.weights} is {card.model}: leave out --model")
    if replace(model, model=card.model).is_factory and "model" not in given:
        raise RunError(
            f"{model.weights} names the factory {card.model!r}, whose code would run: give --model {card.model} if you"
            " trust it"
        )
    network = card.build()
    load_weights(network, weights_file(weights))
    return network.eval(), card


def held_out(
    model: ModelOptions, data: DataOptions, given: Collection[str], *, batch_size: int
) -> TensorLoader | DatasetLoader:
    """The loader of the samples that the training of a run folder did not see, or of those held out of other data."""
    model, data = inherited(model, data, given)
    check_split(model, data)
    loaded = job.load(data, model)
    splits = job.split(loaded, data)
    if splits.validation is None:
        raise ValueError("there are no validation samples: give --validation, the share of the training set held out")
    rows, workers = splits.validation, data.workers
    return eval_loader(loaded, splits.held_in, batch_size=batch_size, indices=rows, workers=workers)
