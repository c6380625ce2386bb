"""Eigenvalues against dense Hessians: torch.func, the closed form, and matrices whose spectrum is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pof.flatness import (
    Loss,
    head_eigenvalues,
    head_hessian,
    hessian,
    hessian_trace,
    spectral_density,
    spectrum,
    top_eigenvalues,
)
from pof.flatness.eigenvalues import largest
from pof.flatness.hessian import Operator
from pof.flatness.spectrum import tridiagonal
from tests.flatness.nets import ConvNet, SoftmaxAfter, data, dense_hessian, joined, network, untouched

CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
LOSSES: dict[str, Loss] = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "class weights": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.1),
    "a function": lambda z, y: (z.sigmoid() - F.one_hot(y, 3)).square().mean(),
}
HEAD = ["fc.weight", "fc.bias"]
ALL = [name for name, _ in ConvNet().named_parameters()]


def diagonal(values: torch.Tensor) -> Operator:
    """A matrix with known spectrum in a random basis."""
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    matrix = q @ torch.diag(values.double()) @ q.T
    return Operator(("p",), n, 1, torch.float64, torch.device("cpu"), 1, lambda v: iter([v @ matrix]))


@pytest.mark.parametrize(
    ("parameters", "k", "name"),
    [*itertools.product(["head"], [1, 4], LOSSES), ("all", 2, "class weights"), ("all", 1, "a function")],
)
def test_equal_to_the_dense_hessian_with_an_unequal_last_batch(parameters: str, k: int, name: str) -> None:
    model, loss = network(), LOSSES[name]
    dense = dense_hessian(model, loss, data(), HEAD if parameters == "head" else ALL)
    values, vectors = torch.linalg.eigh(dense)
    with untouched(model):
        found = top_eigenvalues(model, loss, data(), k, parameters)
    # float64: Lanczos stops at 1e-10, the dense twin sums in another order.
    torch.testing.assert_close(found.values, values.flip(0)[:k], rtol=1e-8, atol=1e-8)
    assert (found.vectors.T @ vectors[:, -1:]).abs().amax() == pytest.approx(1.0, abs=1e-6)
    assert found.residuals.max() < 1e-8
    assert found.samples == 17
    assert found.names == tuple(HEAD if parameters == "head" else ALL)


@pytest.mark.parametrize("bias", [True, False])
def test_head_hessian_is_the_closed_form(bias: bool) -> None:
    model = network(bias=bias)
    names = HEAD if bias else HEAD[:1]
    x, _ = joined(data())
    model.eval()
    features = torch.tanh(model.body(torch.tanh(model.norm(model.conv(x))).flatten(1))).detach()
    closed = head_hessian(features, model.fc.weight.detach(), model.fc.bias.detach() if bias else None)
    dense = dense_hessian(model, nn.CrossEntropyLoss(), data(), names)
    torch.testing.assert_close(closed, dense, rtol=1e-10, atol=1e-12)
    found = head_eigenvalues(features, model.fc.weight, model.fc.bias, 2)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-8, atol=1e-12)


def test_sample_weights_enter_the_closed_form() -> None:
    g = torch.Generator().manual_seed(0)
    features, weight = (torch.randn(n, 5, dtype=torch.float64, generator=g) for n in (9, 3))
    w = torch.rand(9, dtype=torch.float64, generator=g)
    expected = sum(w[n] * 9 * head_hessian(features[n : n + 1], weight, None) / 9 for n in range(9))
    torch.testing.assert_close(head_hessian(features, weight, None, sample_weights=w), expected)
    found = head_eigenvalues(features, weight, None, sample_weights=w)
    assert float(found.values) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-8)


def test_confident_samples_keep_their_digits_in_float32() -> None:
    # 1 - p is about 1e-6 in every sample: computed as such it would be rounding error.
    g = torch.Generator().manual_seed(0)
    features = torch.randn(200, 8, generator=g)
    weight = torch.randn(4, 8, generator=g) * 0.1
    bias = torch.tensor([15.0, 0.0, 0.0, 0.0])
    exact = head_eigenvalues(features.double(), weight.double(), bias.double())
    found = head_eigenvalues(features, weight, bias)
    assert float(found.values) == pytest.approx(float(exact.values), rel=1e-4)


@pytest.mark.parametrize("parameters", ["head", "all"])
@pytest.mark.filterwarnings("ignore:SoftmaxAfter returns probabilities")
def test_a_softmax_after_the_head_is_left_out_of_the_cross_entropy(parameters: str) -> None:
    loss = nn.CrossEntropyLoss()
    expected = top_eigenvalues(network(), loss, data(), 2, parameters)
    found = top_eigenvalues(network(SoftmaxAfter), loss, data(), 2, parameters)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-7, atol=1e-10)


def test_what_else_follows_the_head_is_part_of_the_loss() -> None:
    class Scaled(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    model, loss = network(Scaled), nn.CrossEntropyLoss()
    dense = dense_hessian(model, loss, data(), HEAD)
    found = top_eigenvalues(model, loss, data(), 2)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(dense).flip(0)[:2], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_functions_and_dict_batches(parameters: str) -> None:
    class Wrapped(ConvNet):
        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": super().forward(pixels)}

    expected = top_eigenvalues(network(), nn.CrossEntropyLoss(), data(), 1, parameters)
    batches = [{"pixels": x, "labels": y} for x, y in data()]
    found = top_eigenvalues(network(Wrapped), F.cross_entropy, batches, 1, parameters)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=0)


def test_attention_has_a_hessian() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.fc = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).view(len(x), 1, -1, 12).chunk(3, dim=-1)
            return self.fc(F.scaled_dot_product_attention(q, k, v).mean(dim=(1, 2)))

    torch.manual_seed(0)
    model = Attention().double()
    batches = [(torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(3, (5,)))]
    dense = dense_hessian(model, nn.CrossEntropyLoss(), batches, [n for n, _ in model.named_parameters()])
    found = top_eigenvalues(model, nn.CrossEntropyLoss(), batches, 1, "all")
    assert float(found.values) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_a_shuffling_loader_gives_the_same_bits_and_batches_bound_it(parameters: str) -> None:
    x, y = joined(data((40,)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=9, shuffle=True)
    model = network()
    stages: list[tuple[str, int, int | None]] = []
    with untouched(model):
        found = [
            top_eigenvalues(
                model, nn.CrossEntropyLoss(), loader, 1, parameters, batches=2, progress=lambda *a: stages.append(a)
            )
            for _ in range(2)
        ]
    assert torch.equal(found[0].vectors, found[1].vectors)
    assert found[0].samples == 18
    assert stages[:2] == [("data", 1, 2), ("data", 2, 2)]
    assert stages.count(("Hessian products", found[0].products, None)) == 2


@pytest.mark.parametrize(
    "spectrum",
    [torch.linspace(-3, 2, 60), torch.tensor([5.0, 4.0, 4.0] + [0.0] * 50), -torch.arange(1.0, 41.0), torch.zeros(50)],
    ids=["both signs", "low rank, double", "negative", "zero"],
)
def test_known_spectrum(spectrum: torch.Tensor) -> None:
    found = largest(diagonal(spectrum), 3, tolerance=None, seed=0, progress=None)
    expected = spectrum.double().sort(descending=True).values[:3]
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-9)
    assert float(found.residuals.max()) < 1e-8


def test_float32_is_as_exact_as_its_products() -> None:
    spectrum = torch.linspace(0.5, 1.0, 200, dtype=torch.float64)
    exact = diagonal(spectrum)
    rounded = replace(
        exact, dtype=torch.float32, shares=lambda v: (share.float() for share in exact.shares(v.double()))
    )
    found = largest(rounded, 2, tolerance=None, seed=0, progress=None)
    # Close neighbours: a tolerance of 0.1 would stop at an error of 1e-3 already.
    torch.testing.assert_close(found.values, spectrum.flip(0)[:2], rtol=1e-5, atol=0)
    assert float(found.residuals.max()) < 1e-3


def test_quadratic_network_with_known_spectrum() -> None:
    # L = 1/2 mean (w . x)^2 * N-normalised: the Hessian is diag(1, 4, 9) for these inputs.
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)) * math.sqrt(3)
    batches = [(x[:2], torch.zeros(2, 1, dtype=torch.float64)), (x[2:], torch.zeros(1, 1, dtype=torch.float64))]
    found = top_eigenvalues(model, lambda z, y: 0.5 * (z - y).square().mean(), batches, 3, "all")
    torch.testing.assert_close(found.values, torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.vectors, torch.eye(3, dtype=torch.float64).flip(0).T)


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_trace_within_four_standard_errors(parameters: str) -> None:
    model = network()
    dense = dense_hessian(model, nn.CrossEntropyLoss(), data(), HEAD if parameters == "head" else ALL)
    with untouched(model):
        found = hessian_trace(model, nn.CrossEntropyLoss(), data(), 40, parameters)
    assert abs(found.value - float(dense.trace())) < 4 * found.standard_error
    # Rademacher probes: Var = 2 sum_{i != j} H_ij^2; the estimated error must be of that size.
    off = dense - torch.diag(dense.diagonal())
    assert found.standard_error == pytest.approx(float((2 * off.square().sum() / 40).sqrt()), rel=0.5)


def signs(probes: int, size: int) -> torch.Tensor:
    """The probes (n, P) that seed 0 gives."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([2 * torch.randint(2, (size,), generator=generator) - 1 for _ in range(probes)]).double()


class Unbatchable(torch.autograd.Function):
    """The square, whose derivative looks at a number, which a batched pass refuses."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return Twice.apply(gradient, x)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gradient, x)
        return 2 * gradient * x

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient, x = ctx.saved_tensors
        assert math.isfinite(float(outer.sum()))
        return 2 * outer * x, 2 * outer * gradient


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Unbatchable.apply(x)


LIMITS: dict[str, dict[str, Any]] = {
    "all together": {},
    "three in a pass": {"_TOGETHER_ELEMENTS": {True: 3 * 2500}},
    "one by one": {"_TOGETHER_ELEMENTS": {True: 0}},
    "no graph kept": {"_KEPT_ELEMENTS": 0},
    "four at a time": {"_PROBE_ELEMENTS": 4},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_each_probe_of_the_trace_is_its_quadratic_form(limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    dense = dense_hessian(model, nn.CrossEntropyLoss(), data(), ALL)
    for name, value in limits.items():
        if name == "_PROBE_ELEMENTS":
            monkeypatch.setattr(spectrum, name, value * len(dense))
        else:
            monkeypatch.setattr(hessian, name, value)
    stages: list[tuple[str, int, int | None]] = []
    with untouched(model):
        found = hessian_trace(
            model, nn.CrossEntropyLoss(), data(), 10, "all", progress=lambda *stage: stages.append(stage)
        )
    v = signs(10, len(dense))
    # float64: sums in another order.
    torch.testing.assert_close(found.probes, (v @ dense * v).sum(dim=1), rtol=1e-10, atol=1e-12)
    assert found.value == pytest.approx(float(found.probes.mean()), rel=1e-12)
    assert stages[-1] == ("trace", 10, 10)


def test_an_operator_that_cannot_be_batched_is_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = stack(Square()).double()
    batches = [(torch.randn(n, 8, dtype=torch.float64), torch.arange(n) % 3) for n in (5, 3)]
    grad, batched = torch.autograd.grad, []

    def counted(*args: Any, **options: Any) -> Any:
        batched.append(options.get("is_grads_batched", False))
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found = hessian_trace(model, nn.CrossEntropyLoss(), batches, 4, "all")
    assert batched == [False, True, False, False, False, False] * 2
    monkeypatch.undo()
    twin = nn.Sequential(model[0], Power(), model[2])
    dense = dense_hessian(twin, nn.CrossEntropyLoss(), batches, [n for n, _ in twin.named_parameters()])
    v = signs(4, len(dense))
    torch.testing.assert_close(found.probes, (v @ dense * v).sum(dim=1), rtol=1e-10, atol=1e-12)


class Power(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square()


def passes(monkeypatch: pytest.MonkeyPatch, measure: Callable[[nn.Module], Any]) -> tuple[int, int, int, Any]:
    """Forward passes, first and second backward passes of a measurement, and its result."""
    model, forward, backward = network(), [0], [0, 0]

    def counted(*args: Any, **options: Any) -> Any:
        backward[not options.get("create_graph", False)] += 1
        return grad(*args, **options)

    def called(*_: Any) -> None:
        forward[0] += 1

    grad = torch.autograd.grad
    model.register_forward_hook(called)
    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", counted)
        result = measure(model)
    return forward[0], *backward, result


def test_the_trace_goes_through_each_mini_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # One forward pass more, in which it is seen how the outputs are read.
    loss, n = nn.CrossEntropyLoss(), len(data())
    *together, _ = passes(monkeypatch, lambda model: hessian_trace(model, loss, data(), 10, "all"))
    assert together == [1 + n, n, n]
    monkeypatch.setattr(hessian, "_TOGETHER_ELEMENTS", {True: 0})
    *alone, _ = passes(monkeypatch, lambda model: hessian_trace(model, loss, data(), 10, "all"))
    assert alone == [1 + n, n, 10 * n]


def test_eigenvalues_keep_the_graphs_that_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(model: nn.Module) -> Any:
        return top_eigenvalues(model, nn.CrossEntropyLoss(), data(), 2, "all")

    n = len(data())
    forward, first, second, kept = passes(monkeypatch, measure)
    assert (forward, first, second) == (1 + n, n, kept.products * n)
    monkeypatch.setattr(hessian, "_KEPT_ELEMENTS", 0)
    forward, first, second, anew = passes(monkeypatch, measure)
    assert (forward, first, second) == (1 + anew.products * n, anew.products * n, anew.products * n)
    assert torch.equal(kept.vectors, anew.vectors)


@pytest.mark.parametrize("room", [0, 1500, 2**24])
def test_a_network_that_draws_has_one_hessian(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.3 * torch.randn_like(x))

    expected = hessian_trace(network(Noisy), nn.CrossEntropyLoss(), data(), 3, "all")
    assert not torch.equal(expected.probes, hessian_trace(network(), nn.CrossEntropyLoss(), data(), 3, "all").probes)
    monkeypatch.setattr(hessian, "_KEPT_ELEMENTS", room)
    monkeypatch.setattr(spectrum, "_PROBE_ELEMENTS", 0)
    monkeypatch.setattr(hessian, "_TOGETHER_ELEMENTS", {True: 0})
    found = hessian_trace(network(Noisy), nn.CrossEntropyLoss(), data(), 3, "all")
    torch.testing.assert_close(found.probes, expected.probes, rtol=1e-10, atol=1e-12)


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature() -> None:
    model = nn.Linear(3, 2).double()
    batches = [(torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64))]
    found = hessian_trace(model, lambda z, y: (z - y).mean(), batches, 3, "all")
    assert torch.equal(found.probes, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_density_has_the_moments_of_the_spectrum(parameters: str) -> None:
    model = network()
    values = torch.linalg.eigvalsh(
        dense_hessian(model, nn.CrossEntropyLoss(), data(), HEAD if parameters == "head" else ALL)
    )
    with untouched(model):
        found = spectral_density(model, nn.CrossEntropyLoss(), data(), 8, parameters, steps=8)
    for order in (1, 2, 3):
        moment = found.moment(order)
        assert abs(moment.value - float((values**order).mean())) < 4 * moment.standard_error
    # The Gaussians reach 6 widths beyond the last node: what is lost is below 1e-8.
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(8, dtype=torch.float64))


def test_quadrature_of_a_low_rank_matrix_stops_early_and_is_exact() -> None:
    operator = diagonal(torch.tensor([5.0, 2.0] + [0.0] * 30))
    main, off = tridiagonal(operator, torch.ones(32, dtype=torch.float64), 20)
    assert len(main) == 3
    nodes = torch.linalg.eigvalsh(torch.diag(main) + torch.diag(off, 1) + torch.diag(off, -1))
    torch.testing.assert_close(nodes, torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64), rtol=0, atol=1e-10)


def test_quadrature_over_the_whole_space_has_every_eigenvalue_once() -> None:
    # Orthogonalised once, the last nodes are wrong by 1e-6; twice, by rounding.
    spectrum = torch.arange(1.0, 41.0, dtype=torch.float64)
    start = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    main, off = tridiagonal(diagonal(spectrum), start, 40)
    nodes = torch.linalg.eigvalsh(torch.diag(main) + torch.diag(off, 1) + torch.diag(off, -1))
    torch.testing.assert_close(nodes, spectrum, rtol=1e-12, atol=0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x.view(len(x), 4, 2))[0][:, -1])


class HardSigmoid(nn.Module):
    """As ``nn.Hardsigmoid``, of functions that torch differentiates twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x + 3) / 6


class Empty(nn.Module):
    """With a parameter of no entries."""

    def __init__(self) -> None:
        super().__init__()
        self.none, self.fc = nn.Parameter(torch.empty(0, 4)), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.fc(x))


class Writing(nn.Module):
    """Writes into a buffer that its output is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.mul_(1.0)
        return torch.tanh(x / self.scale)


def stack(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), *middle, nn.Linear(4, 3))


SECOND_DERIVATIVES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module] | None]] = {
    "SiLU": (lambda: stack(nn.SiLU()), None),
    "Mish": (lambda: stack(nn.Mish()), None),
    "GroupNorm": (lambda: stack(nn.GroupNorm(1, 4), nn.Tanh()), None),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(8, 4)), nn.Tanh(), nn.Linear(4, 3)), None),
    "LSTM": (Recurrent, None),
    "LayerNorm": (lambda: stack(nn.LayerNorm(4), nn.Tanh()), None),
    "TorchScript": (lambda: torch.jit.script(stack(nn.Tanh())), lambda: stack(nn.Tanh())),
    "compiled": (lambda: torch.compile(stack(nn.Tanh()), backend="aot_eager"), lambda: stack(nn.Tanh())),
    "compiled whole": (
        lambda: torch.compile(stack(nn.Tanh()), backend="eager", fullgraph=True),
        lambda: stack(nn.Tanh()),
    ),
    "a parameter without entries": (lambda: stack(Empty()), None),
    "a buffer that is written": (lambda: stack(Writing()), None),
    "Hardsigmoid": (lambda: stack(nn.SiLU(), nn.Hardsigmoid()), lambda: stack(nn.SiLU(), HardSigmoid())),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", SECOND_DERIVATIVES)
def test_second_derivatives_that_torch_lacks_or_has_wrong_in_places(name: str) -> None:
    make, twin = SECOND_DERIVATIVES[name]
    torch.manual_seed(0)
    model = make().double()
    next(model.parameters()).requires_grad_(False)  # frozen parameters have curvature too
    other = model
    if twin is not None:
        other = twin().double()
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), other.parameters())
    batches = [(torch.randn(n, 8, dtype=torch.float64), torch.arange(n) % 3) for n in (5, 3)]
    parameters = {n: p.detach() for n, p in other.named_parameters()}
    sizes, (x, y) = [p.numel() for p in parameters.values()], joined(batches)

    def gradient(vector: torch.Tensor) -> torch.Tensor:
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        leaves = {n: v.view_as(p).detach().requires_grad_() for (n, p), v in parts}
        loss = F.cross_entropy(functional_call(other, leaves, (x,)), y)
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)]
        )

    # Differences of gradients: torch's own second derivative of weight norm is wrong.
    flat = torch.cat([p.flatten() for p in parameters.values()])
    moves = 1e-5 * torch.eye(len(flat), dtype=torch.float64)
    dense = torch.stack([(gradient(flat + e) - gradient(flat - e)) / 2e-5 for e in moves])
    with untouched(model):
        found = top_eigenvalues(model, nn.CrossEntropyLoss(), batches, 2, "all")
    # Central differences of step 1e-5 are good for about 1e-9.
    expected = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:2]
    torch.testing.assert_close(found.values, expected, rtol=1e-7, atol=1e-8)
    assert found.names == tuple(name for name, _ in model.named_parameters())


def test_bad_requests_say_what_to_do() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"k must be between 1 and the number of parameters 15; got 16"):
        top_eigenvalues(model, loss, data(), 16)
    with pytest.raises(ValueError, match="'head' or 'all'; got 'body'"):
        top_eigenvalues(model, loss, data(), parameters="body")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction='sum'"):
        top_eigenvalues(model, nn.CrossEntropyLoss(reduction="sum"), data())
    with pytest.raises(ValueError, match="no batch"):
        top_eigenvalues(model, loss, [])
    with pytest.raises(ValueError, match="batches must be a whole number >= 1"):
        top_eigenvalues(model, loss, data(), batches=0)
    with pytest.raises(ValueError, match="probes must be a whole number >= 2"):
        hessian_trace(model, loss, data(), 1)
    with pytest.raises(ValueError, match="float32 or float64"):
        top_eigenvalues(model.half(), loss, data(), parameters="all")


def test_not_finite_is_said_and_everything_is_put_back() -> None:
    model = network()
    broken = [(x * torch.nan, y) for x, y in data()]
    with untouched(model), pytest.raises(ValueError, match="NaN"):
        top_eigenvalues(model, nn.CrossEntropyLoss(), broken, parameters="all")


def test_samples_are_counted_where_targets_are_a_mapping() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(n, 8), {"class": torch.arange(n) % 3, "unused": torch.arange(n)}) for n in (5, 3)]

    def loss(outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return F.cross_entropy(outputs, targets["class"])

    assert top_eigenvalues(stack(nn.Tanh()), loss, batches, 1, "all").samples == 8


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_another_index_to_be_ignored(parameters: str) -> None:
    """The closed form of a linear head knows -100 alone."""
    model, loss = network(), nn.CrossEntropyLoss(ignore_index=2)
    names = HEAD if parameters == "head" else ALL
    values = torch.linalg.eigvalsh(dense_hessian(model, loss, data(), names))
    found = top_eigenvalues(model, loss, data(), 2, parameters)
    torch.testing.assert_close(found.values, values.flip(0)[:2], rtol=1e-8, atol=1e-8)


def test_a_mini_batch_of_classes_without_weight_has_no_curvature() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64))
    batches = data()
    batches[2][1][:] = 1
    for parameters in ("head", "all"):
        found = top_eigenvalues(network(), loss, batches, 1, parameters)
        assert torch.allclose(found.values, top_eigenvalues(network(), loss, batches[:2], 1, parameters).values)


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_inputs_of_inference_mode(parameters: str) -> None:
    with torch.inference_mode():
        batches = [(x.clone(), y) for x, y in data()]
    found = top_eigenvalues(network(), LOSSES["a function"], batches, 1, parameters)
    assert torch.equal(found.values, top_eigenvalues(network(), LOSSES["a function"], data(), 1, parameters).values)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [weight_norm, nn.utils.weight_norm], ids=["new", "old"])
def test_the_head_is_its_own_parameters(norm: Callable[[nn.Module], nn.Module]) -> None:
    """Not the weight that is computed of them; against differences, as torch's second derivative is wrong here."""
    model = network()
    model.fc = norm(model.fc)  # type: ignore[assignment]
    own, loss, (x, y) = dict(model.fc.named_parameters(prefix="fc")), nn.CrossEntropyLoss(), joined(data())
    found = top_eigenvalues(model, loss, data(), 1, "head")
    assert found.names == tuple(own) and len(found.vectors) == sum(p.numel() for p in own.values())

    def gradient(amount: float) -> torch.Tensor:
        parts = found.vectors[:, 0].split([p.numel() for p in own.values()])
        moved = {n: (p + amount * v.view_as(p)).detach() for (n, p), v in zip(own.items(), parts, strict=True)}
        leaves = {name: p.requires_grad_() for name, p in moved.items()}
        grads = torch.autograd.grad(loss(functional_call(model.eval(), leaves, (x,)), y), list(leaves.values()))
        return torch.cat([g.flatten() for g in grads])

    product = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    torch.testing.assert_close(product, found.values * found.vectors[:, 0], rtol=1e-6, atol=1e-7)


def test_a_bias_that_comes_first() -> None:
    class Head(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            weight = self._parameters.pop("weight")
            self._parameters["weight"] = weight

    model = network()
    model.fc = Head().double()
    found = top_eigenvalues(model, nn.CrossEntropyLoss(), data(), 1, "head")
    assert found.names == ("fc.weight", "fc.bias")
    order = torch.arange(15).roll(-3)  # in the dense one the bias comes first
    dense = dense_hessian(model, nn.CrossEntropyLoss(), data(), list(found.names))[order][:, order]
    product = dense @ found.vectors
    torch.testing.assert_close(product, found.values * found.vectors, rtol=1e-6, atol=1e-6)
