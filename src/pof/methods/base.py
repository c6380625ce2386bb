"""What a method is: the loss of one training step, and what surrounds the step.

``fit`` knows methods through this class alone: one loop, many methods.  A method is an ``nn.Module`` around the
user's model, so ``to``, ``state_dict``, DDP and Accelerate treat it like any module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.batches import Inputs
from pof._support.precision import without_autocast
from pof.head.split import SplitModel
from pof.perturbation.linear import respond


@dataclass(frozen=True)
class StepOutput:
    """What one forward of a method gives."""

    loss: Tensor
    """Scalar; ``loss.backward()`` is all there is."""
    logits: Tensor
    """(N, C): the network's own, unperturbed, without graph."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth logging."""


class Method(nn.Module, ABC):
    """A way to train ``model``; subclasses are final."""

    needs_reference = False
    """Whether ``forward`` wants a second, independent mini-batch."""

    remedy = "lower the learning rate"
    """What to do when a run diverges."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_refuse_sharding)

    @abstractmethod
    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """Compute the loss of one step; ``out.loss.backward()`` is all that remains to do.

        Args:
            inputs: (N, ...), or a mapping passed to the model as keywords.
            targets: (N,) class indices or, where the method allows it, (N, C) probabilities.
            reference_inputs: another mini-batch, for the methods whose ``needs_reference`` is true; others ignore it.
            reference_targets: its targets.

        Returns:
            Loss, logits and metrics.
        """

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The user's model itself."""

    def candidate(self) -> nn.Module:
        """The network that is validated and delivered.

        Returns:
            ``model``, unless the method delivers another one, such as an average of its iterates.
        """
        return self.model

    def settings(self) -> dict[str, Any]:
        """The options that a run may not change when it resumes.

        Returns:
            Names and values (numbers, strings, None).
        """
        return {}

    def build_optimizer(self, base: Callable[..., Optimizer], **options: Any) -> Optimizer:
        """Make the optimizer that this method wants around a plain one.

        Args:
            base: an optimizer class, such as ``torch.optim.SGD``.
            **options: its options, such as ``lr``.

        Returns:
            ``base`` itself over the trainable parameters, unless the method wraps it.
        """
        return base(list(self.trainable_parameters()), **options)

    def before_epoch(self, epoch: int, epochs: int, optimizer: Optimizer) -> None:
        """What precedes epoch ``epoch`` (from 0) of ``epochs``; called again when a run resumes inside it."""

    def after_step(self) -> None:
        """What follows an optimizer step; called once after each."""

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[Inputs]]) -> None:
        """What follows epoch ``epoch`` (from 0) of ``epochs``, before its validation.

        Args:
            epoch: from 0.
            epochs: of the whole run.
            batches: gives the inputs of the training set anew, for statistics.
        """

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters to give to the optimizer.

        Yields:
            Those of the model that require a gradient.
        """
        distributed.reshard(self.model)
        yield from (p for p in self.model.parameters() if p.requires_grad)


def _refuse_sharding(method: nn.Module, _: Any) -> None:
    if distributed.is_fsdp(method):
        raise ValueError(
            "fully_shard was applied to the method: older versions of PyTorch do not find the loss in its output, and"
            " the gradients would stay those of one process; apply it to the model, fully_shard(method.model)"
        )


def float32_logits(network: SplitModel, features: Tensor, logits: Tensor) -> Tensor:
    """Logits in at least float32, whatever autocast made of the head.

    Args:
        network: the model, split.
        features: (N, D).
        logits: (N, C), from the same forward.

    Returns:
        ``logits`` themselves unless they are half precision; a linear head is then applied again in float32, unless
        it is sharded and trained: its gradient would pass FSDP2 by.
    """
    if logits.dtype not in {torch.float16, torch.bfloat16}:
        return logits
    if not network.linear or any(p.requires_grad and distributed.is_sharded(p) for p in network.head.parameters()):
        return logits.float()
    bias = network.bias
    return respond(features, network.weight.float(), None if bias is None else bias.float())


def cross_entropy_step(
    network: SplitModel,
    inputs: Inputs,
    targets: Tensor,
    label_smoothing: float,
    class_weights: Tensor | None,
) -> tuple[StepOutput, Tensor]:
    """Compute the plain loss of a mini-batch.

    Args:
        network: the model, split.
        inputs: (N, ...), or a mapping passed to the model as keywords.
        targets: (N,) class indices or (N, C) probabilities.
        label_smoothing: in [0, 1).
        class_weights: (C,) or None.

    Returns:
        Loss and logits, and the features (N, D) with their graph.
    """
    features, logits = network.features_and_logits(inputs)
    logits = float32_logits(network, features, logits)
    return StepOutput(mean_loss(logits, targets, label_smoothing, class_weights), logits.detach()), features


def check_loss_options(label_smoothing: float, class_weights: Tensor | None) -> None:
    """Check the options of the cross-entropy that every method takes.

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1) or a class weight is negative.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
    if class_weights is not None and bool((class_weights < 0).any()):
        raise ValueError(f"class_weights must not be negative; got {class_weights.tolist()}")


def check_not_in_ddp(model: nn.Module, head: nn.Module) -> None:
    """Check that a head that is to be frozen is not in DDP already.

    DDP notes at its construction which parameters will get gradients, and waits for them in every step.

    Raises:
        ValueError: if it is.
    """
    wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
    if wrapped and any(p.requires_grad for p in head.parameters()):
        raise ValueError(
            "the model is in DistributedDataParallel already, which would wait for the gradients of the head that the"
            " method freezes: put the method into it, DistributedDataParallel(pof.PoF(model))"
        )


def check_probabilities(targets: Tensor) -> None:
    """Check that floating-point targets are distributions: several labels per sample would pass unnoticed.

    Args:
        targets: (N,) class indices, which are not looked at, or (N, C) probabilities; these the host waits for.

    Raises:
        ValueError: if a row does not sum to 1.
    """
    if not targets.is_floating_point() or targets.ndim != 2:
        return
    # Half precision rounds a sum of many classes by this much.
    apart = (targets.detach().float().sum(dim=1) - 1).abs().amax()
    if not bool(apart < 0.02):
        raise ValueError(
            f"rows of floating-point targets must sum to 1, as probabilities do; got a row that is {apart:.2g} off."
            " For several labels per sample, or another loss, use pof.PoF(model, loss=...)"
        )


def mean_loss(logits: Tensor, targets: Tensor, label_smoothing: float, class_weights: Tensor | None) -> Tensor:
    """The mean cross-entropy of a mini-batch, outside of autocast.

    A process among several may have no sample in a mini-batch: its loss is 0, with a graph of zeros, so that it takes
    part in what the others exchange.

    Args:
        logits: (N, C).
        targets: (N,) class indices or (N, C) probabilities.
        label_smoothing: in [0, 1).
        class_weights: (C,) or None.

    Returns:
        Scalar.

    Raises:
        ValueError: if floating-point targets are no probabilities.
    """
    if distributed.active() and not logits.shape[0]:
        return logits.sum()
    check_probabilities(targets)
    with without_autocast(logits.device):
        return F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=label_smoothing)
