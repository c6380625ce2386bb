"""Logits out of whatever a network returns, decided on its first mini-batch."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from pof._support.batches import Inputs, described_outputs, logits_of, outputs_in
from pof.head.output import are_probabilities, logarithm
from pof.head.search import HeadNotFoundError, resolve
from pof.head.split import split


class Reading:
    """Reads the logits in a network's output.

    Of several tensors in a tuple or mapping it takes the one that the network's head gives; of probabilities, which a
    network with a softmax at its end returns, the logarithm.

    Args:
        model: any classifier.
        head: qualified name of its head, for outputs with several tensors; found by :func:`pof.find_head` if None.

    Raises:
        HeadNotFoundError: if there is no module of that name with parameters.
    """

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        self.model, self.head = model, None if head is None else resolve(model, head)
        self._place: int | str | None = None
        self._probabilities: bool | None = None

    def __call__(self, output: Any, inputs: Inputs, *, log: bool = True) -> Tensor:
        """Logits (N, C) in the output for these inputs.

        Args:
            output: what the network returned.
            inputs: what it was called with.
            log: whether probabilities are turned into logits.

        Returns:
            The tensor in the output, with its graph.

        Raises:
            ValueError: if there are none, or several tensors could be meant.
        """
        found = outputs_in(output)
        if self._place is None and len(found) > 1:
            self._place = self._ask_head(found, inputs)
        logits = logits_of(output, self._place)
        if not log:
            return logits
        if self._probabilities is None and logits.numel():
            self._probabilities = are_probabilities(logits)
            if self._probabilities:
                name = type(self.model).__name__
                warnings.warn(f"{name} returns probabilities: their logarithm is taken as logits", stacklevel=3)
        return logarithm(logits) if self._probabilities else logits

    def _ask_head(self, found: dict[int | str, Tensor], inputs: Inputs) -> int | str:
        try:
            return split(self.model, self.head).place(inputs)
        except HeadNotFoundError as error:
            raise ValueError(
                f"which are the logits? The network returns {described_outputs(found)}; let it return them alone, or in"
                f" an object with .logits, or name its head: {error}"
            ) from error
