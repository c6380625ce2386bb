"""What a method is: the loss of one training step, and what surrounds the step.

``fit`` knows methods through this class alone: one loop, many methods.  A method is an ``nn.Module`` around the
user's model, so ``to``, ``state_dict``, DDP and Accelerate treat it like any module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pof._support import distributed
from pof._support.batches import Inputs
from pof._support.described import described, options_of
from pof._support.modules import refuse_lazy
from pof.head.split import SplitModel
from pof.perturbation.line import is_exact
from pof.perturbation.loss import Loss, weight_of


@dataclass(frozen=True)
class StepOutput:
    """What one forward of a method gives."""

    loss: Tensor
    """Scalar; ``loss.backward()`` is all there is."""
    logits: Tensor
    """(N, C): the network's own, unperturbed, without graph."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars worth logging."""
    penalty: Tensor | None = None
    """The part of the loss, scalar with graph, that is a mean over samples whatever their class weights."""


class Method(nn.Module, ABC):
    """A way to train a model; subclasses are final.

    A subclass keeps each option of its constructor as an attribute of the same name: :meth:`settings` reads them there.
    """

    needs_reference = False
    """Whether ``forward`` wants a second, independent mini-batch."""

    schedule_kind: Literal["constant", "cosine"] = "cosine"
    """The learning-rate schedule that the method is made for, unless another is asked for."""

    nesterov = True
    """Whether SGD's momentum is Nesterov's, unless another optimizer is given."""

    remedy = "lower the learning rate"
    """What to do when a run diverges."""

    network: SplitModel
    loss: Loss

    def __init__(self) -> None:
        super().__init__()
        self._taken_out: list[nn.Parameter] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse ``fully_shard`` of a method, which gives it a class of its own."""
        super().__init_subclass__(**kwargs)
        if distributed.makes_fsdp(cls):
            raise ValueError(
                "fully_shard was applied to the method: older versions of PyTorch do not find the loss in its output,"
                " and the gradients would stay those of one process; apply it to the model, fully_shard(method.model)"
            )

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
            targets: (N,) class indices or, where the method allows it, (N, C) probabilities; what the loss takes.
            reference_inputs: another mini-batch, for the methods whose ``needs_reference`` is true; others ignore it.
            reference_targets: its targets.

        Returns:
            Loss, logits and metrics.
        """

    @property
    def model(self) -> nn.Module:
        """The user's model itself."""
        return self.network.model

    @property
    def head_name(self) -> str:
        """Qualified name of the head in the user's model."""
        return self.network.head_name

    def candidate(self) -> nn.Module:
        """The network that is validated and delivered.

        Returns:
            ``model``, unless the method delivers another one, such as an average of its iterates.
        """
        return self.model

    def weight_of(self, targets: Tensor) -> Tensor:
        """What a mini-batch counts in a mean over several.

        Args:
            targets: (N,) class indices or (N, C) probabilities.

        Returns:
            Scalar of float64: N, or with class weights their sum; targets of -100, to be ignored, count 0.
        """
        return weight_of(getattr(self, "loss", None), targets)

    def judged_by(self) -> Loss | None:
        """The loss that validation computes.

        Returns:
            That of the training; None: the cross-entropy.
        """
        return getattr(self, "loss", None)

    def penalty_weight_of(self, targets: Tensor) -> Tensor | None:
        """What the penalty of a mini-batch counts in a mean over several.

        Args:
            targets: (N,) class indices or (N, C) probabilities.

        Returns:
            Scalar of float64, or None: there is no penalty, or it counts as the loss.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """The options that a run may not change when it resumes.

        Derived from the options of the constructor; what the state holds, such as the generator of a seed, is not
        among them.

        Returns:
            The name of the class, and under it each option by its name: numbers, strings, None, and dicts of them.
        """
        loss = {"loss": described(self.loss)} if hasattr(self, "loss") else {}
        return {type(self).__name__: options_of(self) | loss}

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

    def by_epochs(self) -> str | None:
        """The option that goes by the number of epochs of the whole run.

        Returns:
            Its name; None if there is none.
        """
        return None

    def epoch_metrics(self) -> dict[str, float]:
        """Figures for an epoch's row of the log that are no means over its steps."""
        return {}

    def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Iterable[tuple[Inputs, Tensor]]]) -> None:
        """What follows epoch ``epoch`` (from 0) of ``epochs``, before its validation.

        Args:
            epoch: from 0.
            epochs: of the whole run.
            batches: gives the mini-batches of the training set anew, inputs and targets, for statistics.
        """

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters to give to the optimizer.

        Yields:
            Those of the model that require a gradient.

        Raises:
            ValueError: if there are none.
        """
        Method.attach(self)  # without hooks, which a forward puts on: a loop may ask in every step
        distributed.reshard(self.model)
        found = [p for p in self.model.parameters() if p.requires_grad]
        if not found:
            raise ValueError(
                f"nothing to train: no parameter outside of what {type(self).__name__} holds fixed requires a gradient;"
                " unfreeze some, such as model.requires_grad_(True)"
            )
        yield from found

    def _freeze_head(self) -> None:
        """Take the head out of training, for the methods that perturb it.

        Raises:
            ValueError: if it is trained and in DDP, which notes at its construction which parameters will get
                gradients, and waits for them in every step.
        """
        wrapped = any(isinstance(module, DistributedDataParallel) for module in self.model.modules())
        if wrapped and any(p.requires_grad for p in self.network.head.parameters()):
            raise ValueError(
                "the model is in DistributedDataParallel already, which would wait for the gradients of the head that"
                " the method freezes: put the method into it, DistributedDataParallel(pof.PoF(model))"
            )
        refuse_lazy(self.model)
        self.network.moved = not is_exact(self.loss, self.network)
        distributed.reshard(self.model)
        self._taken_out = [p for p in self.network.head.parameters() if p.requires_grad]
        self.network.head.requires_grad_(False)

    def attach(self) -> None:
        """Take hold of the model again after :meth:`release`; construction does it the first time."""
        for parameter in self._taken_out:
            parameter.requires_grad_(False)

    def release(self) -> None:
        """Leave the model as it was, but for what was trained: no hooks, and the head's ``requires_grad`` as before."""
        for parameter in self._taken_out:
            parameter.requires_grad_(True)


def refuse_unknown_epochs(method: Method) -> None:
    """Refuse, where the number of epochs of the run is not known, a method that goes by it."""
    option = method.by_epochs()
    if option is not None:
        raise ValueError(
            f"{option} goes by the number of epochs, which is not known where the training loader has no length and the"
            " trainer counts steps: give the data set a __len__ (or Lightning max_epochs), or leave the option out"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
