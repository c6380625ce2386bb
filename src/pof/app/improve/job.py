"""``pof improve`` as the command line wants it: loaders out of options, and the test set once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pof._support.checks import whole_number
from pof._support.random import seed_everything
from pof.app import job
from pof.app.engine.base import Engine
from pof.app.improve.deliver import improve
from pof.app.improve.page import write_page
from pof.app.improve.result import ImproveResult
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, TrainOptions
from pof.app.run_files import read_config
from pof.app.run_folder import write_json
from pof.data import Data, eval_loader
from pof.training.evaluation import Metrics, evaluate
from pof.training.fit import find_device

BATCH = 128


def improve_network(
    model: ModelOptions,
    data: DataOptions,
    options: ImproveOptions,
    show: Callable[[Mapping[str, Any]], None],
    *,
    engine: Engine | None = None,
) -> tuple[ImproveResult, tuple[Metrics, Metrics]]:
    """Search, write network, table and page, and judge the networks before and after on the test set, once."""
    if model.weights is None:
        raise ValueError("improve needs a trained network: give --weights FILE (or the folder of a run)")
    device = find_device(options.device)
    loaded = job.load(data)
    splits = job.split(loaded, data)
    network = job.load_network(model, loaded).to(device)
    training = _as_trained(model.weights, options, len(splits.train))
    evaluating = partial(eval_loader, batch_size=job.EVAL_BATCH, workers=data.workers, device=device)
    if options.validation_data is not None:
        own = job.load(replace(data, data=options.validation_data, data_root=None))
        _check_same_kind(own, loaded, options.validation_data, data.data)
        validation = evaluating(own, "train")
    elif splits.validation is None:
        raise ValueError("improve needs validation data: give --validation SHARE or --validation_data FOLDER")
    else:
        validation = evaluating(loaded, splits.held_in, indices=splits.validation)
    seed_everything(options.seed)
    result = improve(
        network,
        job.training_batches(loaded, splits, data, training, device),
        validation,
        budget=options.budget,
        candidates=options.candidates or None,
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        jobs=1 if options.jobs is None else options.jobs,
        engine=engine,
        head=model.head,
        lr=options.lr,
        training=training,
        device=device,
        log=show,
    )
    test = evaluating(loaded, "test")
    figures = evaluate(network, test), evaluate(result.model, test)
    folder = Path(options.out)
    write_json(folder / "test.json", {"before": vars(figures[0]), "after": vars(figures[1])})
    write_page(result, folder / "report.html")
    return result, figures


def _check_same_kind(own: Data, loaded: Data, name: str, of: str) -> None:
    """Refuse validation data of other inputs or classes than the training data."""
    if (own.in_channels, own.classes) != (loaded.in_channels, loaded.classes):
        raise ValueError(
            f"{name} (--validation_data) has inputs of {own.in_channels} channels and classes {', '.join(own.classes)},"
            f" where {of} has {loaded.in_channels} and {', '.join(loaded.classes)}"
        )


def _as_trained(weights: str, options: ImproveOptions, samples: int) -> TrainOptions:
    """Optimizer and batch size: given, or those of the network's own run."""
    trained: dict[str, Any] = {}
    if Path(weights).is_dir():
        trained = read_config(Path(weights)).get("training", {})
    size = trained.get("batch_size", BATCH) if options.batch_size is None else options.batch_size
    whole_number("batch_size", size, 1)
    return TrainOptions(
        "finetune",
        batch_size=min(size, samples),
        optimizer=options.optimizer or trained.get("optimizer", "sgd"),
        weight_decay=options.weight_decay,
        precision=options.precision,
        seed=options.seed,
    )
