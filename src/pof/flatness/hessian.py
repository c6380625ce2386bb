"""The Hessian of the mean loss as products with vectors: double backward, or a closed form for linear heads.

For a linear head with cross-entropy the Hessian does not see the network again once features F are stored:
with R = F V_W^T + v_b and s_n = w_n (diag p_n - p_n p_n^T) r_n, the product is H v = (S^T F, sum_n s_n).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pof._support.batches import Inputs, first_inputs, samples_of
from pof._support.modules import device_of
from pof._support.precision import wide_dtype, without_autocast
from pof._support.random import derive_seed, isolated
from pof.flatness._measure import (
    Data,
    Loss,
    Progress,
    check_mean,
    counting,
    cross_entropy_options,
    loss_on,
    outputs_of,
    read,
    store,
    weights_of,
)
from pof.head.listen import uncompiled
from pof.head.search import has_own_weight
from pof.head.split import SplitModel, split
from pof.perturbation.linear import respond
from pof.perturbation.targets import IGNORED, encode_targets

Parameters = Literal["head", "all"]

# Samples times classes per block of the closed form: bounds its temporaries, whatever the number of samples.
_BLOCK_ELEMENTS = 2**22
# Elements of a mini-batch's activations and parameters, times vectors in one pass: more leaves a processor's cache
# (measured: MLPs and CNNs), and bounds the temporaries of a GPU (not measured).
_TOGETHER_ELEMENTS = {True: 2**20, False: 2**26}
# The same elements, summed over the mini-batches whose graphs are kept from product to product.
_KEPT_ELEMENTS = 2**24
# Samples on which the activations are counted.
_TRIED = 8


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix (P, P) known by its products."""

    names: tuple[str, ...]
    """Parameters in the order of a vector's entries, each flattened."""
    size: int
    """P."""
    samples: int
    """N, samples in the mean."""
    dtype: torch.dtype
    device: torch.device
    batches: int
    """Parts that a product is the sum of."""
    shares: Callable[[Tensor], Iterator[Tensor]]
    """(K, P) -> those parts of K products one after the other, (K, P) each, in ``dtype`` on ``device``."""

    def product(self, vector: Tensor) -> Tensor:
        """Multiply the matrix with a vector (P,)."""
        return reduce(torch.add, self.shares(vector.unsqueeze(0)))[0]


def hessian_operator(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    parameters: Parameters,
    *,
    head: str | None,
    batches: int | None,
    seed: int,
    progress: Progress | None,
) -> Operator:
    """Choose the cheapest exact product with the Hessian; call it inside of ``measuring``."""
    check_mean(loss)
    device = device_of(model)
    data = read(loader, batches, device, "data", progress)
    if parameters == "all":
        return network_operator(model, loss, list(counting(loss, data)), dict(model.named_parameters()), seed)
    if parameters != "head":
        raise ValueError(f"parameters must be 'head' or 'all'; got {parameters!r}")
    parts = split(model, head)
    first = next(data)
    options = cross_entropy_options(loss)
    names = {f"{parts.head_name}.{name}".lstrip("."): p for name, p in parts.head.named_parameters()}
    counted = counting(loss, chain([first], data))
    # Its weight may be computed from other parameters, as with weight norm; it knows -100 alone.
    closed = parts.linear and has_own_weight(parts.head)
    if options is None or options[2] != IGNORED or not closed or not _ends_with_head(parts, first[0]):
        return network_operator(model, loss, list(counted), names, seed)
    stored = store(parts.features_and_logits, counted)
    smoothing, class_weights, _ = options
    encoded = encode_targets(stored.targets, stored.logits, smoothing, class_weights=class_weights)
    weights = encoded.weights(stored.logits)
    order = tuple(sorted(names, key=lambda name: name.endswith("bias")))
    return head_operator(stored.features, stored.logits, parts.bias is not None, weights, order)


@torch.no_grad()
def head_hessian(
    features: Tensor, weight: Tensor, bias: Tensor | None, *, sample_weights: Tensor | None = None
) -> Tensor:
    """Hessian of the cross-entropy in the parameters of a linear head, as a matrix.

    H = sum_n w_n (diag p_n - p_n p_n^T) kron (a_n a_n^T), a_n = (f_n, 1).  It does not depend on the targets;
    class weights enter through ``sample_weights``.  For checks and small heads: P^2 numbers.

    Args:
        features: (N, D).
        weight: (C, D).
        bias: (C,) or None.
        sample_weights: (N,); None for the mean, 1/N each.

    Returns:
        (P, P), P = C D (+ C): the weight row by row, then the bias, as in ``nn.Linear.parameters()``.
    """
    (n, d), c = features.shape, weight.shape[0]
    features, logits = _with_logits(features, weight, bias)
    p = torch.softmax(logits, dim=1)
    w = features.new_full((n,), 1.0 / n) if sample_weights is None else sample_weights
    a = features if bias is None else torch.cat([features, features.new_ones(n, 1)], dim=1)
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    with without_autocast(features.device):
        full = torch.einsum("n,nij,nk,nl->ikjl", w.to(a), blocks, a, a)
    order = torch.arange(c * a.shape[1], device=features.device).view(c, -1)
    order = torch.cat([order[:, :d].flatten(), order[:, d:].flatten()])
    return full.reshape(c * a.shape[1], -1)[order][:, order]


def network_operator(
    model: nn.Module, loss: Loss, data: Data, parameters: Mapping[str, nn.Parameter], seed: int
) -> Operator:
    """Hessian of the mean loss in any parameters of any module, frozen or not; a product goes through all the data.

    H v is the gradient of g . v (Pearlmutter, 1994): torch's forward mode, over the gradient, is wrong for LayerNorm
    (2.14) and missing for SiLU, GroupNorm and others.  A mini-batch goes forward and back to g once for all vectors
    that are asked for together, and once for all products where the graphs that are kept stay small.
    Each mini-batch is on global generators seeded for it, for modules that draw even in eval mode.

    Returns:
        The operator.

    Raises:
        ValueError: if there are no parameters, or they have several dtypes or less than 32 bits.
    """
    dtypes = {p.dtype for p in parameters.values()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"a Hessian needs parameters of one dtype, float32 or float64; got {sorted(map(str, dtypes))}")
    weights = weights_of(loss, data)
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    first = next(iter(leaves.values()))
    size = sum(p.numel() for p in leaves.values())
    tried = first_inputs(data[0][0], _TRIED)
    # How the outputs are read is decided outside of any derivative.
    with torch.no_grad(), uncompiled(), _Elements() as computed:
        outputs_of(model, tried, loss=loss, targets=data[0][1])
    per_sample = computed.count / min(_TRIED, samples_of(data[0][1]))
    kept: dict[int, tuple[Tensor, ...]] = {}
    room = _KEPT_ELEMENTS

    def gradient(index: int, elements: int) -> tuple[Tensor, ...]:
        nonlocal room
        inputs, targets = data[index]
        before = _versions(model)
        with _TwiceDifferentiable(), uncompiled():
            value = loss_on(model, loss, leaves, inputs, targets) * (weights[index] / sum(weights))
        found = torch.autograd.grad(value, list(leaves.values()), create_graph=True, materialize_grads=True)
        if _versions(model) != before:  # a graph may hold a buffer that the next forward writes
            kept.clear()
            room = 0
        if elements <= room:
            kept[index], room = found, room - elements
        return found

    def shares(vectors: Tensor) -> Iterator[Tensor]:
        for index, (_, targets) in enumerate(data):
            elements = size + int(per_sample * samples_of(targets))
            with _repeatable(derive_seed(seed, index), first.device), torch.enable_grad():
                found = kept[index] if index in kept else gradient(index, elements)
                together = max(1, _TOGETHER_ELEMENTS[first.device.type == "cpu"] // elements)
                share = _derivative(found, list(leaves.values()), vectors, together)
            del found  # the graph, while the next one is built
            yield share

    samples = sum(samples_of(targets) for _, targets in data)
    return Operator(tuple(parameters), size, samples, first.dtype, first.device, len(data), shares)


def _versions(model: nn.Module) -> list[int]:
    return [buffer._version for buffer in model.buffers() if not buffer.is_inference()]


def head_operator(
    features: Tensor, logits: Tensor, has_bias: bool, sample_weights: Tensor, names: tuple[str, ...]
) -> Operator:
    """Hessian of the cross-entropy in the parameters of a linear head, in closed form.

    Args:
        features: (N, D).
        logits: (N, C).
        has_bias: whether the head has one; its entries come after the weight's.
        sample_weights: (N,), w; 1/N for the plain mean.
        names: of weight and bias.

    Returns:
        The operator of size C * D (+ C).
    """
    n, d = features.shape
    c = logits.shape[1]
    probabilities = torch.softmax(logits, dim=1)
    top = probabilities.argmax(dim=1, keepdim=True)
    step = max(1, _BLOCK_ELEMENTS // c)

    @torch.no_grad()
    def product(vector: Tensor) -> Tensor:
        weight, bias = vector[: c * d].view(c, d), vector[c * d :]
        out_weight, out_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for i in range(0, n, step):
            f, p, w = features[i : i + step], probabilities[i : i + step], sample_weights[i : i + step]
            r = f @ weight.T
            if has_bias:
                r = r + bias
            # Relative to the likely class: for confident samples r - p.r would lose all digits of 1 - p.
            r = r - r.gather(1, top[i : i + step])
            s = w.unsqueeze(1) * p * (r - (p * r).sum(dim=1, keepdim=True))
            out_weight += s.T @ f
            if has_bias:
                out_bias += s.sum(dim=0)
        return torch.cat([out_weight.flatten(), out_bias])

    def shares(vectors: Tensor) -> Iterator[Tensor]:
        yield torch.stack([product(vector) for vector in vectors])

    return Operator(names, c * d + (c if has_bias else 0), n, features.dtype, features.device, 1, shares)


def linear_head_operator(
    features: Tensor, weight: Tensor, bias: Tensor | None, sample_weights: Tensor | None
) -> Operator:
    """Hessian of the head with these parameters on stored features, in closed form."""
    features, logits = _with_logits(features, weight, bias)
    w = features.new_full((len(features),), 1.0 / len(features)) if sample_weights is None else sample_weights
    names = ("weight",) if bias is None else ("weight", "bias")
    return head_operator(features, logits, bias is not None, w.to(features), names)


@torch.no_grad()
def _with_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = wide_dtype(features, weight)
    features = features.detach().to(dtype)
    return features, respond(features, weight.to(dtype), None if bias is None else bias.to(dtype))


def _derivative(gradients: Sequence[Tensor], leaves: Sequence[Tensor], vectors: Tensor, together: int) -> Tensor:
    # Of the gradient's products with K vectors (K, P), so many of them in one pass; where an operator of the network
    # cannot be batched, one.  (K, P).
    result = torch.zeros_like(vectors)
    sizes = [leaf.numel() for leaf in leaves]
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]  # in the others the loss is linear
    start = 0
    while curved and start < len(vectors):
        rows = slice(start, start + together)
        columns = [
            v.view(len(v), *leaf.shape) for v, leaf in zip(torch.split(vectors[rows], sizes, 1), leaves, strict=True)
        ]
        batched = len(columns[0]) > 1
        try:
            found = torch.autograd.grad(
                [gradients[i] for i in curved],
                leaves,
                [columns[i] if batched else columns[i][0] for i in curved],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        except RuntimeError:
            if not batched:
                raise
            together = 1
            continue
        for part, derivative in zip(torch.split(result[rows], sizes, 1), found, strict=True):
            if derivative is not None:
                part.copy_(derivative.reshape(part.shape))
        start += together
    return result


def _ends_with_head(parts: SplitModel, inputs: Inputs) -> bool:
    # Where more follows, the Hessian in the head's parameters has no closed form, but exists.
    try:
        parts.place(inputs)
    except ValueError:
        return False
    return True


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    # Fused attention kernels have no second derivative.
    with isolated(seed, device), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # Of operators without a batching rule, which torch takes one by one.
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield


class _Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the elements of the tensors that the body computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.count += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result


class _TwiceDifferentiable(TorchFunctionMode):
    """Spell out what torch differentiates once only (hard sigmoid), or a second time wrongly (weight norm, fused)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3.0) / 6.0
        if getattr(func, "__name__", "") == "_weight_norm":
            direction, length, dim = args
            return direction * (length / torch.norm_except_dim(direction, 2, dim))
        return func(*args, **(kwargs or {}))
