"""Outputs that a loss takes, out of whatever a network returns, decided on its first mini-batch."""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from pof._support.batches import ALONE, Inputs, described_outputs, logits_of, outputs_in, tensors_of
from pof.head.output import End, are_probabilities, logarithm, logit, tell_apart, within_unit
from pof.head.search import HeadNotFoundError, possible_heads, resolve
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
        if logits.ndim == 3 and logits.shape[2] == 1:
            classifies = log and self.end == "softmax"
            if self._are_of_samples(logits, inputs, None if classifies else tensors_of(targets)):
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

    def _are_of_samples(self, logits: Tensor, inputs: Inputs, targets: list[Tensor] | None) -> bool:
        """Whether (N, K, 1) are K numbers of each sample, which training takes as (N, K), or one for each step."""
        # Targets are None for the cross-entropy, where K is the number of classes unless a layer with one output is
        # the head.  For other losses the head tells by its output; where it does not, what the targets fit.
        if any(each.shape == logits.shape for each in targets or ()):
            return False
        count, sizes = logits.shape[1], {_outputs(end) for end in self._ends}
        one = sizes == {1} and len(self._ends) == 1
        if count == 1:
            return not (one and isinstance(self._ends[0], nn.Linear)) or self._is_head(inputs)
        if sizes == {1} and len(self._ends) == count:
            return True  # a head for each
        if targets is None:
            return not one or count in self._channels  # it may be a gate before a convolution
        if one:
            return False
        if self._is_head(inputs):
            return True
        same = any(each.shape == logits.shape[:2] for each in targets)
        labels = any(each.ndim == 1 and not each.is_floating_point() for each in targets)
        return (same and len(self._ends) != 1) or ((same or labels) and count in self._channels)

    def _is_head(self, inputs: Inputs) -> bool:
        """Whether the output is the head's, as training needs it."""
        if self._of_head is None:
            self._of_head = False
            with suppress(ValueError, RuntimeError):  # a network may not take a part of a mini-batch
                split(self.model, self.head, end=self.end).place(inputs)
                self._of_head = True
        return self._of_head

    @cached_property
    def _ends(self) -> list[nn.Module]:
        """The modules that could be the head."""
        names = possible_heads(self.model) if self.head is None else [self.head]
        return [self.model.get_submodule(name) for name in names if name]

    @cached_property
    def _channels(self) -> set[int | None]:
        """The numbers of outputs of convolutions that :func:`find_head` does not look at."""
        return {_outputs(m) for m in self.model.modules() if isinstance(m, nn.Conv1d | nn.Conv3d)}

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
        try:
            return split(self.model, self.head, end=self.end).place(inputs)
        except ValueError as error:
            said = f"the network returns {described_outputs(found)}, and its head does not tell which are the logits"
            place = None if self.head is not None else self._likely(found, output)
            if place is not None:
                warnings.warn(f"{said} ({error}): those at {place!r} are taken", stacklevel=4)
                return place
            if not isinstance(error, HeadNotFoundError):
                raise
            raise ValueError(f"{said}: {ALONE}, or name its head: {error}") from error

    def _likely(self, found: dict[int | str, Tensor], output: Any) -> int | str | None:
        """The only matrix, if no map can be the logits; None in doubt."""
        # A map (N, K, 1) or (N, K, 1, 1) is what a convolution gives, and (N, K, 1) what a layer gives for each step.
        matrices = [place for place in found if output[place].ndim == 2]
        maps = {place: found[place].shape[1] for place in found if place not in matrices}
        convolved = {_outputs(end) for end in self._ends if not isinstance(end, nn.Linear)}
        if len(matrices) != 1 or not convolved.isdisjoint(maps.values()):
            return None
        steps = [place for place in maps if output[place].ndim == 3]
        if found[matrices[0]].shape[1] in {_outputs(end) for end in self._ends}:
            return None if any(maps[place] in self._channels for place in steps) else matrices[0]
        return None if steps or not self._channels.isdisjoint(maps.values()) else matrices[0]


def _outputs(module: nn.Module) -> int | None:
    """The number of outputs of a layer."""
    return getattr(module, "out_features", getattr(module, "out_channels", None))
