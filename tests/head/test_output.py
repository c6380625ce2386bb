"""The head's logits are the network's own output, up to what softmax cannot see; what else is refused, and why."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.head.output import tell_of_others
from pof.head.search import find_head
from pof.head.split import split
from pof.training.evaluation import evaluate

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


class Body(nn.Module):
    """Features (N, 8) and a head ``fc``; ``end(self, features, logits)`` makes the output."""

    def __init__(self, end: Callable[[Any, Tensor, Tensor], Any] = lambda _, __, z: z, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)
        self.end = end
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, inputs: Tensor) -> Any:
        features = self.body(inputs)
        return self.end(self, features, self.fc(features))


class Scale(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(value)))

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.log_scale.exp()


class Zero(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def methods(model: nn.Module) -> list[pof.methods.Method]:
    return [pof.Finetune(model), pof.SharpnessAware(model), pof.PoF(model), pof.HeadAscent(model)]


# What softmax cannot see


SEEN_ALIKE = {
    "the logits": lambda _, __, z: z,
    "shifted": lambda _, __, z: z - z.mean(dim=1, keepdim=True),
    "log-softmax": lambda _, __, z: z.log_softmax(dim=1),
    "softmax": lambda _, __, z: z.softmax(dim=1),
    "dropout": lambda s, __, z: F.dropout(z, 0.5, s.training),
    "an object": lambda _, f, z: {"logits": z, "features": f},
}


@pytest.mark.parametrize("end", SEEN_ALIKE.values(), ids=SEEN_ALIKE)
def test_what_softmax_cannot_see_is_taken(end: Callable[..., Any]) -> None:
    model = Body(end)
    features, logits = split(model).features_and_logits(X)
    assert torch.equal(logits, model.fc(features))


def test_the_check_leaves_no_trace_and_runs_once() -> None:
    model = Body(drop=nn.Dropout())
    model.end = lambda s, __, z: s.drop(z)
    model.fc.eval()
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    torch.manual_seed(1)
    twin(X)
    parts, random = split(model), torch.get_rng_state()
    torch.manual_seed(1)
    parts.features_and_logits(X)
    # As after one forward: statistics, generators and modes, for the check is in eval mode and put back.
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in twin.state_dict().items())
    assert not torch.equal(before["body.1.running_mean"], model.body[1].running_mean)
    assert [m.training for m in (model, model.fc, model.body)] == [True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    calls: list[Tensor] = []
    model.register_forward_hook(lambda m, args, out: calls.append(out))
    parts.features_and_logits(X)
    assert len(calls) == 1


# Other outputs


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "temperature": (lambda: Body(lambda s, __, z: s.scale(z), scale=Scale(10.0)), "is not the end of the network"),
    "temperature that is still 1": (
        lambda: Body(lambda s, __, z: s.scale(z), scale=Scale(1.0)),
        r"depends on 'scale.log_scale' beside the head 'fc'",
    ),
    "fixed scale": (lambda: Body(lambda _, __, z: 16 * z), "differ by up to"),
    "second branch": (
        lambda: Body(lambda s, f, z: z + s.aux_branch(f), aux_branch=nn.Linear(8, 3)),
        "a second branch or head",
    ),
    "second branch that is still 0": (
        lambda: Body(lambda s, f, z: z + s.aux_branch(f), aux_branch=Zero(8, 3)),
        r"depends on 'aux_branch.weight'",
    ),
    "sigmoid": (lambda: Body(lambda _, __, z: z.sigmoid()), "returns the sigmoid of its head 'fc'"),
    "other shape": (lambda: Body(lambda _, __, z: z[:, :2]), r"returned \(8, 3\), but the network \(8, 2\)"),
    "no logits": (lambda: Body(lambda _, __, z: {"text": "none"}), "no logits are in the network's output"),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_logits_that_are_not_the_networks_are_refused(build: Callable[[], nn.Module], reason: str) -> None:
    for method in methods(build()):
        with pytest.raises(ValueError, match=reason):
            method(X, Y, X, Y)


def test_the_remedy_is_named_and_helps() -> None:
    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(8, 3), Scale(10.0)

        def forward(self, features: Tensor) -> Tensor:
            return self.scale(self.linear(features))  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Top())
    assert find_head(model) == "2.linear"
    with pytest.raises(ValueError, match=r'with head="name" name the module that returns the final logits, or wrap'):
        pof.Finetune(model)(X, Y)
    for method in (pof.Finetune(model, head="2"), pof.HeadAscent(model, head="2").eval()):
        torch.testing.assert_close(method(X, Y).loss, F.cross_entropy(model(X), Y))
    pof.HeadAscent(model, head="2")(X, Y).loss.backward()
    assert model[0].weight.grad is not None


def test_equal_logits_are_checked_again() -> None:
    model = Body(lambda _, __, z: 16 * z)
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    parts = split(model)
    parts.features_and_logits(X)  # 16 times 0
    nn.init.normal_(model.fc.weight)
    with pytest.raises(ValueError, match="is not the end of the network"):
        parts.features_and_logits(X)


@pytest.mark.parametrize(("end", "works"), [("the logits", True), ("softmax", False), ("shifted", False)])
def test_a_custom_loss_sees_the_values_themselves(end: str, works: bool) -> None:
    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, 3).to(outputs))

    for method in (pof.PoF(Body(SEEN_ALIKE[end]), loss=squared), pof.HeadAscent(Body(SEEN_ALIKE[end]), loss=squared)):
        if works:
            assert method(X, Y, X, Y).loss > 0
        else:
            with pytest.raises(ValueError, match="or let the network return the logits"):
                method(X, Y, X, Y)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_one_logit_is_compared_by_value(factor: float) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    if factor == 1.0:
        assert split(model).features_and_logits(X)[1].shape == (24, 1)
    else:
        parts = split(nn.Sequential(model, nn.Unflatten(1, (1,)), nn.Threshold(5.0, 0.0)), head="0.2")
        with pytest.raises(ValueError, match="is not the end of the network"):
            parts.features_and_logits(X)


# Several tensors


def pairs(first: str) -> Body:
    return Body(lambda _, f, z: (f, z) if first == "features" else (z, f))


@pytest.mark.parametrize("first", ["features", "logits"])
def test_of_several_tensors_the_one_of_the_head_is_taken(first: str) -> None:
    model = pairs(first)
    alone = Body()
    assert evaluate(model, [(X, Y)]) == evaluate(alone, [(X, Y)])
    named = Body(lambda _, f, z: {"features": f, "out": z})
    assert evaluate(named, [(X, Y)]).num_classes == 3
    found = pof.flatness.sam_sharpness(model, nn.CrossEntropyLoss(), [(X, Y)], seed=0)
    assert found == pof.flatness.sam_sharpness(alone, nn.CrossEntropyLoss(), [(X, Y)], seed=0)
    assert pof.Finetune(model)(X, Y).logits.shape == (24, 3)


def test_two_heads_need_a_name_and_get_it() -> None:
    model = Body(lambda s, f, z: (s.head(f), z), head=nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"returns \(24, 5\) at 0, \(24, 3\) at 1, .* more than one .*'fc', 'head'"):
        evaluate(model, [(X, Y)])
    assert evaluate(model, [(X, Y)], head="fc").num_classes == 3
    assert evaluate(model, [(X, Y)], head="head").num_classes == 5
    with pytest.warns(UserWarning, match=r"other outputs of the network \(1\) are not trained"):
        result = pof.fit(pof.Finetune(model, head="head"), [(X, Y)], epochs=1, val_loader=[(X, Y)], device="cpu")
    assert result.history[-1]["val_num_classes"] == 5


def one_node(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As DDP returns its outputs where it looks for unused parameters."""

    class Sink(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            return tuple(tensor.clone() for tensor in given)

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
            return given

    found: tuple[Tensor, ...] = Sink.apply(*tensors)
    return found


OTHERS: dict[str, tuple[Any, str]] = {
    "in a list": (lambda s, f, z: (z, [s.head(f)]), "1.0"),
    "in a dict": (lambda s, f, z: {"logits": z, "heads": {"b": s.head(f)}}, "heads.b"),
    "in an object": (lambda s, f, z: SimpleNamespace(logits=z, other=s.head(f)), "other"),
    "a loss of its own": (lambda s, f, z: {"logits": z, "aux_loss": f.square().mean()}, "aux_loss"),
    "features": (lambda s, f, z: {"logits": z, "hidden": [f], "norm": f.norm()}, ""),
    "in two": (lambda s, f, z: {"logits": z, **dict(zip("ab", s.head(f).split([2, 3], 1), strict=True))}, "a, b"),
    "twice": (lambda s, f, z: (lambda other: {"logits": z, "aux": other, "last": other})(s.head(f)), "aux"),
    "losses": (lambda s, f, z: {"logits": z, "loss_ce": f.mean(), "glossiness": f.norm()}, "loss_ce"),
    "losses in capitals": (lambda s, f, z: {"logits": z, "AUX_LOSS": f.mean(), "vqloss": f.norm()}, "AUX_LOSS, vqloss"),
    "made when asked for": (lambda s, f, z: Lazy(logits=z, a=f, b=f, c=s.head(f)), "c.0"),
    "itself": (lambda s, f, z: holding_itself({"logits": z}), ""),
    "of one node": (lambda s, f, z: one_node(z, s.head(f)) if s.training else (z, s.head(f)), ""),
}


class Lazy(dict[str, Tensor]):
    """Makes its values when they are asked for, and keeps none of them."""

    def items(self) -> Any:
        return ((name, [self[name]]) if name != "logits" else (name, self[name]) for name in self)


def holding_itself(output: dict[str, Any]) -> dict[str, Any]:
    output["self"] = output
    return output


def test_the_graph_of_many_outputs_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of a recurrent network depend on all before them."""
    walked: list[int] = []
    walk = pof.head.output._nodes

    def counting(starts: Any, ends: Any = frozenset()) -> Any:
        found = walk(starts, ends)
        walked.append(len(found))
        return found

    monkeypatch.setattr(pof.head.output, "_nodes", counting)
    totals = []
    for count in (10, 40):
        walked.clear()
        weight, other, end = (torch.ones(8, 8, requires_grad=True) for _ in range(3))
        start = X[:, :1] @ torch.ones(1, 8, requires_grad=True)
        hidden, own = [start], [start.tanh()]
        for _ in range(count):
            hidden.append(torch.tanh(hidden[-1] @ weight))
            own.append(torch.tanh(own[-1] @ other))
        logits = hidden[-1][:, :3]
        auxiliary = [state @ end for state in own]
        output = {"logits": logits, "hidden": hidden, "steps": torch.stack(hidden).unbind(), "aux": auxiliary}
        with pytest.warns(UserWarning) as told:
            tell_of_others(output, logits)
        names = ", ".join(f"aux.{number}" for number in range(count + 1))
        assert [f"({names})" in str(each.message) for each in told] == [True]
        totals.append(sum(walked))
    assert totals[1] < 5 * totals[0]


@pytest.mark.parametrize("kind", OTHERS)
def test_outputs_that_are_not_trained_are_named_however_deep(kind: str) -> None:
    after, name = OTHERS[kind]
    method = pof.Finetune(Body(after, head=nn.Linear(8, 5)), head="fc").train()
    expected = rf"other outputs of the network \({re.escape(name)}\) are not trained"
    with pytest.warns(UserWarning, match=expected) if name else nullcontext():
        method(X, Y)


def test_a_tuple_without_the_heads_logits_lists_what_is_there() -> None:
    model = Body(lambda _, f, z: (f, z.sigmoid()))
    with pytest.raises(ValueError, match=r"returned \(8, 3\), but the network \(8, 8\) at 0, \(8, 3\) at 1, none of"):
        pof.Finetune(model)(X, Y)


# Probabilities


def test_probabilities_are_evaluated_by_their_logarithm() -> None:
    plain, after = Body(), Body(SEEN_ALIKE["softmax"])
    expected = evaluate(plain, [(X, Y)] * 2)
    with pytest.warns(UserWarning, match="Body returns probabilities: their logarithm is taken as logits") as caught:
        found = evaluate(after, [(X, Y)] * 2)
    assert len(caught) == 1
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)
    assert (found.error, found.n) == (expected.error, expected.n)
    assert pof.Finetune(after.eval())(X, Y).loss.item() == pytest.approx(expected.nll, rel=1e-5)
    with pytest.warns(UserWarning, match="returns probabilities"):
        calibrated = pof.flatness.calibration(after, [(X, Y)])
    assert calibrated.ece == pytest.approx(expected.ece, abs=1e-6)


def test_a_certain_and_wrong_prediction_is_finite() -> None:
    class Certain(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.one_hot(torch.zeros(len(inputs), dtype=torch.long), 3).float()

    with pytest.warns(UserWarning, match="returns probabilities"):
        assert 50 < evaluate(Certain(4, 3), [(X, Y)]).nll < 90


# Heads around the last layer


class Lora(nn.Module):
    """As peft wraps a linear layer: a second branch that starts at 0."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, features: Tensor) -> Tensor:
        return self.base_layer(features) + self.lora_B["default"](self.lora_A["default"](features))  # type: ignore[no-any-return]


class IA3(nn.Module):
    """As peft's: the output of the layer times a vector."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.ia3_l = nn.ParameterDict({"default": nn.Parameter(torch.full((base.out_features, 1), 2.0))})

    def forward(self, features: Tensor) -> Tensor:
        return self.base_layer(features) * self.ia3_l["default"].flatten()  # type: ignore[no-any-return]


class Saved(nn.Module):
    """As peft's ``modules_to_save``: a trained copy runs instead of the original."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.original_module = base
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(base)})

    def forward(self, features: Tensor) -> Tensor:
        return self.modules_to_save["default"](features)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.linear, self.logit_scale = base, nn.Parameter(torch.tensor(3.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features) * self.logit_scale  # type: ignore[no-any-return]


AROUND = {
    "LoRA": (lambda base: Lora(base, 2), "classifier"),
    "LoRA of rank C": (lambda base: Lora(base, 3), "classifier"),
    "IA3": (IA3, "classifier"),
    "saved module": (Saved, "classifier.modules_to_save.default"),
    "logit scale": (Scaled, "classifier"),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("wrap", "expected"), AROUND.values(), ids=AROUND)
def test_a_module_around_the_last_layer_is_the_head(
    wrap: Callable[[nn.Linear], nn.Module], expected: str, wrapped: bool
) -> None:
    model: nn.Module = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
    model.add_module("classifier", wrap(nn.Linear(8, 3)))
    if wrapped:
        model, expected = nn.Sequential(model), f"0.{expected}"
    assert find_head(model) == expected
    torch.testing.assert_close(pof.Finetune(model)(X, Y).loss, F.cross_entropy(model(X), Y))
    for method in methods(model):
        method(X, Y, X, Y).loss.backward()


def test_the_layer_inside_of_lora_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Lora(nn.Linear(8, 3), 2))
    nn.init.zeros_(model[2].lora_B["default"].weight)
    with pytest.raises(ValueError, match=r"depends on '2.lora_A.default.weight' beside the head '2.base_layer'"):
        pof.Finetune(model, head="2.base_layer")(X, Y)


# 1x1 convolutions


def test_a_convolution_as_head_takes_the_features() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.Flatten())
    inputs, names = torch.randn(5, 3, 6, 6), list(model.state_dict())
    parts = split(model)
    features = parts.features(inputs)
    assert features.shape == (5, 8)
    torch.testing.assert_close(parts.head(features), model(inputs))
    torch.testing.assert_close(parts.head(features[:, :, None, None]), model[2](features[:, :, None, None]))
    assert isinstance(parts.head, nn.Conv2d)
    assert dict(parts.head.named_parameters()).keys() == {"weight", "bias"}
    assert parts.head.weight is model[2].weight
    parts.head.requires_grad_(False)
    assert not model[2].weight.requires_grad
    assert list(model.state_dict()) == names
    assert type(model[2]) is nn.Conv2d
    several = (torch.rand(5, 3) > 0.5).float()
    out = pof.PoF(model, loss=F.binary_cross_entropy_with_logits)(inputs, several, inputs, several)
    out.loss.backward()
    assert out.radius > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_softmax_in_half_precision_is_seen_through(dtype: torch.dtype) -> None:
    """Its rows sum to 1 as far as that dtype can say."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(dim=1)).to(dtype)
    inputs = torch.randn(16, 6).to(dtype)
    features, logits = split(model).features_and_logits(inputs)
    assert torch.equal(logits, model[2](features))


@pytest.mark.parametrize("end", [nn.LogSoftmax(1), nn.Softmax(1)])
def test_a_log_softmax_under_a_loss_of_ones_own_is_named(end: nn.Module) -> None:
    """Naming another module, as for a temperature, would not help."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), end)
    with pytest.raises(ValueError, match=r"returns the softmax of its head '2', its logarithm.*: leave the loss out"):
        pof.Finetune(model, loss=F.nll_loss)(torch.randn(5, 6), torch.arange(5) % 3)
