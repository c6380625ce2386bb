"""Whether the head's logits are what the network returns, up to what softmax cannot see."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.batches import described_outputs
from pof._support.precision import at_least_float32

REMEDY = 'with head="name" name the module that returns the final logits, or wrap what follows it into one module'
End = Literal["softmax", "sigmoid"]
"""What may follow the head of a network whose loss takes the head's own outputs."""
LOSS = re.compile(r"(?i:loss(?:es)?)(?![a-z])")
"""Names such as ``aux_loss``, ``loss_ce``, ``routerLoss``, ``vqloss``, ``LOSS``."""


def are_probabilities(output: Tensor) -> bool:
    """Tell the output of a softmax, (N, C) with C > 1: entries in [0, 1], rows that sum to 1."""
    if output.ndim != 2 or output.shape[1] < 2 or not output.numel():
        return False
    values = at_least_float32(output.detach())
    low, high, error = values.amin(), values.amax(), (values.sum(dim=1) - 1).abs().amax()
    return bool((low >= 0) & (high <= 1) & (error < _rounding(output) * output.shape[1] ** 0.5))


def logarithm(probabilities: Tensor) -> Tensor:
    """Turn probabilities (N, C) into logits; 0 becomes the smallest positive number first."""
    values = at_least_float32(probabilities)
    return values.clamp_min(torch.finfo(values.dtype).tiny).log()


def tell_of_others(output: Any, logits: Tensor) -> None:
    """Warn of outputs with trained layers of their own, such as a second head, and of losses: none is trained on.

    GoogLeNet and Inception v3 return auxiliary logits in training, mixtures of experts a loss of their router.  Outputs
    that one function gives beside the logits (DDP's for unused parameters, a compiled graph) cannot be told apart:
    nothing is said.
    """
    named = [(name, tensor) for name, tensor in _named(output, "", {}) if tensor.grad_fn is not None]
    count, wanted = Counter(tensor.grad_fn for _, tensor in named), _leaves(logits)
    with_logits = {node for node, times in count.items() if times > 1 and wanted <= _variables(_nodes([node]))}
    own = [(name, tensor) for name, tensor in named if tensor.grad_fn not in with_logits]
    others = _of_other_layers([tensor.grad_fn for _, tensor in own], logits)
    found = [n for n, t in own if t.grad_fn in others or (not t.ndim and LOSS.search(n))]
    if found:
        warnings.warn(
            f"other outputs of the network ({', '.join(found)}) are not trained, and may become worse: the loss is that"
            " of its head's logits alone",
            stacklevel=4,
        )


def _named(output: Any, name: str, seen: dict[int, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an output, however deep, by keys, fields or positions, each once: it may hold itself."""
    if id(output) in seen:
        return
    seen[id(output)] = output  # kept: what is made when it is asked for would leave its identity to the next
    if isinstance(output, Tensor):
        yield name, output
        return
    items: Any = output if isinstance(output, Mapping) else getattr(output, "_asdict", dict)()
    if not items and isinstance(output, list | tuple):
        items = dict(enumerate(output))
    if not items and not name:  # of an object that is returned; those inside of one may hold anything
        items = getattr(output, "__dict__", {})
    for key, value in items.items():
        yield from _named(value, f"{name}.{key}" if name else str(key), seen)


def _of_other_layers(starts: Iterable[Any], logits: Tensor) -> set[Any]:
    """The nodes behind some of a graph, and they, that depend on parameters on which the logits do not."""
    if logits.grad_fn is None:
        return set()
    known = _nodes([logits.grad_fn])
    behind = _nodes(starts, known) - known
    after: dict[Any, list[Any]] = {}
    for node in behind:
        for before, _ in node.next_functions:
            after.setdefault(before, []).append(node)
    found = {node for node in behind if hasattr(node, "variable")}
    waiting = list(found)
    while waiting:
        new = [node for node in after.get(waiting.pop(), ()) if node not in found]
        found.update(new)
        waiting += new
    return found


def within_unit(output: Tensor) -> bool:
    """Tell outputs that a sigmoid may have made: there are some, and all lie in [0, 1]."""
    return bool(output.numel()) and bool(((output >= 0) & (output <= 1)).all())


def logit(probabilities: Tensor) -> Tensor:
    """Turn the output of a sigmoid into logits; 0 and 1 become their nearest neighbours first."""
    return torch.logit(at_least_float32(probabilities), eps=torch.finfo(torch.float32).eps)


def is_sigmoid(output: Tensor, logits: Tensor) -> bool:
    """Tell whether a network returns the sigmoid of the logits (N, C) of its head."""
    wanted = torch.sigmoid(at_least_float32(logits))
    return agree(output, wanted, end=None)[0] and not agree(output, logits, end=None)[0]


def agree(output: Tensor, logits: Tensor, *, end: End | None) -> tuple[bool, float]:
    """Compare what a network returns with the logits (N, C) of its head.

    Equal values always agree; with the end ``"softmax"`` so do logits that differ by a constant per sample, and, of
    more than one logit, their softmax; with ``"sigmoid"`` their sigmoid.

    Returns:
        Whether they agree, and the largest difference, inf where the shapes differ.
    """
    if output.numel() != logits.numel() or len(output) != len(logits) or not output.is_floating_point():
        return False, float("inf")
    if not logits.numel():
        return True, 0.0
    found, wanted = (at_least_float32(t.detach().reshape(logits.shape)) for t in (output, logits))
    if end == "sigmoid" and is_sigmoid(output, logits):
        wanted = torch.sigmoid(wanted)
    if end == "softmax" and logits.shape[1] > 1:
        if are_probabilities(output.reshape(logits.shape)):  # in its own dtype, by whose rounding rows sum to 1
            wanted = torch.softmax(wanted, dim=1)
        else:
            found, wanted = F.log_softmax(found, dim=1), F.log_softmax(wanted, dim=1)
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    largest = float(torch.where(same, 0.0, (found - wanted).abs()).nan_to_num(nan=torch.inf).amax())
    scale = wanted.nan_to_num(0.0, 0.0, 0.0)
    spread = float((scale.amax(dim=1) - scale.amin(dim=1)).amax()) if logits.shape[1] > 1 else 0.0
    allowed = 1e-4 * spread + _rounding(output, logits) * float(scale.abs().amax())
    return largest <= allowed, largest


def tell_apart(logits: Tensor) -> bool:
    """Tell logits (N, C) by which a wrong scale would be seen: they are not all equal, as those of a head at zero."""
    return bool(logits.numel()) and float(logits.detach().float().std(correction=0)) > 0


def beside(output: Tensor, logits: Tensor) -> set[nn.Parameter]:
    """Find the trained parameters on which a network's output depends and the head's logits do not.

    Args:
        output: of the network, with graph.
        logits: what the head returned in this forward, with graph.

    Returns:
        Such as a temperature that is still 1 or a second branch that is still 0: they change nothing yet.
    """
    return _leaves(output) - _leaves(logits) if logits.grad_fn is not None else set()


def _leaves(tensor: Tensor) -> set[Any]:
    return _variables(_nodes([tensor.grad_fn]))


def _variables(nodes: Iterable[Any]) -> set[Any]:
    return {node.variable for node in nodes if hasattr(node, "variable")}


def _nodes(starts: Iterable[Any], ends: Set[Any] = frozenset()) -> set[Any]:
    """Nodes of a graph from some of them to its leaves, or to ``ends``, of which those that are met are among them."""
    seen: set[Any] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node not in ends:
                waiting += [before for before, _ in node.next_functions]
    return seen


def _rounding(*tensors: Tensor) -> float:
    """Relative difference that rounding in the narrowest dtype may leave."""
    return 16 * max(torch.finfo(tensor.dtype).eps for tensor in tensors)


def disagreement(
    head_name: str, found: dict[int | str, Tensor], compared: dict[int | str, tuple[bool, float]], logits: Tensor
) -> str:
    """Say that the head's logits (N, C) are none of the tensors found in the output, for an error."""
    shape = f"the head {head_name!r} returned {tuple(logits.shape)}"
    if not found:
        return f"{shape}, but no logits are in the network's output; let it return them, or an object with .logits"
    largest = min(difference for _, difference in compared.values())
    if len(found) > 1 or largest == float("inf"):
        return f"{shape}, but the network {described_outputs(found)}, none of which is the same; {REMEDY}"
    if any(is_sigmoid(tensor, logits) for tensor in found.values()):
        return (
            f"the network returns the sigmoid of its head {head_name!r}, as for labels that do not exclude each other:"
            " give loss='bce', or let the network return the logits"
        )
    if logits.shape[1] > 1 and any(agree(tensor, logits, end="softmax")[0] for tensor in found.values()):
        return (
            f"the network returns the softmax of its head {head_name!r}, its logarithm, or its logits but for a"
            " constant: leave the loss out (the cross-entropy of the logits is that of their log-softmax), or let the"
            " network return the logits"
        )
    return (
        f"the head {head_name!r} is not the end of the network: their outputs differ by up to {largest:.3g} (a"
        f" temperature, a scale, a second branch or head?); {REMEDY}"
    )
