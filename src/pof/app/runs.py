"""A run folder as Python takes it: the network with its weights, and all that is needed to use it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pof._support.factory import is_factory
from pof._support.preprocessing import Preprocessing
from pof.app.cards import card_in, known_card, weights_file
from pof.app.options import DataOptions, ModelOptions
from pof.app.predict import Predictions, predict
from pof.app.run_files import RunError, read_config, section_of
from pof.app.splits import load
from pof.models.card import NetworkCard
from pof.weights import load_weights


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, and what it needs to be used."""

    model: nn.Module
    """In evaluation mode, on the CPU."""
    card: NetworkCard
    """How to build it, what it takes, and what its outputs mean."""
    config: dict[str, Any]
    """The settings of its run, as config.yaml has them."""
    folder: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of the outputs."""
        return self.card.classes

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How an image file becomes an input; None where inputs come as tensors."""
        return self.card.preprocessing

    def predict(
        self, paths: Sequence[str | os.PathLike[str]], *, top: int = 1, temperature: float = 1.0
    ) -> Predictions:
        """Classify image files.

        Args:
            paths: of the N images.
            top: number of classes to name for each, k.
            temperature: T of softmax(z / T).

        Returns:
            ``labels`` and ``probabilities`` (N, k) of ``paths``; images that cannot be read are in ``unreadable``.

        Raises:
            ValueError: if the network takes no image files, or a number is out of range.
        """
        if isinstance(paths, str | Tensor) or not all(isinstance(path, str | os.PathLike) for path in paths):
            raise ValueError("predict takes a list of paths of images: for inputs in tensors call run.model(inputs)")
        return predict(self.model, self.card, paths, top=top, temperature=temperature)


def load_run(folder: str | os.PathLike[str], *, trust_factories: bool = False) -> LoadedRun:
    """Load the network of a run folder; nothing else is needed for it.

    Args:
        folder: of a run of ``pof train``, ``post-train``, ``fine-tune``, ``improve``, or a stage of an experiment.
        trust_factories: import a model (of a run of an older version also data) that the folder names as
            ``package.module:factory``: its code runs.

    Returns:
        The network in evaluation mode with its weights, its classes and its preprocessing.

    Raises:
        RunError: (a ValueError) if the folder holds no run that has ended, or names a factory that is not trusted.
        WeightsError: if the weights are damaged or do not fit the network.
    """
    path = Path(folder)
    config, file = read_config(path), weights_file(path)
    model: ModelOptions = section_of(config, path, "model")
    card = card_in(file)
    check_trusted(path, model, section_of(config, path, "data") if card is None else None, trust_factories)
    if card is None:  # of an older version: the data say which classes there are
        card = known_card(ModelOptions(model.model, str(path)), load(section_of(config, path, "data"), model))
    assert card is not None
    network = card.build()
    load_weights(network, file)
    return LoadedRun(network.eval(), card, config, path)


def check_trusted(folder: Path, model: ModelOptions, data: DataOptions | None, trusted: bool) -> None:
    """Refuse to import the factories that a run folder names, unless they are trusted."""
    named = [model.model] if model.is_factory else []
    named += [data.data] if data is not None and is_factory(data.data) else []
    if named and not trusted:
        raise RunError(
            f"{folder}/config.yaml names the factory {named[0]!r}, whose code would run: give --trust_factories (in"
            " Python trust_factories=True) if you trust it"
        )
