"""The Hessian of the mean loss as a product with vectors: curvlinops for any network, a closed form for linear heads.

For a linear head with cross-entropy the Hessian does not see the network again once features F are stored:
with R = F V_W^T + v_b and s_n = w_n (diag p_n - p_n p_n^T) r_n, the product is H v = (S^T F, sum_n s_n).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pof._support.batches import Inputs, batch_size, call, logits_of
from pof._support.random import isolated
from pof.flatness._measure import Loss, batch_weight

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


class _Outputs(nn.Module):
    """The model as curvlinops calls it: one positional input, a tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return logits_of(call(self.model, inputs))


class _Share(nn.Module):
    """A batch's share of the mean loss over all data, so that curvlinops has only to add."""

    reduction = "sum"

    def __init__(self, loss: Loss, total: float) -> None:
        super().__init__()
        self.loss = loss
        self.total = total

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets) * (batch_weight(self.loss, outputs.shape[0], targets) / self.total)


@contextmanager
def _without_jit_warnings() -> Iterator[None]:
    # A dependency of curvlinops, and torch's own forward-mode rules, still call torch.jit.script when first used.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


def network_operator(
    model: nn.Module,
    loss: Loss,
    data: list[tuple[Inputs, Tensor]],
    parameters: Mapping[str, nn.Parameter],
    seed: int,
) -> Operator:
    """Hessian of the mean loss in any parameters of any module, forward over reverse (curvlinops).

    Args:
        model: in eval mode.
        loss: the mean over a batch.
        data: batches on the model's device; every product goes through all of them.
        parameters: those to differentiate by, frozen or not.
        seed: of the global generators in each product, for modules that draw even in eval mode.

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
        with _without_jit_warnings():
            from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ImportError("the Hessian of a whole network needs curvlinops: pip install 'pof[app]'") from error
    total = sum(batch_weight(loss, batch_size(inputs), targets) for inputs, targets in data)
    samples = sum(batch_size(inputs) for inputs, _ in data)
    first = next(iter(parameters.values()))
    hessian = HessianLinearOperator(
        _Outputs(model),
        _Share(loss, total),
        list(parameters.values()),
        data,
        check_deterministic=False,
        num_data=samples,
        batch_size_fn=batch_size,
    )

    def product(vector: Tensor) -> Tensor:
        # Fused attention kernels have no second derivative.
        with isolated(seed, first.device), sdpa_kernel(SDPBackend.MATH), _without_jit_warnings():
            result: Tensor = hessian @ vector
        return result

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
