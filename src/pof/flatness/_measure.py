"""What every measurement shares: the state it runs in, the data it reads and how a mean over that data is taken.

A measurement leaves no trace: every module gets its mode back, parameters, buffers, ``.grad`` and the generators, a
loader's own too, are as before.  A mean weighs samples, not batches.  Autocast is off: numbers are in the parameters'
dtype.  Other weights than the network's own are tried by functional call: no parameter is modified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pof._support.batches import Inputs, arguments, check_inputs, for_training, unpack
from pof._support.checks import gives_batches, whole_number
from pof._support.modules import buffers_kept, evaluating
from pof._support.precision import at_least_float32, without_autocast
from pof._support.random import isolated, loader_preserved
from pof.head.reading import Reading
from pof.perturbation.broadcasting import without_broadcasting
from pof.perturbation.loss import CrossEntropy, ignored_class, unwrapped, weight_of
from pof.perturbation.targets import IGNORED

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)`` -> scalar: the mean over the samples of a batch, as ``nn.CrossEntropyLoss()``."""

Progress = Callable[[str, int, int | None], None]
"""``progress(stage, done, total)``: called after each unit of a long computation; total is None if not known."""

Weights = dict[str, Tensor]
"""Parameter name -> tensor."""
Data = list[tuple[Inputs, Tensor]]

# How the outputs of the networks that are being measured are read.
_readings: dict[nn.Module, Reading] = {}
# Of these the loss has been watched: once, as it is called thousands of times.
_watched: set[nn.Module] = set()


@contextmanager
def measuring(model: nn.Module, seed: int, head: str | None = None) -> Iterator[torch.device]:
    """Run the body in eval mode, without autocast, on global generators of its own (a shuffling loader uses them).

    Also where the caller is in inference mode, in which there are no gradients.
    """
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1:
        raise ValueError(f"the model's parameters must lie on one device; found {sorted(map(str, devices))}")
    (device,) = devices
    _readings[model] = Reading(model, head)
    try:
        with (
            torch.inference_mode(False),
            evaluating(model),
            buffers_kept(model),
            isolated(seed, device),
            without_autocast(device),
        ):
            yield device
    finally:
        del _readings[model]
        _watched.discard(model)


def read(
    loader: Iterable[Any], batches: int | None, device: torch.device, stage: str, progress: Progress | None
) -> Iterator[tuple[Inputs, Tensor]]:
    """Go through the first ``batches`` batches of a loader once (None: all), each on ``device``."""
    gives_batches("loader", loader)
    if batches is not None:
        whole_number("batches", batches, 1)
    total = batches
    with suppress(TypeError):  # a DataLoader of a stream has a length in name alone
        total = len(cast(Sized, loader)) if batches is None else min(batches, len(cast(Sized, loader)))
    done = 0
    with loader_preserved(loader):
        for done, batch in enumerate(islice(loader, batches), start=1):
            inputs, targets = unpack(batch)
            check_inputs(inputs)
            yield for_training(inputs, device), for_training(targets, device)
            report(progress, stage, done, total)
    if done == 0:
        raise ValueError("the loader gave no batch: check its data set, batch_size and drop_last")


def report(progress: Progress | None, stage: str, done: int, total: int | None) -> None:
    """Call the hook if there is one."""
    if progress is not None:
        progress(stage, done, total)


def check_mean(loss: Loss) -> None:
    """Refuse a loss whose ``reduction`` says that it is not a mean."""
    function, options = unwrapped(loss)
    reduction = options.get("reduction", getattr(function, "reduction", "mean"))
    if reduction != "mean":
        raise ValueError(f"loss must be the mean over the batch (reduction='mean'); got reduction={reduction!r}")


def check_wide(model: nn.Module) -> None:
    """Refuse weights in half precision, which rounds small steps away."""
    narrow = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize < 4), None)
    if narrow is not None:
        raise ValueError(
            f"weights in {narrow} round small steps away, and the loss with them: measure a copy in float32,"
            " copy.deepcopy(model).float(), on inputs in float32"
        )


def counting(loss: Loss, data: Iterable[tuple[Inputs, Any]]) -> Iterator[tuple[Inputs, Any]]:
    """The mini-batches with a target that counts; the mean loss of any other is 0 / 0."""
    empty = True
    for inputs, targets in data:
        if float(weight_of(loss, targets)):
            empty = False
            yield inputs, targets
    if empty:
        raise ValueError("no target counts: all are to be ignored, or of classes whose weight is 0")


def weights_of(loss: Loss, data: Data) -> list[float]:
    """Weight of each batch in the mean over the data, not normalised."""
    return [float(weight_of(loss, targets)) for _, targets in data]


def cross_entropy_options(loss: Loss) -> tuple[float, Tensor | None, int | None] | None:
    """Recognise the cross-entropy, for which a linear head has closed forms: its smoothing, weights, ignored index."""
    function, options = unwrapped(loss)
    if function is F.cross_entropy:
        return options.get("label_smoothing", 0.0), options.get("weight"), ignored_class(loss)
    # A subclass with a forward of its own, such as a focal loss, is another loss.
    if getattr(type(function), "forward", None) in (nn.CrossEntropyLoss.forward, CrossEntropy.forward):
        return function.label_smoothing, function.weight, ignored_class(loss)
    return None


def outputs_of(
    model: nn.Module, inputs: Inputs, weights: Weights | None = None, loss: Loss = F.cross_entropy, targets: Any = None
) -> Tensor:
    """Logits (N, C) of a mini-batch, of the model with other weights where they are given.

    Probabilities are turned into logits for the cross-entropy; any other loss gets them as they are.
    """
    reading = _readings.get(model) or Reading(model)
    args = arguments(model, inputs)
    if weights is None:
        output = model(*args[0], **args[1])
    else:
        output = functional_call(_Held(model), {f"model.{name}": w for name, w in weights.items()}, *args)
    return reading(output, inputs, targets, log=cross_entropy_options(loss) is not None)


def loss_on(model: nn.Module, loss: Loss, weights: Weights, inputs: Inputs, targets: Tensor) -> Tensor:
    """Loss of a mini-batch, of the model with other weights; one that would broadcast its targets is refused."""
    outputs = outputs_of(model, inputs, weights, loss, targets)
    if model in _watched:
        return loss(outputs, targets)
    value = without_broadcasting(loss, outputs, targets)
    if model in _readings and len(outputs) > 1:
        _watched.add(model)
    return value


class _Held(nn.Module):
    """A module around the model: torch calls no TorchScript module itself with other weights, but one inside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@torch.no_grad()
def mean_loss(model: nn.Module, loss: Loss, weights: Weights, data: Data) -> float:
    """Mean loss over the data of the model with other weights, accumulated in float64."""
    counts = weights_of(loss, data)
    total = sum(counts)
    return sum(float(loss_on(model, loss, weights, x, y)) * n / total for (x, y), n in zip(data, counts, strict=True))


@torch.enable_grad()
def mean_gradient(model: nn.Module, loss: Loss, weights: Weights, data: Data) -> tuple[float, Weights]:
    """Mean loss over the data and its gradient in ``weights``, zero for those without part in it; ``.grad`` stays."""
    counts = weights_of(loss, data)
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    mean, sums = 0.0, {name: torch.zeros_like(w) for name, w in weights.items()}
    for (x, y), n in zip(data, counts, strict=True):
        value, share = loss_on(model, loss, leaves, x, y), n / sum(counts)
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for name, g in zip(leaves, gradients, strict=True):
            sums[name] += share * g
        mean += share * float(value.detach())
    return mean, sums


@dataclass(frozen=True)
class Stored:
    """Features and logits of every sample, computed once; what enters the head and what it gives."""

    features: Tensor
    """(N, D), at least float32."""
    logits: Tensor
    """(N, C), at least float32."""
    targets: Tensor
    """(N,) class indices or (N, C) probabilities."""
    sizes: tuple[int, ...]
    """Samples per batch, in order."""


@torch.no_grad()
def store(forward: Callable[[Inputs], tuple[Tensor, Tensor]], data: Iterable[tuple[Inputs, Tensor]]) -> Stored:
    """Run ``forward``, inputs -> (features (B, D), logits (B, C)), over the data once and keep what it gives."""
    features, logits, targets, sizes = [], [], [], []
    for inputs, wanted in data:
        f, z = forward(inputs)
        features.append(at_least_float32(f))
        logits.append(at_least_float32(z))
        targets.append(wanted)
        sizes.append(len(wanted))
    stored = Stored(torch.cat(features), torch.cat(logits), torch.cat(targets), tuple(sizes))
    if not bool(stored.features.isfinite().all() and stored.logits.isfinite().all()):
        raise ValueError("the network's features or logits are not finite: check its weights for NaN")
    return stored


def without_ignored(targets: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Targets, (N,) class indices or (N, C) probabilities, and others (N, ...), of the samples that count."""
    part = targets != IGNORED if targets.ndim == 1 else torch.ones(len(targets), dtype=torch.bool)
    if not bool(part.any()):
        raise ValueError(f"no target counts: all {len(targets)} are {IGNORED}, to be ignored")
    return tuple(each[part.to(each.device)] for each in (targets, *others))


def hard_labels(targets: Tensor) -> Tensor:
    """Class (N,) of each sample; for probabilities (N, C) the most probable one."""
    return targets.argmax(dim=1) if targets.is_floating_point() else targets.long()


@dataclass(frozen=True)
class Estimate:
    """A mean over independent probes."""

    value: float
    standard_error: float


def mean_of(values: Tensor) -> Estimate:
    """Mean of independent values (n,), NaN where n is 0, and its standard error, NaN where n < 2."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error)
