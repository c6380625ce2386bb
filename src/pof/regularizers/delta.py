"""DELTA: feature maps stay close to those of the frozen source network.

Li et al., ICLR 2019 (arXiv 1901.09229).

The paper weighs channels by a supervised attention; here the weights are 1 unless they are given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pof._support.batches import Inputs, call, to_device
from pof._support.modules import copied, device_of, evaluating, whole_name
from pof._support.precision import at_least_float32, without_autocast
from pof.regularizers._base import Regularizer, counted_of, kept, mean_over, zero


def map_distance(
    maps: Tensor, source_maps: Tensor, channel_weights: Tensor | None = None, counted: Tensor | None = None
) -> Tensor:
    """Half the mean of a_c (FM_c - FM*_c)^2 over samples, channels and positions (Li et al., section 3).

    For maps (N, C, ...), with graph, those of the source network, and weights a (C,), all 1 if None; over the samples
    counted (N,), all if None.

    Returns:
        A scalar.
    """
    squared = kept(maps - source_maps, counted).square()
    if channel_weights is not None:
        squared = squared * channel_weights.to(squared.dtype).view(-1, *[1] * (maps.ndim - 2))
    return 0.5 * mean_over(squared, counted)


def feature_maps(model: nn.Module, layers: Sequence[str], inputs: Inputs) -> dict[str, Any]:
    """Outputs of some layers by name, in the order in which they ran, from one pass of the model on inputs (N, ...)."""
    return _outputs(model, layers, inputs, lambda output: output)


def _outputs(model: nn.Module, names: Iterable[str], inputs: Inputs, keep: Callable[[Any], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    handles = [model.get_submodule(name).register_forward_hook(partial(_keep, found, name, keep)) for name in names]
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def widest_convolutions(model: nn.Module, inputs: Inputs, *, count: int = 4) -> tuple[str, ...]:
    """Name a convolution at each of the ``count`` coarsest resolutions: the widest, of several the last.

    In a ResNet these are the ends of its stages; in a network of inverted bottlenecks, the last expansions.

    Args:
        model: any network with ``nn.Conv2d``; run once, in eval mode.
        inputs: a batch (N, ...) of any size N, on any device.
        count: how many resolutions, at most.

    Returns:
        Qualified names, in the order in which they run.

    Raises:
        ValueError: if no convolution has an output larger than 1 x 1, or most matrices come behind the last one, as in
            a transformer: name its blocks instead.
    """
    modules = {name: m for name, m in model.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)}
    device = device_of(model)
    _forget_graphs()
    with evaluating(model):
        ran = _outputs(model, modules, to_device(inputs, device), _shape_of)
    maps = {name: shape for name, shape in ran.items() if isinstance(modules[name], nn.Conv2d)}
    chosen: dict[torch.Size, str] = {}
    for name, shape in maps.items():
        known = chosen.get(shape[-2:])
        if shape[-2:].numel() > 1 and (known is None or shape[-3] >= maps[known][-3]):
            chosen[shape[-2:]] = name
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no convolution with a map: give the layers by name")
    coarsest = sorted(chosen, key=torch.Size.numel)[:count]
    found = tuple(name for name in maps if name in {chosen[resolution] for resolution in coarsest})
    order = list(ran)
    behind = order[order.index(found[-1]) + 1 :]
    mixing = [n for n in behind if isinstance(modules[n], nn.MultiheadAttention)]
    plain = [n for n in behind if isinstance(modules[n], (nn.Conv2d, nn.Linear)) and _of_tokens(ran[n])]
    if (matrices := 2 * len(mixing) + len(plain)) > len(maps):  # attention has two
        after = [n for n in behind if mixing and _of_tokens(ran[n]) and order.index(n) > order.index(mixing[0])]
        example = _middle(plain) or _around(_middle(mixing), ran) or _middle(after)
        such_as = f", such as {example!r} (--regularizer.layers {example})" if example else ""
        raise ValueError(
            f"{matrices} of the {matrices + len(maps)} matrices of {type(model).__name__} come behind its last"
            f" convolution, {found[-1]!r}, which says nothing of them: give layers by name{such_as}"
        )
    return found


def _shape_of(output: Any) -> torch.Size | None:
    return output.shape if isinstance(output, Tensor) else None


def _of_tokens(shape: torch.Size | None) -> bool:
    """A tensor, as attention gives none, and no classifier's."""
    return shape is not None and len(shape) > 2


def _middle(names: list[str]) -> str:
    return names[len(names) // 2] if names else ""


def _around(name: str, ran: dict[str, Any]) -> str:
    """The next module around another one that gives a tensor of tokens; empty if none does."""
    while name and not _of_tokens(ran.get(name)):
        name = name.rpartition(".")[0]
    return name


def _keep(
    found: dict[str, Any], name: str, keep: Callable[[Any], Any], module: nn.Module, args: Any, output: Any
) -> None:
    # A layer may run more than once: its latest output counts, in its latest place.
    found.pop(name, None)
    found[name] = keep(output)


def _forget_graphs() -> None:
    """Have compiled networks traced anew: no guard notices a hook, and a graph of the same class would run without."""
    dynamo = sys.modules.get("torch._dynamo")  # importing it takes seconds
    if dynamo is not None and not torch.compiler.is_compiling():
        dynamo.reset()


class _Recorder:
    """Forward hook that keeps a layer's output of the latest pass with gradients, until it is taken."""

    def __init__(self) -> None:
        self.output: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"a {type(module).__name__} among DELTA's layers returns a {type(output).__name__}, not a tensor: "
                "name the block around it, or a layer inside it that runs as a module"
            )
        if torch.is_grad_enabled():
            self.output = output

    def take(self) -> Tensor | None:
        output, self.output = self.output, None
        return output

    def __reduce__(self) -> tuple[type[_Recorder], tuple[()]]:
        # Copies and pickles of the model start empty: an activation with a graph can be neither copied nor saved.
        return _Recorder, ()


class DELTA(Regularizer):
    """strength * sum_j 1/2 mean a_c (FM_j(x) - FM*_j(x))^2 over the chosen layers j.

    Hooks on the model keep the maps of its latest forward pass with gradients, so the training step needs no
    second one; the source network runs without gradients, in eval mode.  The source is a copy made at
    construction; it is in neither ``parameters()`` nor ``state_dict``, so build DELTA before loading the
    state of a resumed run.  :meth:`close` takes the hooks off, as :func:`pof.fit` does at its end.

    Args:
        model: the model that is fine-tuned, with its start weights.
        layers: qualified names of the layers whose outputs are compared; :func:`widest_convolutions` suggests
            some.
        strength: weight of the penalty, >= 0.  At 0 the source is not copied and no hook is set.
        channel_weights: one (C,) tensor per layer, the attention a; all 1 if None.

    Raises:
        ValueError: if there are no layers, a layer is unknown, the weights do not match them, or ``strength`` < 0.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        *,
        strength: float = 1.0,
        channel_weights: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(strength)
        found = [(name, whole_name(model, name)) for name in layers]
        unknown = sorted(name for name, whole in found if whole is None)
        if unknown or not found:
            raise ValueError(
                f"layers must name modules of {type(model).__name__}; got {tuple(layers)}, unknown: {unknown}"
            )
        self.layers = tuple(whole for _, whole in found if whole)
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must be named once each; got {tuple(layers)}")
        if channel_weights is not None and len(channel_weights) != len(self.layers):
            raise ValueError(f"channel_weights has {len(channel_weights)} entries for {len(self.layers)} layers")
        for i, weights in enumerate(channel_weights or ()):
            self.register_buffer(f"channel_weights_{i}", weights.detach().clone())
        self._weighted = channel_weights is not None
        self._recorders = [_Recorder() for _ in self.layers]
        # In tuples: a submodule would be trained, saved, and switched to training mode.
        self._source: tuple[nn.Module, ...] = ()
        self._watched: tuple[nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []
        if self.strength > 0:
            self._source = (copied(model).eval().requires_grad_(False),)
            self._watched = tuple(model.get_submodule(name) for name in self.layers)
            self.open()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """The source goes where the method goes, and is cast as it is."""
        for source in self._source:
            source._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)

    def held_parameters(self) -> set[nn.Parameter]:
        """Those of the layers that it watches."""
        return {parameter for layer in self._watched for parameter in layer.parameters()}

    def forward(
        self, features: Tensor | None = None, targets: Tensor | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """Compare the maps of the latest forward pass with the source's on the same inputs.

        Args:
            features: not read.
            targets: (N,) class indices, of which only those of -100 are read: these samples have no part.
            inputs: (N, ...), those of the latest forward pass of the model.

        Returns:
            A scalar, float32 (float64 for float64 maps).

        Raises:
            ValueError: if there are no inputs, no forward pass with gradients came before, or it had other inputs.
        """
        if self.strength == 0:
            return zero(features)
        if inputs is None:
            raise ValueError("DELTA needs the inputs: call regularizer(features, targets, inputs)")
        maps = {
            name: output
            for name, recorder in zip(self.layers, self._recorders, strict=True)
            if (output := recorder.take()) is not None
        }
        if len(maps) < len(self.layers):
            turns = "; where compiled networks of one class take turns, call close() and open() before each turn"
            raise ValueError(
                f"only {len(maps)} of the layers {self.layers} ran with gradients since the last penalty: call the"
                f" model on the inputs first, once per penalty{turns if 'torch._dynamo' in sys.modules else ''}"
            )
        device = maps[self.layers[0]].device
        with torch.no_grad():
            source_maps = feature_maps(self._source[0].to(device), self.layers, inputs)
        with without_autocast(device):
            counted = counted_of(targets)
            distances = [self._distance(i, maps[n], source_maps[n], counted) for i, n in enumerate(self.layers)]
            return self.strength * torch.stack(distances).sum()

    def open(self) -> None:
        """Put the hooks on the model, if they are not there; compiled networks are traced anew, once."""
        if self._watched and not self._handles:
            _forget_graphs()
            pairs = zip(self._watched, self._recorders, strict=True)
            self._handles.extend(module.register_forward_hook(recorder) for module, recorder in pairs)

    def close(self) -> None:
        """Take the hooks off the model, after training."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _distance(self, index: int, maps: Tensor, source_maps: Tensor, counted: Tensor | None) -> Tensor:
        if maps.shape != source_maps.shape:
            raise ValueError(
                f"layer {self.layers[index]!r} gave {tuple(maps.shape)} in the model and {tuple(source_maps.shape)} "
                "in the source: the penalty must be called with the inputs of the model's latest forward pass"
            )
        weights = self.get_buffer(f"channel_weights_{index}") if self._weighted else None
        if weights is not None and weights.shape != maps.shape[1:2]:
            raise ValueError(
                f"layer {self.layers[index]!r} has {maps.shape[1]} channels; its channel_weights have shape "
                f"{tuple(weights.shape)}"
            )
        return map_distance(at_least_float32(maps), at_least_float32(source_maps), weights, counted)
