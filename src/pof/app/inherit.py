"""What a run folder that is given as ``--weights`` says of its network and data, and what may be said against it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pof._support.factory import is_factory
from pof.app.cards import card_in
from pof.app.options import DataOptions, ModelOptions
from pof.app.places import identified
from pof.app.run_files import RunError, read_config, section_of
from pof.models import PRETRAINED
from pof.weights import NETWORK_FILE


def inherited(model: ModelOptions, data: DataOptions, given: Collection[str]) -> tuple[ModelOptions, DataOptions]:
    """Complete the options by what the run or file named by ``weights`` says, but for those that are ``given``.

    Of other data than the run's nothing is taken over but the network's preprocessing, where they are loaded.
    """
    run, card = _run_of(model.weights), card_in(model.weights)
    if card is not None:
        classes = None if model.source_classes is None else len(card.classes)
        model = _completed(
            model, given, model=card.model, head=card.head, source_classes=classes, model_args=dict(card.model_args)
        )
    if run is not None:
        _, own, before = run
        if card is None:  # of an older version
            model = _completed(model, given, model=own.model, head=own.head, model_args=own.model_args)
        if same_data(data, before) if "data" in given else Path(str(model.weights)).is_dir():
            # A root belongs to the words that were said below it.
            own_words = "data" in given and data.data != before.data
            data = _completed(data, {*given, "data_root"} if own_words else given, **_values(before, given))
    named = {"model": model.model, "data": data.data}
    for name, value in named.items():
        if not value:
            if model.weights not in {None, PRETRAINED} and not Path(str(model.weights)).exists():
                raise RunError(f"no such file or folder: {model.weights}")
            raise ValueError(f"give --{name}, or as --weights the folder of a run, which says it itself")
    factories = {"model": model.is_factory, "data": is_factory(data.data)}
    if asked := {name: value for name, value in named.items() if factories[name] and name not in given}:
        raise consent_to(model.weights, asked)
    return model, data


def check_trained(model: ModelOptions, purpose: str) -> None:
    """Refuse a network without weights, and one that gets a new head, where a trained one is needed."""
    if model.weights is None:
        raise ValueError(f"{purpose} needs a trained network: give --weights FILE (or the folder of a run)")
    if model.source_classes is not None:
        raise ValueError(
            f"--source_classes {model.source_classes} gives the network a new head, and {purpose} needs a trained one:"
            " leave it out, or train the head first (pof fine-tune)"
        )


def given_in(*groups: Any) -> set[str]:
    """Names of the options in groups that are neither as they are by default nor empty."""
    options = ((field, getattr(group, field.name)) for group in groups for field in fields(group))
    return {field.name for field, value in options if value not in (field.default, "", {})}


def consent_to(weights: str | None, factories: Mapping[str, str]) -> RunError:
    """The refusal to import factories that only the weights name, by the options that name them too."""
    names = " and ".join(map(repr, factories.values()))
    options = " ".join(f"--{option} {factory}" for option, factory in factories.items())
    return RunError(f"{weights} names the factory {names}, whose code would run: give {options} if you trust it")


def _completed(options: Any, given: Collection[str], **values: Any) -> Any:
    return replace(options, **{name: value for name, value in values.items() if name not in given})


def _values(before: DataOptions, given: Collection[str]) -> dict[str, Any]:
    """The run's options of data; of the two that say how much is trained on, none if one of them is given."""
    values = {field.name: getattr(before, field.name) for field in fields(before)}
    if {"train_size", "fraction"} & set(given):
        values |= {"train_size": None, "fraction": None}
    return values


def same_data(data: DataOptions, other: DataOptions) -> bool:
    """Whether two options name one data set."""
    return identified(data.data, data.data_root) == identified(other.data, other.data_root)


def check_split(model: ModelOptions, data: DataOptions) -> None:
    """Refuse to hold out samples that the network of a run folder was trained on."""
    run = _run_of(model.weights)
    if run is None or not data.validation:
        return
    folder, _, before = run
    if not same_data(data, before):
        return
    for name in ("validation", "split_seed"):
        if (now := getattr(data, name)) != (was := getattr(before, name)):
            raise ValueError(
                f"--{name} {now}: {folder} was trained with {name} {was}, so its network has seen samples that would be"
                f" held out now: leave out --{name}"
            )


def split_seed_of(model: ModelOptions, data: DataOptions) -> int | None:
    """The split of the run whose network a model is, where that was of these data; None for any other."""
    run = _run_of(model.weights)
    return run[2].split_seed if run is not None and same_data(data, run[2]) else None


def loss_of(weights: str | None) -> str:
    """The loss that the network was trained with, as its run folder says; cross-entropy where that says none."""
    return str(trained_with(weights).get("loss", "cross-entropy"))


def trained_with(weights: str | None) -> dict[str, Any]:
    """The options of the training whose run folder the weights are; none of other weights."""
    folder = run_folder(weights)
    found: dict[str, Any] = {} if folder is None else read_config(folder).get("training", {})
    return found


def run_folder(weights: str | None) -> Path | None:
    """The folder of the run that weights are of: itself, or that around its network's file; None for others."""
    path = Path(weights or "")
    folder = path.parent if path.name == NETWORK_FILE else path
    return folder if weights and (folder / "config.yaml").is_file() else None


def _run_of(weights: str | None) -> tuple[Path, ModelOptions, DataOptions] | None:
    """The folder of a run, and its options for network and data; None for anything else."""
    if (folder := run_folder(weights)) is None:
        return None
    config = read_config(folder)
    if "model" not in config or "data" not in config:
        return None
    return folder, section_of(config, folder, "model"), section_of(config, folder, "data")
