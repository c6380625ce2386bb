"""Plain training: the loss of the mini-batch, and nothing else.  The control of every comparison.

With the head frozen this is :class:`pof.PoF` with gamma = 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from pof._support.batches import Inputs
from pof.head.split import split
from pof.methods.base import Method, StepOutput
from pof.methods.loss import AskedLoss, chosen_loss, plain_step


class Finetune(Method):
    """Training with the plain loss, such as the cross-entropy.

    Args:
        model: any classifier; it is used as it is, in place.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: ``"bce"`` (one logit, several labels), ``"mse"`` (regression), ``"ordinal"`` (ordered classes), or a
            function ``loss(outputs, targets)`` -> scalar mean or (N,); None is the cross-entropy.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        loss: AskedLoss = None,
    ) -> None:
        super().__init__()
        self.loss = chosen_loss(loss, label_smoothing, class_weights)
        self.network = split(model, head, end=self.loss.end)

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> StepOutput:
        """Loss and logits of a mini-batch; a reference mini-batch is not used."""
        return plain_step(self.network, self.loss, inputs, targets)
