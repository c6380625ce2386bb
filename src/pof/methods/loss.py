"""The loss of a mini-batch, as every method takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from pof._support import distributed
from pof._support.batches import Inputs
from pof.head.split import SplitModel
from pof.methods.base import StepOutput
from pof.perturbation.linear import respond
from pof.perturbation.loss import CrossEntropy, Loss, LossFunction
from pof.perturbation.tasks import LOSSES, Custom

__all__ = ["AskedLoss", "CrossEntropy", "Loss", "chosen_loss", "features_and_logits", "mean_loss", "plain_step"]

AskedLoss = str | LossFunction | None
"""``"cross-entropy"`` (None), ``"bce"``, ``"mse"``, ``"ordinal"``, or a function of outputs (N, C) and targets."""


def chosen_loss(asked: AskedLoss, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> Loss:
    """The cross-entropy with its options, or another loss, which has none of them."""
    usual = CrossEntropy(label_smoothing, class_weights)
    if asked is None or asked == "cross-entropy":
        return usual
    if not callable(asked) and asked not in LOSSES:
        names = ", ".join(LOSSES)
        raise ValueError(f"loss must be one of {names}, or a function of outputs and targets; got {asked!r}")
    if label_smoothing or class_weights is not None:
        raise ValueError("label_smoothing and class_weights belong to the cross-entropy: put them into your loss")
    if isinstance(asked, str):
        return LOSSES[asked]()
    return asked if isinstance(asked, Loss) else Custom(asked)


def mean_loss(loss: Loss, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of logits (N, C), also where there is no sample in the mini-batch, or none of this process."""
    # It is 0 with a graph of zeros, so that a process takes part in what the others exchange.
    if not logits.shape[0]:
        return logits.sum()
    found: Tensor = loss(logits, targets)
    return found


def features_and_logits(network: SplitModel, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Features and logits (N, C) from one forward, the logits in at least float32 whatever autocast does."""
    features, logits = network.features_and_logits(inputs)
    if logits.dtype not in {torch.float16, torch.bfloat16}:
        return features, logits
    # A linear head is applied again, unless it is sharded and trained: its gradient would pass FSDP2 by.
    if not network.linear or any(p.requires_grad and distributed.is_sharded(p) for p in network.head.parameters()):
        return features, logits.float()
    bias = network.bias
    return features, respond(features, network.weight.float(), None if bias is None else bias.float())


def plain_step(network: SplitModel, loss: Loss, inputs: Inputs, targets: Tensor) -> StepOutput:
    """The plain loss and the logits of a mini-batch."""
    logits = network.returned(inputs) if network.returns_logits else features_and_logits(network, inputs)[1]
    return StepOutput(mean_loss(loss, logits, targets), logits.detach())
