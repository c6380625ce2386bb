"""``pof train``, ``pof post-train`` and ``pof fine-tune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pof.app import job
from pof.app.cli._display import Display, console, metrics_table
from pof.app.inherit import check_trained, loss_of, run_folder
from pof.app.loggers import tracking
from pof.app.options import DataOptions, ModelOptions, RunOptions, TrainOptions, plain


def train(
    model: ModelOptions, data: DataOptions, training: TrainOptions, run: RunOptions, *, purpose: str | None = None
) -> int:
    """Train a network, from scratch or from weights; ``purpose`` names the command that needs a trained head."""
    if run.dry_run:
        from pof.app.cli._plan import show_run

        show_run(model, data, training, run, purpose)
        return 0
    if training.method == "l2sp" and training.weight_decay:
        console.print(
            f"note: a weight_decay of {training.weight_decay:g} pulls the weights to the origin beside the pull of l2sp"
            " to the incoming ones: --weight_decay 0 leaves that out",
            soft_wrap=True,
        )
    options = plain({"model": vars(model), "data": vars(data), "training": vars(training)})
    with Display() as display, tracking(run.logger, Path(run.out).resolve().name, options) as track:

        def tell(row: Mapping[str, Any]) -> None:
            display(row)
            track(row)

        result = job.train(model, data, training, run, tell, purpose)
    if result.fit.stopped == "interrupted":
        console.print(result.fit.message)
        return 130
    columns = {} if result.before is None else {"before": result.before}
    if result.after is not None:
        columns["after"] = result.after
    console.print(metrics_table(f"{data.data}, test set", columns))
    console.print(result.fit.message, soft_wrap=True)
    console.print(f"written to {result.folder}", soft_wrap=True)
    return 1 if result.fit.stopped == "diverged" and result.fit.best_epoch == 0 and not model.is_trained else 0


def post_train(model: ModelOptions, data: DataOptions, training: TrainOptions, run: RunOptions) -> int:
    """Post-train a network that is trained already."""
    check_trained(model, "post-train")
    if data.validation and run_folder(model.weights) is None:
        console.print(
            "note: if this network was trained on the samples now held out for validation, they favour it over every"
            " epoch; --validation 0 hands back the last epoch unjudged",
            soft_wrap=True,
        )
    if (own := loss_of(model.weights)) != training.loss:
        console.print(
            f"note: {model.weights} was trained with the loss {own}, and is post-trained with {training.loss}: give"
            f" --loss {own} to go on with that",
            soft_wrap=True,
        )
    return train(model, data, training, run, purpose="post-train")


def fine_tune(model: ModelOptions, data: DataOptions, training: TrainOptions, run: RunOptions) -> int:
    """Train a pre-trained backbone with a new head."""
    if not model.is_trained:
        raise ValueError("fine-tune needs a pre-trained backbone: give --weights FILE (for timm also: pretrained)")
    return train(model, data, training, run)
