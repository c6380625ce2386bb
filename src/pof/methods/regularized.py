"""Fine-tuning with a regulariser: the plain loss plus its penalty, and its own update after each step.

Drives FNP, RandReg and AdaRand (Yamaguchi et al., CVPR 2024), L2-SP, BSS, DELTA, Bi-Tuning and Co-Tuning alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import Inputs, class_targets, joined, to_device
from pof._support.modules import device_of, packed, unpacked
from pof._support.passes import in_second_pass
from pof._support.untold import Untold
from pof.head.split import split
from pof.methods.base import Method, StepOutput
from pof.methods.loss import AskedLoss, CrossEntropy, chosen_loss, features_and_logits, mean_loss
from pof.perturbation.loss import weight_of, with_ignored
from pof.perturbation.tasks import SquaredError
from pof.regularizers import Regularizer


class Regularized(Method):
    """Training with the loss plus a penalty.

    In a step of several mini-batches a penalty counts by samples.  With class weights :func:`pof.fit` and the Trainer
    do so too; Lightning, which does not know the mini-batches of a step in advance, lets it count as the loss.

    Args:
        model: any classifier; it is used as it is, in place.
        regularizer: made for this model, such as ``AdaRand.from_loader(...)``.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: ``"bce"`` (one logit, several labels), ``"mse"`` (regression), ``"ordinal"`` (ordered classes), or a
            function ``loss(outputs, targets)`` -> scalar mean or (N,); None is the cross-entropy.

    Raises:
        ValueError: if an option is out of range, or the regulariser was made for another model.
    """

    remedy = "lower the learning rate or the regulariser's strength"

    def __init__(
        self,
        model: nn.Module,
        regularizer: Regularizer,
        head: str | None = None,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        loss: AskedLoss = None,
    ) -> None:
        super().__init__()
        self.loss = chosen_loss(loss, label_smoothing, class_weights)
        regularizer.check_model(model)
        self.network, self.regularizer = split(model, head, end=self.loss.end), regularizer
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._untold = Untold(
            f"{type(regularizer).__name__} adapts after each step, and it is not told of them: call method.after_step()"
            " behind optimizer.step(), as pof.fit does"
        )

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """The loss plus the penalty (each alone is a metric), or in eval mode the plain loss; needs no reference."""
        first = not in_second_pass(self.network.model)  # before the forward, behind which FSDP2 has other parameters
        adapts = first and getattr(self.regularizer.update, "__func__", None) is not Regularizer.update
        if self.training:
            self.regularizer.open()
            if adapts and self._untold.noticed(self.network.model):
                self._seen.clear()
        features, logits = features_and_logits(self.network, inputs)
        plain = StepOutput(mean_loss(self.loss, logits, targets), logits.detach())
        if not self.training:
            return plain
        if isinstance(self.loss, CrossEntropy):
            targets = class_targets(targets, logits.shape[1])
        elif isinstance(self.loss, SquaredError):
            targets = targets.float()  # no class, nor one to be ignored
        else:
            targets = with_ignored(self.loss, targets)
        penalty = self.regularizer(features, targets, inputs)
        if adapts:
            self._seen.append((features.detach(), targets))
        # A strength of 0 must not even add a zero: training is then bitwise identical to plain.  L2-SP has another one.
        loss = plain.loss + penalty if self.regularizer.strength or penalty.requires_grad else plain.loss
        metrics = {"loss_without_penalty": plain.loss.detach(), "penalty": penalty.detach()}
        return StepOutput(loss, plain.logits, metrics, penalty)

    def penalty_weight_of(self, targets: Tensor) -> Tensor | None:
        """With class weights: the samples that have a part."""
        weighted = getattr(self.loss, "class_weights", None) is not None
        return weight_of(F.cross_entropy, targets) if weighted else None

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the model, and of the regulariser if it has any that are trained.

        Yields:
            Parameters that require a gradient.
        """
        yield from super().trainable_parameters()
        self._check_reach()
        yield from (p for p in self.regularizer.parameters() if p.requires_grad)

    def _check_reach(self) -> None:
        head = {id(parameter) for parameter in self.network.head.parameters()}
        moved = [p for p in self.model.parameters() if p.requires_grad and id(p) not in head]
        if (
            self.regularizer.strength
            and not moved
            and not any(p.requires_grad for p in self.regularizer.held_parameters())
        ):
            warnings.warn(
                f"nothing before the head is trained, so the penalty of {type(self.regularizer).__name__}, of features,"
                " changes nothing: unfreeze some of the extractor, or use Finetune",
                stacklevel=3,
            )

    def attach(self) -> None:
        """Attach the regulariser's hooks anew: a network of the same class may have been compiled without them."""
        self.regularizer.close()
        self.regularizer.open()

    def release(self) -> None:
        """Remove them."""
        self.regularizer.close()

    def get_extra_state(self) -> Tensor:
        """Features and targets of a step that is not taken yet: a checkpoint may come between its mini-batches."""
        return packed({"seen": self._seen})

    def set_extra_state(self, state: Any) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        state = unpacked(state)
        self._seen = to_device(state["seen"], device_of(self.network))

    def after_step(self) -> None:
        """Let the regulariser adapt to the features of the step, those of all its mini-batches together."""
        self._untold.told()
        if self._seen:
            sizes = [len(features) for features, _ in self._seen]
            features, targets = (joined(list(parts), sizes) for parts in zip(*self._seen, strict=True))
            self._seen.clear()
            self.regularizer.update(features, targets)
