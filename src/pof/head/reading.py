"""Outputs that a loss takes, out of whatever a network returns, decided on its first mini-batch."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import Tensor, nn

from pof._support.batches import ALONE, Inputs, described_outputs, logits_of, outputs_in, tensors_of
from pof.head.output import End, are_probabilities, logarithm, logit, tell_apart, within_unit
from pof.head.search import HeadNotFoundError, resolve
from pof.head.split import split

_REMEDY = "if they are probabilities, let it return the logits"


class Reading:
    """Reads the logits in a network's output.

    Of several tensors in a tuple or mapping it takes the one that the network's head gives; of probabilities, which a
    network with a softmax or sigmoid at its end returns, the logits.

    Args:
        model: any classifier.
        head: qualified name of its head, for outputs with several tensors and in [0, 1]; found by
            :func:`pof.find_head` if None.
        end: what may follow the head, as :func:`pof.split` takes it; None: the output is read as it is.

    Raises:
        HeadNotFoundError: if there is no module of that name with parameters.
    """

    def __init__(self, model: nn.Module, head: str | None = None, end: End | None = "softmax") -> None:
        self.model, self.head = model, None if head is None else resolve(model, head)
        self.end = end
        self._place: int | str | None = None
        self._found: End | Literal["nothing"] | None = None
        self._of_head: bool | None = None

    def __call__(self, output: Any, inputs: Inputs, targets: Any = None, *, log: bool = True) -> Tensor:
        """Logits (N, C) in the output for these inputs.

        Args:
            output: what the network returned.
            inputs: what it was called with.
            targets: what a loss compares them with.
            log: whether probabilities are turned into logits.

        Returns:
            The tensor in the output, with its graph; (N, K, 1) is (N, K), but for sequences with a loss of their own.

        Raises:
            ValueError: if there are none, several tensors could be meant, or they are probabilities of another task.
        """
        found = outputs_in(output)
        if self._place is None and len(found) > 1:
            self._place = self._ask_head(found, output, inputs)
        logits = logits_of(output, self._place)
        classifies = log and self.end == "softmax"
        if logits.ndim == 3 and logits.shape[2] == 1 and (classifies or self._is_of_head(inputs, targets)):
            logits = logits.flatten(1)
        if not log or self.end is None:
            return logits
        if self._found is None and logits.numel():
            self._found = self._end_of(logits, inputs)
            if self._found != "nothing":
                name, what = type(self.model).__name__, "logarithm" if self._found == "softmax" else "logit"
                warnings.warn(f"{name} returns probabilities: their {what} is taken as logits", stacklevel=3)
        turn = {"softmax": logarithm, "sigmoid": logit}.get(self._found or "nothing")
        return logits if turn is None else turn(logits)

    def _is_of_head(self, inputs: Inputs, targets: Any) -> bool:
        """Whether (N, K, 1) is what a head gives for each sample, which training takes as (N, K), and no sequence."""
        if self._of_head is None:
            try:
                split(self.model, self.head, end=self.end).place(inputs)
                self._of_head = True
            except HeadNotFoundError:
                self._of_head = all(each.ndim < 3 for each in tensors_of(targets))
            except ValueError:
                self._of_head = False
        return self._of_head

    def _end_of(self, output: Tensor, inputs: Inputs) -> End | Literal["nothing"]:
        """What the network ends in; refused if that is of another task than ``end``."""
        if not within_unit(output):
            return "nothing"
        if are_probabilities(output):
            if self.end == "softmax":
                return "softmax"
            raise ValueError(
                "the network returns the probabilities of a softmax, one class per sample, for which the loss is"
                " 'cross-entropy'; for other losses let it return the logits"
            )
        # Logits may lie in [0, 1] too: the head tells.
        try:
            ends = split(self.model, self.head, end="sigmoid").ends_in_sigmoid(inputs)
        except ValueError as error:
            if self.end == "softmax":
                if tell_apart(output):
                    name = type(self.model).__name__
                    warnings.warn(f"all outputs of {name} lie in [0, 1]: taken for logits; {_REMEDY}", stacklevel=4)
                return "nothing"
            raise ValueError(
                f"all outputs of the network lie in [0, 1], and its head does not tell why ({error}): {_REMEDY}"
            ) from error
        if ends and self.end == "softmax":
            raise ValueError(
                "the network ends in a sigmoid, as for labels that do not exclude each other: give loss='bce', or let"
                " it return the logits"
            )
        return "sigmoid" if ends else "nothing"

    def _ask_head(self, found: dict[int | str, Tensor], output: Any, inputs: Inputs) -> int | str:
        axes = {place: output[place].ndim for place in found}
        matrices = [place for place in found if axes[place] == 2]
        try:
            return split(self.model, self.head, end=self.end).place(inputs)
        except ValueError as error:
            said = f"the network returns {described_outputs(found)}, and its head does not tell which are the logits"
            # A pooled map (N, D, 1, 1) is rarely meant; of (N, K, 1) a convolution may be the head.
            if self.head is None and len(matrices) == 1 and 3 not in axes.values():
                warnings.warn(f"{said} ({error}): those at {matrices[0]!r} are taken", stacklevel=4)
                return matrices[0]
            if not isinstance(error, HeadNotFoundError):
                raise
            raise ValueError(f"{said}: {ALONE}, or name its head: {error}") from error
