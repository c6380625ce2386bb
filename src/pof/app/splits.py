"""The data of a run: loaded as its network wants them, split, and in mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pof._support.factory import is_factory
from pof.app.cards import as_trained, card_in
from pof.app.options import DataOptions, ModelOptions, TrainOptions, check_data
from pof.data import Data, load_data, split_validation, stratified_fraction, train_loader
from pof.data.batch_sampler import drops_last
from pof.data.description import DataSplit, Loader
from pof.data.mixing import Mixing
from pof.data.npy import is_arrays
from pof.data.registry import KNOWN
from pof.data.streaming import StreamData
from pof.models import preprocessing_of


@dataclass(frozen=True)
class Splits:
    """Indices into the training set; those of the validation data into ``held_in``."""

    chosen: torch.Tensor | None
    """Of the training set; None: all of a stream."""
    validation: torch.Tensor | None
    held_in: DataSplit = "train"
    """"validation" for a data set with validation data of its own."""

    @property
    def judged(self) -> tuple[DataSplit, ...]:
        """The parts of the data that a network is judged on."""
        return ("test",) if self.validation is None else ("test", self.held_in)

    @property
    def train(self) -> torch.Tensor:
        """The chosen samples; refused for a stream."""
        if self.chosen is None:
            raise ValueError(
                "the training data are a stream, whose samples have no numbers: give a Dataset with a length"
            )
        return self.chosen


def training_batches(
    loaded: Data,
    splits: Splits,
    data: DataOptions,
    training: TrainOptions,
    device: torch.device,
    place: tuple[int, int] = (0, 1),
) -> Loader:
    """The mini-batches that this process (rank, number of processes) trains with."""
    mixed = training.mixup, training.cutmix
    return train_loader(
        loaded,
        batch_size=training.batch_size,
        seed=training.seed,
        indices=splits.chosen,
        workers=data.workers,
        device=device,
        drop_last=splits.chosen is not None and drops_last(len(splits.chosen), training.batch_size),
        rank=place[0],
        world_size=place[1],
        balanced=training.sampler == "balanced",
        mixing=Mixing(loaded.num_classes, *mixed) if any(share is not None for share in mixed) else None,
        steps=training.steps_per_epoch,
    )


def load(options: DataOptions, model: ModelOptions | None = None) -> Data:
    """Load the data set that the options name; images in files as the network was trained with them."""
    check_data(options)
    card = None if model is None else card_in(model.weights)
    options = as_trained(options, card)
    said = (options.image_size, options.mean, options.std, options.interpolation, options.crop)
    own = None if card is None else card.preprocessing
    if model is not None and card is None and _is_prepared(options) and any(value is None for value in said):
        own = preprocessing_of(model.model, model.model_args, model.weights)
    return load_data(
        options.data,
        data_root=options.data_root,
        augment=options.augment,
        mean=options.mean,
        std=options.std,
        image_size=options.image_size,
        interpolation=options.interpolation,
        crop=options.crop,
        preprocessing=own,
    )


def _is_prepared(options: DataOptions) -> bool:
    """Whether the data are image files, or arrays that are read like them: others come as they are."""
    as_they_are = options.image_size is None and is_arrays(Path(options.data_root or "", options.data))
    return options.data not in KNOWN and not is_factory(options.data) and not as_they_are


def validation_of(loaded: Data, options: DataOptions) -> tuple[DataSplit, torch.Tensor]:
    """The part of the data set that holds the validation samples, and which of it they are; a ValueError for none."""
    found = split(loaded, options)
    if found.validation is None:
        raise ValueError("no validation samples: give --validation, the share of the training set held out")
    return found.held_in, found.validation


def split(loaded: Data, options: DataOptions) -> Splits:
    """Split the training set into training and validation, and cut training to size.

    Where a data set has validation data of its own, nothing is held out of the training set.
    """
    validation = None
    if options.validation and loaded.val_labels is not None:
        validation = torch.arange(len(loaded.val_labels))
    whole = options.train_size is None and options.fraction is None
    if isinstance(loaded, StreamData) and whole and (validation is not None or not options.validation):
        return Splits(None, validation, "validation")
    held_in: DataSplit = "train" if loaded.val_labels is None else "validation"
    labels = loaded.train_labels
    indices = torch.arange(len(labels))
    if options.validation and validation is None:
        indices, validation = split_validation(labels, options.validation, seed=options.split_seed)
    if options.train_size is not None and options.fraction is not None:
        raise ValueError(f"give train_size ({options.train_size}) or fraction ({options.fraction}), not both")
    for name, size in (("train_size", options.train_size), ("fraction", options.fraction)):
        if size is not None:
            indices = indices[stratified_fraction(labels[indices], size, seed=options.split_seed, name=name)]
    return Splits(indices, validation, held_in)
