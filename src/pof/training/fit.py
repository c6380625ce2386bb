"""``fit(method, loader)``: train with any method, guarded.

The network handed back is the best on validation, the incoming one counting as epoch 0; a run that diverges is
stopped and rolled back with a message that names step and remedy; a run that is killed resumes bitwise identically.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from pof._support import agreement, distributed
from pof._support.agreement import agree, naming_lost
from pof._support.checks import MOST_EPOCHS, finite, gives_batches, whole_number
from pof._support.devices import accelerator
from pof._support.modules import check_values, modes_kept, refuse_lazy, refuse_no_grad
from pof._support.precision import AUTOCAST, AskedPrecision, find_precision
from pof.methods import Method
from pof.training.checkpoint import refuse_overwriting
from pof.training.interrupt import Interrupts
from pof.training.loop import Log, Loop
from pof.training.progress import telling
from pof.training.result import DivergenceWarning, FitResult, InterruptionWarning
from pof.training.schedules import Schedule
from pof.training.settings import Timetable, fingerprint, shared
from pof.training.step import Stepper
from pof.training.stream import micro_batches, samplers_of
from pof.training.tasks import AskedMetric

__all__ = ["DivergenceWarning", "FitResult", "InterruptionWarning", "default_optimizer", "find_device", "fit"]

# Where launchers say how many processes there are.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


def default_optimizer(parameters: Iterable[nn.Parameter], *, nesterov: bool = True) -> Optimizer:
    """SGD with Nesterov momentum 0.9 (``fit``: plain for MSAM), learning rate 1e-3, weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)


def fit(
    method: Method,
    train_loader: Iterable[Any],
    *,
    epochs: int = 10,
    optimizer: Optimizer | MakeOptimizer = default_optimizer,
    schedule: Schedule = Schedule(),  # noqa: B008 -- frozen
    val_loader: Iterable[Any] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    accumulation: int = 1,
    clip_norm: float | None = None,
    precision: AskedPrecision = "fp32",
    device: str | torch.device | None = None,
    log: Log | None = None,
    metric: AskedMetric = None,
    progress: bool | float = False,
) -> FitResult:
    """Train with a method.

    Several processes (``torchrun``) are found; the loader gives each its share, as a ``DistributedSampler`` does.
    Ctrl-C and SIGTERM stop it after the step, with a warning; a second Ctrl-C at once, as KeyboardInterrupt.
    Batch norms in eval mode stay frozen; modes, hooks and ``requires_grad`` are at the end as before the method.

    Args:
        method: such as :class:`pof.PoF` around a model.
        train_loader: yields ``(inputs, targets)`` or dicts with ``labels``; has a length.
        epochs: passes over ``train_loader``, >= 1.
        optimizer: over ``method.trainable_parameters()``, or a function of them, which the method wraps as it wants
            (:meth:`Method.build_optimizer`); by default SGD.
        schedule: of the learning rate, over all steps: a cosine to 0, for SWA (which refuses that) a constant rate.
        val_loader: for the selection, never the test set; draws alike in each epoch.  Without it the last epoch counts.
        checkpoint_dir: folder of the training state; None keeps none.
        resume: go on from the state in ``checkpoint_dir``; starts from the beginning where there is none.
        checkpoint_every: optimizer steps between checkpoints, beside the one after each epoch.
        accumulation: mini-batches per optimizer step; each counts by its samples.
        clip_norm: upper bound on the gradient's 2-norm (of SAM's second pass), or None.
        precision: ``"fp32"``, autocast to ``"bf16"`` or ``"fp16"`` (scaled), or ``"auto"``: bf16 where hardware has it.
        device: None takes the accelerator, else the CPU.
        log: called with a row per step, per epoch, and at the end.
        metric: what validation chooses by, as in :func:`pof.evaluate`; smaller is better, unless it has the attribute
            ``higher_is_better``.  None: errors, or the first figure of another loss; among equals NLL or loss.
        progress: show a bar, or without a terminal plain lines, every 10 seconds or so many as are given.

    Returns:
        What happened; ``method.model`` holds the selected weights.

    Raises:
        ValueError: if an argument is bad (TypeError for a schedule), or ``checkpoint_dir`` holds a state already.
        CheckpointError: if the state to resume from is damaged or of another configuration.
    """
    _check_numbers(epochs, accumulation, checkpoint_every, clip_norm)
    _check_choices(method, schedule, resume, checkpoint_dir)
    place = _placed(method, device)
    _check_loaders(train_loader, val_loader, checkpoint_dir)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with naming_lost(), _attached(method), modes_kept(method), Interrupts() as stop, telling(log, progress) as tell:
        made, found, length = _made(method, optimizer), find_precision(precision, place), length_of(train_loader)
        rates, steps = schedule.settled(Schedule(method.schedule_kind)), math.ceil(length / accumulation)
        times = Timetable(epochs, steps, accumulation, checkpoint_every, rates)
        alike = fingerprint(method, made, times, AUTOCAST[found], clip_norm, metric) | shared(method, checkpoint_every)
        _agree(alike | {"resume": resume}, length, place, val_loader, folder)
        parts = Stepper(method, made, found, clip_norm), micro_batches(train_loader, method.needs_reference, place)
        result = Loop(method, *parts, times, val_loader, folder, tell, metric).run(resume, stop)
    if result.stopped == "interrupted":
        warnings.warn(f"{result.message}; result.stopped says so too", InterruptionWarning, stacklevel=2)
    elif stop.name:
        end = "the run is complete" if result.stopped is None else result.message
        warnings.warn(f"{stop.name} came after the last step: {end}", InterruptionWarning, stacklevel=2)
    return result


def _agree(settings: dict[str, Any], length: int, place: torch.device, val_loader: Any, checkpoint_dir: Any) -> None:
    """Compare what must be the same in all processes; only then may one of them stop."""
    own = {"val_loader": val_loader is not None, "checkpoint_dir": checkpoint_dir is not None, "device": place.type}
    agree({"the length of train_loader": length, **settings, **own})
    if not length:
        raise ValueError("the training loader is empty: is its batch size larger than the data, with drop_last?")


@contextmanager
def _attached(method: Method) -> Iterator[None]:
    """The method holds the model for the body only."""
    method.attach()
    try:
        yield
    finally:
        method.release()


def _check_numbers(epochs: int, accumulation: int, checkpoint_every: int | None, clip_norm: float | None) -> None:
    whole_number("epochs", epochs, 1, MOST_EPOCHS)
    whole_number("accumulation", accumulation, 1)
    if checkpoint_every is not None:
        whole_number("checkpoint_every", checkpoint_every, 1)
    if clip_norm is not None:
        finite("clip_norm", clip_norm, above=0)


def _check_choices(method: Any, schedule: Any, resume: bool, checkpoint_dir: str | Path | None) -> None:
    refuse_no_grad("pof.fit")
    if not isinstance(method, Method):
        raise ValueError(f"method must be a pof.Method, such as pof.Finetune(model); got {type(method).__name__}")
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a pof.Schedule, such as Schedule(kind='cosine'); got {schedule!r}")
    if resume and checkpoint_dir is None:
        raise ValueError("resume=True needs checkpoint_dir: the folder that the interrupted run wrote to")
    if checkpoint_dir is not None and Path(checkpoint_dir).exists() and not Path(checkpoint_dir).is_dir():
        raise ValueError(f"checkpoint_dir must be a folder; got the file {str(checkpoint_dir)!r}")
    if checkpoint_dir is not None and not resume:
        refuse_overwriting(Path(checkpoint_dir))


def _made(method: Method, make: Optimizer | MakeOptimizer) -> Optimizer:
    if isinstance(make, Optimizer):
        made = make
    elif not callable(make):
        raise ValueError(
            f"optimizer must be a torch.optim.Optimizer, or a function of the parameters that returns one; got {make!r}"
        )
    else:
        usual = partial(default_optimizer, nesterov=method.nesterov)
        made = method.build_optimizer(usual if make is default_optimizer else make)
    if not isinstance(made, Optimizer):
        raise ValueError(f"the optimizer's function must return a torch.optim.Optimizer; got {made!r}")
    if isinstance(getattr(made, "base_optimizer", made), torch.optim.LBFGS):
        raise ValueError(
            "LBFGS computes the loss several times in a step, and pof.fit takes gradients once: use SGD or Adam, or a"
            " loop of your own"
        )
    own = {id(p) for p in method.parameters()}
    if any(group.get("maximize") for group in made.param_groups):
        raise ValueError("the optimizer has maximize=True and would raise the loss: build it without")
    foreign = sum(id(p) not in own for group in made.param_groups for p in group["params"])
    if foreign:
        raise ValueError(
            f"{foreign} parameters of the optimizer are not those of the method's network (a copy of it, or another"
            " one): build it over method.trainable_parameters()"
        )
    return made


def find_device(device: str | torch.device | None) -> torch.device:
    """Find the device of this process (None: an accelerator, else the CPU); join its process group under ``torchrun``.

    Several processes, and accelerators that torch itself does not know, need Accelerate.
    """
    wanted = None if device is None else _existing(device)
    try:
        from accelerate import PartialState
    except ImportError as error:
        if any(int(os.environ.get(name) or 1) > 1 for name in _SIZES) and not dist.is_initialized():
            raise ImportError("several processes need accelerate: pip install 'pof[app]'") from error
        return wanted or accelerator() or torch.device("cpu")
    # Told that there is none: on its own it looks for other processes beside an accelerator only.
    on_cpu = not torch.accelerator.is_available() if wanted is None else wanted.type == "cpu"
    with naming_lost():
        found: torch.device = PartialState(cpu=on_cpu, timeout=agreement.TIME_LIMIT).device
    return wanted or found


def _existing(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda'; got {device!r}") from error
    there = accelerator()
    count = 0 if there is None or there.type != wanted.type else torch.accelerator.device_count()
    if wanted.type != "cpu" and not (wanted.index or 0) < count:
        found = "cpu" if there is None else f"cpu and {torch.accelerator.device_count()} of {there.type}"
        raise ValueError(f"device {str(wanted)!r} is not there: this machine has {found}")
    return wanted


def _placed(method: Method, device: str | torch.device | None) -> torch.device:
    """Move a method to its device, if its network can be trained at all."""
    place = find_device(device)
    _check_network(method)
    method.to(place)
    return place


def _check_network(method: Method) -> None:
    check_values(method.model)
    refuse_lazy(method.model)
    if any(distributed.is_sharded(parameter) for parameter in method.parameters()):
        raise ValueError(
            "pof.fit keeps, selects and saves whole networks, so it takes no parameters that fully_shard has sharded:"
            " use DDP (pof.fit does so by itself), or FSDP2 in a loop of your own (docs/trainers/distributed.md)"
        )
    for name, parameter in method.model.named_parameters():
        if parameter.is_inference():
            raise ValueError(f"{name!r} was made in torch.inference_mode and cannot be trained: build it outside")
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"{name!r} holds NaN or infinity before the first step: mend or load the weights")


def _check_loaders(training: Any, validation: Any, checkpoint_dir: str | Path | None) -> None:
    if distributed.active() and type(training) is DataLoader and not _may_share(training):
        raise ValueError(
            f"each of {dist.get_world_size()} processes would train on the same batches: give the DataLoader a"
            " torch.utils.data.DistributedSampler, or use pof.data.DatasetLoader"
        )
    if distributed.active() and any(isinstance(each, DistributedSampler) for each in samplers_of(validation)):
        raise ValueError(
            "val_loader has a DistributedSampler, and the judgement of the first process counts, which would be that of"
            " its share: give each process all of the validation data"
        )
    if validation is not None:
        gives_batches("val_loader", validation)
    if isinstance(validation, Iterator):
        raise ValueError("val_loader is an iterator, which gives its mini-batches once: give what it iterates over")
    persistent = any(getattr(loader, "persistent_workers", False) for loader in (training, validation))
    if checkpoint_dir is not None and persistent:
        warnings.warn(
            "persistent_workers=True: workers keep generators that no checkpoint holds, so where the data set draws"
            " random numbers a resumed run will differ; use persistent_workers=False, or a loader of pof.data",
            stacklevel=3,
        )


def _may_share(loader: DataLoader[Any]) -> bool:
    """Whether a loader may give each process samples of its own: not where all its samplers are torch's plain ones."""
    if isinstance(loader.dataset, IterableDataset):
        return True
    samplers = samplers_of(loader)
    plain = all(type(each).__module__ == "torch.utils.data.sampler" for each in samplers)
    return not plain or any(isinstance(each, DistributedSampler) for each in samplers)


def length_of(loader: Any) -> int:
    """Mini-batches of a pass over a training loader; a ValueError where it does not know."""
    gives_batches("train_loader", loader)
    try:
        length: int = len(loader)
    except TypeError as error:
        raise ValueError(
            "the training loader needs a length (the schedule is over all steps): give it __len__"
        ) from error
    return length
