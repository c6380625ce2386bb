"""The Hessian of the mean loss as products with vectors: curvlinops for any network, a closed form for linear heads.

For a linear head with cross-entropy the Hessian does not see the network again once features F are stored:
with R = F V_W^T + v_b and s_n = w_n (diag p_n - p_n p_n^T) r_n, the product is H v = (S^T F, sum_n s_n).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pof._support.batches import Inputs, first_inputs
from pof._support.precision import at_least_float32
from pof._support.random import isolated
from pof.flatness._measure import (
    Data,
    Loss,
    Progress,
    check_mean,
    cross_entropy_options,
    outputs_of,
    read,
    store,
    weights_of,
)
from pof.head.split import SplitModel, split
from pof.perturbation.linear import respond
from pof.perturbation.loss import weight_of
from pof.perturbation.targets import encode_targets

Parameters = Literal["head", "all"]

# Samples times classes per block of the closed form: bounds its temporaries, whatever the number of samples.
_BLOCK_ELEMENTS = 2**22


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
    product: Callable[[Tensor], Tensor]
    """(P,) -> (P,), in ``dtype`` on ``device``."""


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
    device = next(model.parameters()).device
    data = read(loader, batches, device, "data", progress)
    if parameters == "all":
        return network_operator(model, loss, list(data), dict(model.named_parameters()), seed)
    if parameters != "head":
        raise ValueError(f"parameters must be 'head' or 'all'; got {parameters!r}")
    parts = split(model, head)
    first = next(data)
    options = cross_entropy_options(loss)
    names = {f"{parts.head_name}.{name}".lstrip("."): p for name, p in parts.head.named_parameters()}
    if options is None or not parts.linear or not _ends_with_head(parts, first[0]):
        return network_operator(model, loss, [first, *data], names, seed)
    stored = store(parts.features_and_logits, chain([first], data))
    smoothing, class_weights = options
    encoded = encode_targets(stored.targets, stored.logits, smoothing, class_weights=class_weights)
    weights = encoded.weights(stored.logits)
    return head_operator(stored.features, stored.logits, parts.bias is not None, weights, tuple(names))


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
    n, d = features.shape
    c = weight.shape[0]
    p = torch.softmax(respond(features, weight, bias), dim=1)
    w = features.new_full((n,), 1.0 / n) if sample_weights is None else sample_weights
    a = features if bias is None else torch.cat([features, features.new_ones(n, 1)], dim=1)
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    full = torch.einsum("n,nij,nk,nl->ikjl", w, blocks, a, a)
    order = torch.arange(c * a.shape[1], device=features.device).view(c, -1)
    order = torch.cat([order[:, :d].flatten(), order[:, d:].flatten()])
    return full.reshape(c * a.shape[1], -1)[order][:, order]


def network_operator(
    model: nn.Module, loss: Loss, data: Data, parameters: Mapping[str, nn.Parameter], seed: int
) -> Operator:
    """Hessian of the mean loss in any parameters of any module, frozen or not; a product goes through all the data.

    Forward over reverse (curvlinops).  Where a part of the network has no forward-mode derivative, double backward.
    Each product is on global generators seeded with ``seed``, for modules that draw even in eval mode.

    Returns:
        The operator.

    Raises:
        ValueError: if there are no parameters, or they have several dtypes or less than 32 bits.
        ImportError: if curvlinops is missing.
    """
    dtypes = {p.dtype for p in parameters.values()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"a Hessian needs parameters of one dtype, float32 or float64; got {sorted(map(str, dtypes))}")
    try:
        with _quiet():
            from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ImportError("the Hessian of a whole network needs curvlinops: pip install 'pof[app]'") from error
    samples = sum(len(targets) for _, targets in data)
    first = next(iter(parameters.values()))
    share = _Share(loss, sum(weights_of(loss, data)))
    with torch.no_grad():  # how the outputs are read is decided outside of any derivative
        outputs_of(model, first_inputs(data[0][0], 8), loss=loss)
    hessian = HessianLinearOperator(
        _Outputs(model, loss),
        share,
        list(parameters.values()),
        data,
        check_deterministic=False,
        num_data=samples,
        batch_size_fn=len,  # asked for, but without part in a sum
    )
    forward_mode = True

    def product(vector: Tensor) -> Tensor:
        nonlocal forward_mode
        if forward_mode:
            try:
                with _repeatable(seed, first.device):
                    result: Tensor = hessian @ vector
                    return result
            except NotImplementedError:  # SiLU, Mish, GroupNorm, weight norm
                forward_mode = False
        with _repeatable(seed, first.device), _TwiceDifferentiable():
            return _double_backward(model, share, data, parameters, vector)

    size = sum(p.numel() for p in parameters.values())
    return Operator(tuple(parameters), size, samples, first.dtype, first.device, product)


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

    return Operator(names, c * d + (c if has_bias else 0), n, features.dtype, features.device, product)


def linear_head_operator(
    features: Tensor, weight: Tensor, bias: Tensor | None, sample_weights: Tensor | None
) -> Operator:
    """Hessian of the head with these parameters on stored features, in closed form."""
    features = at_least_float32(features.detach())
    logits = respond(features, weight.detach(), None if bias is None else bias.detach()).to(features.dtype)
    w = features.new_full((len(features),), 1.0 / len(features)) if sample_weights is None else sample_weights
    names = ("weight",) if bias is None else ("weight", "bias")
    return head_operator(features, logits, bias is not None, w.to(features), names)


@torch.enable_grad()
def _double_backward(
    model: nn.Module, share: _Share, data: Data, parameters: Mapping[str, Tensor], vector: Tensor
) -> Tensor:
    """H v as the gradient of g . v: slower than forward over reverse, but every twice differentiable module has it."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    wanted = list(leaves.values())
    total = torch.zeros_like(vector)
    for inputs, targets in data:
        value = share(outputs_of(model, inputs, leaves, share.loss), targets)
        gradients = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
        slope = torch.cat([g.flatten() for g in gradients]) @ vector
        total += torch.cat([h.flatten() for h in torch.autograd.grad(slope, wanted, materialize_grads=True)])
    return total


class _Outputs(nn.Module):
    """The model as curvlinops calls it: one positional input, a tensor out."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, inputs: Inputs) -> Tensor:
        return outputs_of(self.model, inputs, loss=self.loss)


class _Share(nn.Module):
    """A batch's share of the mean loss over all data, so that products over the batches have only to be added."""

    reduction = "sum"

    def __init__(self, loss: Loss, total: float) -> None:
        super().__init__()
        self.loss = loss
        self.total = total

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets) * (float(weight_of(self.loss, targets)) / self.total)


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
    with isolated(seed, device), sdpa_kernel(SDPBackend.MATH), _quiet():
        yield


class _TwiceDifferentiable(TorchFunctionMode):
    """Spell out what torch differentiates once only (hard sigmoid), or a second time wrongly (weight norm, fused)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3.0) / 6.0
        if getattr(func, "__name__", "") == "_weight_norm":
            direction, length, dim = args
            return direction * (length / torch.norm_except_dim(direction, 2, dim))
        return func(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    # A dependency of curvlinops, and torch's own forward-mode rules, still call torch.jit.script when first used.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        # Of modules without a batching rule, which mostly have no forward mode either.
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield
