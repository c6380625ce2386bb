"""``pof improve`` as the command line wants it: loaders out of options, and the test set once, at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pof._support.checks import whole_number
from pof._support.random import seed_everything
from pof.app import job
from pof.app.cards import card_of, load_network
from pof.app.engine.base import Engine
from pof.app.improve.folder import OF_A_SEARCH, QUESTION
from pof.app.improve.improve import improve
from pof.app.improve.page import write_page
from pof.app.improve.result import ImproveResult
from pof.app.inherit import check_trained, same_data, trained_with
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, TrainOptions, plain
from pof.app.places import START, start_from
from pof.app.run_folder import COMMIT, NETWORK, check_removable, commit, write_json, write_yaml
from pof.app.splits import load, training_batches
from pof.data import Data, ImageData, eval_loader
from pof.data.description import DataSplit
from pof.head.search import find_head
from pof.training.evaluation import Metrics, evaluate
from pof.training.fit import find_device

BATCH = 128
PLACES = ("data", "data_root", "workers")
"""Options of data that may be others where a search goes on: what they give is compared by its content."""


def improve_network(
    model: ModelOptions,
    data: DataOptions,
    options: ImproveOptions,
    show: Callable[[Mapping[str, Any]], None],
    *,
    engine: Engine | None = None,
) -> tuple[ImproveResult, tuple[Metrics, Metrics]]:
    """Search, write network, table and page, and judge the networks before and after on the test set, once."""
    training = as_trained_before(model, options)
    device = find_device(options.device)
    if options.validation_data is not None:
        data = replace(data, validation=0.0)
    loaded, splits = job.load_for(model, data, training, "improve")
    network = load_network(model, loaded).to(device)
    card = card_of(model, loaded, model.head or find_head(network))
    training = replace(training, batch_size=min(training.batch_size, len(splits.train)))
    evaluating = partial(eval_loader, batch_size=job.EVAL_BATCH, workers=data.workers, device=device)
    if options.validation_data is not None:
        own = _load_validation(options.validation_data, loaded, data, model)
        whole: tuple[DataSplit, ...] = ("train", "test") if own.test_taken else ("train",)
        parts = ("validation",) if own.val_labels is not None else whole
        validation: Iterable[Any] = _Joined([evaluating(own, part) for part in parts])
    elif splits.validation is None:
        raise ValueError("improve needs validation data: give --validation SHARE or --validation_data FOLDER")
    else:
        validation = evaluating(loaded, splits.held_in, indices=splits.validation)
    seed_everything(options.seed)
    folder = Path(options.out)
    if options.overwrite and (folder / QUESTION).is_file():
        check_removable(folder, model.weights, OF_A_SEARCH)
    config = plain({"model": vars(model), "data": vars(data), "improve": vars(options), NETWORK: vars(card)})

    def say_how_to_go_on() -> None:
        write_yaml(folder / "config.yaml", config | {COMMIT: commit(), START: start_from(folder)})

    result = improve(
        network,
        training_batches(loaded, splits, data, training, device),
        validation,
        budget=options.budget,
        candidates=options.candidates or None,
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        overwrite=options.overwrite,
        jobs=1 if options.jobs is None else options.jobs,
        engine=engine,
        head=model.head,
        lr=options.lr,
        training=training,
        device=device,
        log=show,
        taken=say_how_to_go_on,
        metadata=card.metadata(),
        settings={f"data.{name}": value for name, value in plain(vars(data)).items() if name not in PLACES},
    )
    test = evaluating(loaded, "test")
    figures = evaluate(network, test), evaluate(result.model, test)
    write_json(folder / "test.json", {"before": vars(figures[0]), "after": vars(figures[1])})
    write_page(result, figures, folder / "report.html")
    return result, figures


@dataclass(frozen=True)
class _Joined:
    """The mini-batches of loaders, one after the other."""

    loaders: Sequence[Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.loaders)


def _load_validation(name: str, loaded: Data, data: DataOptions, model: ModelOptions) -> Data:
    """Validation data of the user's own, normalised as the training data; others of inputs or classes are refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no test data")  # none of them are for a test
        own = load(options := replace(data, data=name, data_root=None), model)
    if own.val_labels is None and same_data(options, data):
        raise ValueError(
            f"{name} (--validation_data) is the data set that is trained on, and has no part for validation: give other"
            " data, or in its place --validation SHARE"
        )
    if (own.in_channels, own.classes) != (loaded.in_channels, loaded.classes):
        raise ValueError(
            f"{name} (--validation_data) has inputs of {own.in_channels} channels and classes {', '.join(own.classes)},"
            f" where {data.data} has {loaded.in_channels} and {', '.join(loaded.classes)}"
        )
    if isinstance(own, ImageData) and loaded.mean is not None and loaded.std is not None:
        return replace(own, mean=loaded.mean, std=loaded.std)
    return own


def as_trained_before(model: ModelOptions, options: ImproveOptions) -> TrainOptions:
    """Optimizer and batch size: given, or those of the network's own run."""
    check_trained(model, "improve")
    trained = trained_with(model.weights)
    if (loss := trained.get("loss", "cross-entropy")) != "cross-entropy":
        warnings.warn(
            f"{model.weights} was trained with the loss {loss}, and candidates are trained and judged with the"
            f" cross-entropy, for classifiers: post-train it with --loss {loss} to go on with that",
            stacklevel=2,
        )
    size = trained.get("batch_size", BATCH) if options.batch_size is None else options.batch_size
    whole_number("batch_size", size, 1)
    return TrainOptions(
        "finetune",
        batch_size=size,
        optimizer=options.optimizer or trained.get("optimizer", "sgd"),
        weight_decay=options.weight_decay,
        precision=options.precision,
        seed=options.seed,
    )
