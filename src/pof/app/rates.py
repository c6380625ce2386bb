"""``--lr auto``: a learning rate relative to the one that the network was trained with.

The shares are what was best on validation splits of two small data sets (docs/log.md); PoF's is the paper's, 1.6e-4
after a training at 0.1.  Post-training with another optimizer than that of the training has no such rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pof.app.options import ModelOptions, TrainOptions
from pof.app.run_folder import read_config

POF_SHARE, SHARE = 1.6e-3, 0.5


def learning_rate(model: ModelOptions, training: TrainOptions) -> float:
    """Find the learning rate of a run.

    Args:
        model: its ``weights`` name the folder of the run that trained the network.
        training: ``lr`` is a number, which is returned, or ``"auto"``.

    Returns:
        The peak learning rate.

    Raises:
        ValueError: if the rate of the network's training is not known, or was another optimizer's.
    """
    if training.lr != "auto":
        return training.lr
    if model.weights is None or not Path(model.weights).is_dir():
        raise ValueError(
            f"lr auto reads the learning rate from the folder of the run that trained the network, and weights are"
            f" {model.weights!r}: give --lr (half of the training's peak rate; PoF: {POF_SHARE} of it)"
        )
    trained: dict[str, Any] = read_config(Path(model.weights)).get("training", {})
    rate, optimizer = trained.get("lr"), trained.get("optimizer")
    if not isinstance(rate, (int, float)) or optimizer != training.optimizer:
        raise ValueError(
            f"lr auto cannot follow the training of {model.weights} (lr {rate!r} of {optimizer!r}, now"
            f" {training.optimizer!r}): give --lr"
        )
    return (POF_SHARE if training.method == "pof" else SHARE) * rate
