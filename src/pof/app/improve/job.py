"""``pof improve`` as the command line wants it: loaders out of options, and the test set once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pof.app import job
from pof.app.improve.deliver import improve
from pof.app.improve.page import write_page
from pof.app.improve.result import ImproveResult
from pof.app.options import DataOptions, ModelOptions, TrainOptions
from pof.app.run_folder import read_config, write_json
from pof.data import eval_loader, train_loader
from pof.training.evaluation import Metrics, evaluate
from pof.training.fit import find_device

if TYPE_CHECKING:
    from pof.app.cli._improve import ImproveOptions

BATCH = 128


def improve_network(
    model: ModelOptions, data: DataOptions, options: ImproveOptions, show: Callable[[Mapping[str, Any]], None]
) -> tuple[ImproveResult, tuple[Metrics, Metrics]]:
    """Search, write network, table and page, and judge the networks before and after on the test set, once."""
    if model.weights is None:
        raise ValueError("improve needs a trained network: give --weights FILE (or the folder of a run)")
    trained: dict[str, Any] = {}
    if Path(model.weights).is_dir():
        trained = read_config(Path(model.weights)).get("training", {})
    device = find_device(options.device)
    loaded = job.load(data)
    splits = job.split(loaded, data)
    network = job.load_network(model, loaded).to(device)
    training = TrainOptions(
        "finetune",
        batch_size=min(options.batch_size or trained.get("batch_size", BATCH), len(splits.train)),
        optimizer=options.optimizer or trained.get("optimizer", "sgd"),
        weight_decay=options.weight_decay,
        precision=options.precision,
        seed=options.seed,
    )
    rate = options.lr if options.lr is not None else trained.get("lr")
    evaluating: dict[str, Any] = {"batch_size": job.EVAL_BATCH, "workers": data.workers, "device": device}
    if options.validation_data is not None:
        own = job.load(replace(data, data=options.validation_data, data_root=None))
        validation = eval_loader(own, "train", **evaluating)
    elif splits.validation is None:
        raise ValueError("improve needs validation data: give --validation SHARE or --validation_data FOLDER")
    else:
        validation = eval_loader(loaded, "train", indices=splits.validation, **evaluating)
    batches = train_loader(
        loaded,
        batch_size=training.batch_size,
        seed=training.seed,
        indices=splits.train,
        workers=data.workers,
        device=device,
        drop_last=job.drops_last(len(splits.train), training.batch_size),
    )
    torch.manual_seed(options.seed)
    result = improve(
        network,
        batches,
        validation,
        budget=options.budget,
        candidates=options.candidates or None,
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        head=model.head,
        lr=rate if isinstance(rate, (int, float)) else None,
        training=training,
        device=device,
        log=show,
    )
    test = eval_loader(loaded, "test", **evaluating)
    figures = evaluate(network, test), evaluate(result.model, test)
    folder = Path(options.out)
    write_json(folder / "test.json", {"before": vars(figures[0]), "after": vars(figures[1])})
    write_page(result, folder / "report.html")
    return result, figures
