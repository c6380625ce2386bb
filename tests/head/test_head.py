"""Heads: found in networks of many families and in own ones, doubt raised, features and logits from one forward."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pof._support.modules import BATCH_NORMS
from pof.head.search import HeadNotFoundError, find_head
from pof.head.split import SplitModel, split
from tests.networks import NETWORKS, TRANSFORMERS, Network, Transformer


class Net(nn.Module):
    """Children in the given order; runs those named in ``run``, then ``after``."""

    def __init__(self, run: str = "", after: Callable[[Tensor], Any] | None = None, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.run = (run or " ".join(children)).split()
        self.after = after
        self.calls = 0

    def forward(self, inputs: Tensor) -> Any:
        self.calls += 1
        for name in self.run:
            inputs = self.get_submodule(name)(inputs)
        return self.after(inputs) if self.after else inputs


def linear_net(**after: nn.Module) -> Net:
    return Net(body=nn.Sequential(nn.Linear(4, 8), nn.ReLU()), fc=nn.Linear(8, 3), **after).double()


def batch(n: int = 5) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Networks of the libraries


def informative(model: nn.Module, inputs: Tensor) -> None:
    """Give batch norms the statistics of the inputs, and the head weights.

    With random weights the features of deep networks vanish or explode otherwise, and some heads start at zero.
    """
    model.eval()
    for norm in model.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.momentum, norm.training = 1.0, True
    model(inputs)
    for m in model.eval().get_submodule(find_head(model)).modules():
        for p in m.parameters(recurse=False):
            nn.init.normal_(p, std=0.1)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@torch.no_grad()
def test_library_networks(network: Network) -> None:
    torch.manual_seed(0)
    model = network.build()
    inputs = torch.randn(2, 3, network.size, network.size)
    assert find_head(model) == network.head
    informative(model, inputs)
    expected = model(inputs)
    parts = split(model)

    assert torch.equal(parts(inputs), expected)
    if not network.ends_with_head:
        with pytest.raises(ValueError, match=r"is not the end of the network: .* differ"):
            parts.features_and_logits(inputs)
        return
    features, logits = parts.features_and_logits(inputs)
    assert logits.shape == (2, 10)
    # Far from zero, so that what follows could fail.
    assert features.abs().amax() > 0.01
    assert torch.equal(logits, expected)
    assert parts.linear is network.linear
    if network.linear:
        # Float32: sums over up to 4096 features, in another order for 1x1 convolutions.
        torch.testing.assert_close(F.linear(features, parts.weight, parts.bias), logits, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(parts.head(features).flatten(1), logits)
    assert hooks(model) == 0


def test_enough_networks_of_both_libraries() -> None:
    names = [network.name for network in NETWORKS]
    assert len(set(names)) == len(names) >= 47
    assert sum(name.startswith("torchvision") for name in names) >= 12


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda t: t.family)
@torch.no_grad()
def test_transformers(transformer: Transformer) -> None:
    torch.manual_seed(0)
    model = transformer.build().eval()
    inputs = transformer.inputs()
    expected = model(**inputs).logits
    parts = split(model)

    assert parts.head_name == transformer.head
    assert torch.equal(parts(inputs).logits, expected)
    features, logits = parts.features_and_logits(inputs)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(F.linear(features, parts.weight, parts.bias), logits)


def test_equal_heads_of_crossvit_are_doubt() -> None:
    import timm

    model = timm.create_model("crossvit_tiny_240", pretrained=False, num_classes=10)
    with pytest.raises(HeadNotFoundError, match="more than one") as caught:
        find_head(model)
    assert caught.value.candidates == ("head.0", "head.1")


def test_timm_network_whose_head_was_replaced() -> None:
    import timm

    model = timm.create_model("test_convnext", pretrained=False, num_classes=10)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(64, 3))
    assert find_head(model) == "head.3"
    model.head = nn.Linear(64, 3)
    assert find_head(model) == "head"


def test_timm_network_without_classifier_and_one_put_on_top() -> None:
    import timm

    backbone = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    with pytest.raises(HeadNotFoundError, match="no module is clearly the head"):
        find_head(backbone)
    assert find_head(nn.Sequential(backbone, nn.Dropout(), nn.Linear(96, 3), nn.Softmax(1))) == "2"
    assert find_head(Net(backbone=backbone, top=nn.Linear(96, 3))) == "top"


# Own modules


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.norm = nn.LayerNorm(8)


def mlp_layers() -> list[nn.Module]:
    return [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.ReLU())


def named(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def one_relu() -> nn.Module:
    relu = nn.ReLU()
    return Net(body=nn.Linear(4, 8), classifier=nn.Sequential(nn.Linear(8, 8), relu, nn.Linear(8, 3), relu))


OWN = {
    "last of a chain": (lambda: Net(a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3)), "c"),
    "sizes that meet by chance": (lambda: Net(conv=convolutions(), a=nn.Linear(320, 50), b=nn.Linear(50, 10)), "b"),
    "sequential": (lambda: nn.Sequential(*mlp_layers()), "4"),
    "sequential in a module": (lambda: Net(net=nn.Sequential(*mlp_layers(), nn.Softmax(1))), "net.4"),
    "module list": (lambda: Net(layers=nn.ModuleList(m for m in mlp_layers() if isinstance(m, nn.Linear))), "layers.2"),
    "followed by harmless modules": (
        lambda: nn.Sequential(
            *mlp_layers(), nn.Sequential(nn.Dropout(), nn.Identity()), nn.Flatten(), nn.LogSoftmax(1)
        ),
        "4",
    ),
    "usual name before the rest": (lambda: Net(fc=nn.Linear(20, 5), body=convolutions()), "fc"),
    "as many classes as twice the channels": (lambda: Net(fc=nn.Linear(20, 2), body=convolutions()), "fc"),
    "as many classes as pixels of a kernel": (lambda: Net(fc=nn.Linear(20, 3), body=convolutions()), "fc"),
    "a layer aside, in known order": (
        lambda: nn.Sequential(Net(body=nn.Linear(4, 8), side=nn.Linear(4, 7)), nn.Linear(8, 3)),
        "1",
    ),
    "_fc": (lambda: Net(_conv=nn.Conv2d(3, 8, 3), _fc=nn.Linear(8, 3)), "_fc"),
    "score": (lambda: Net(body=Attention(), score=nn.Linear(8, 3, bias=False)), "score"),
    "usual name for an inner layer": (
        lambda: Net(conv=convolutions(), fc=nn.Linear(20, 8), top=nn.Linear(8, 3)),
        "top",
    ),
    "container with a usual name": (
        lambda: Net(body=Attention(), classifier=nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))),
        "classifier.2",
    ),
    "attention and an unusual name": (
        lambda: Net(body=nn.Sequential(Attention(), Attention()), top=nn.Linear(8, 3)),
        "top",
    ),
    "1x1 convolution": (
        lambda: nn.Sequential(convolutions(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 3, 1), nn.Flatten()),
        "2",
    ),
    "convolution, ReLU and pooling": (
        lambda: Net(
            body=convolutions(),
            top=nn.Sequential(nn.Conv2d(20, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        "top",
    ),
    "one ReLU used twice": (one_relu, "classifier"),
    "ReLU in an inner container": (
        lambda: Net(body=nn.Linear(4, 8), top=nn.Sequential(nn.Linear(8, 3), nn.Sequential(nn.Dropout(), nn.ReLU()))),
        "top",
    ),
    "linear probe": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "1"),
    "wrapped": (
        lambda: Net(scale=nn.Identity(), module=Net(model=Net(fc=nn.Linear(20, 5), body=convolutions()))),
        "module.model.fc",
    ),
    "auxiliary after the head": (
        lambda: Net(
            body=Attention(), classifier=nn.Linear(8, 3), AuxLogits=Net(fc=nn.Linear(8, 3)), aux1=nn.Linear(8, 3)
        ),
        "classifier",
    ),
    "distillation head": (lambda: Net(body=Attention(), top=nn.Linear(8, 8), top_dist=nn.Linear(8, 8)), "top"),
    "flattened convolution": (lambda: Net(squeeze=nn.Conv2d(32, 8, 1), top=nn.Linear(8 * 4 * 4, 3)), "top"),
    "teacher": (lambda: Net(student=linear_net(), teacher=linear_net()), "student.fc"),
    "split again": (lambda: split(linear_net()), "model.fc"),
}


@pytest.mark.parametrize(("build", "expected"), OWN.values(), ids=OWN)
def test_own_modules(build: Callable[[], nn.Module], expected: str) -> None:
    assert find_head(build()) == expected


class Prototypes(Net):
    """Ends with distances to class prototypes, which are no module."""

    def __init__(self) -> None:
        super().__init__(body=nn.Linear(4, 16), embed=nn.Linear(16, 8))
        self.prototypes = nn.Parameter(torch.randn(3, 8))


DOUBT = {
    "two tasks": (lambda: Net(body=nn.Linear(4, 8), age=nn.Linear(8, 5), colour=nn.Linear(8, 3)), {"age", "colour"}),
    "two tasks in one dict": (
        lambda: Net(body=nn.Linear(4, 8), heads=nn.ModuleDict({"a": nn.Linear(8, 5), "b": nn.Linear(8, 3)})),
        {"heads.a", "heads.b"},
    ),
    "two usual names": (lambda: Net(body=nn.Linear(4, 8), fc=nn.Linear(8, 3), head=nn.Linear(8, 3)), {"fc", "head"}),
    "something wider after fc": (
        lambda: Net(body=nn.Linear(4, 8), fc=nn.Linear(8, 6), top=nn.Linear(6 + 2, 3)),
        {"fc", "top"},
    ),
    "last layer is a convolution": (lambda: Net(a=nn.Linear(4, 8), b=nn.Conv2d(3, 5, 3)), {"a"}),
    "class prototypes": (Prototypes, {"body", "embed"}),
    "batch norm after it": (lambda: Net(a=nn.Linear(4, 8), b=nn.Linear(8, 3), c=nn.BatchNorm1d(3)), {"a", "b"}),
    "ReLU after it, in the whole network": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        {"1"},
    ),
    "ReLU after it, in the only child": (
        lambda: Net(net=nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))),
        {"net.1"},
    ),
    "no layer": (convolutions, set()),
}


@pytest.mark.parametrize(("build", "candidates"), DOUBT.values(), ids=DOUBT)
def test_doubt_raises_with_the_candidates(build: Callable[[], nn.Module], candidates: set[str]) -> None:
    with pytest.raises(HeadNotFoundError, match='head="name"') as caught:
        find_head(build())
    assert set(caught.value.candidates) == candidates
    assert all(repr(name) in str(caught.value) for name in candidates)
    assert isinstance(caught.value, ValueError)
    assert pickle.loads(pickle.dumps(caught.value)).candidates == caught.value.candidates


def test_many_candidates_are_counted() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(14)), nn.Conv2d(4, 4, 3))
    with pytest.raises(HeadNotFoundError, match=r"'13', '12', .* and 4 more") as caught:
        find_head(model)
    assert len(caught.value.candidates) == 14


def test_find_head_neither_runs_nor_changes_the_network() -> None:
    model = linear_net()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    find_head(model)
    split(model)
    assert model.calls == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# A head by name


def test_a_named_head_is_taken() -> None:
    model = Net(body=nn.Linear(4, 8), age=nn.Linear(8, 5), colour=nn.Linear(8, 3), run="body colour").double()
    parts = split(model, head="colour")
    assert parts.head is model.colour
    assert torch.equal(parts.features_and_logits(batch())[1], model(batch()))


@pytest.mark.parametrize(
    ("head", "reason"), [("top", "no module 'top'"), ("drop", "no parameters"), ("", "no module ''")]
)
def test_a_wrong_name_lists_the_candidates(head: str, reason: str) -> None:
    with pytest.raises(HeadNotFoundError, match=rf"{reason}.*'fc', 'body\.0'") as caught:
        split(linear_net(drop=nn.Dropout()), head=head)
    assert caught.value.candidates == ("fc", "body.0")


def test_a_head_that_is_not_linear() -> None:
    top = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    model = Net(body=nn.Sequential(nn.Linear(4, 8), nn.Tanh()), top=top).double()
    parts = split(model, head="top")
    features, logits = parts.features_and_logits(batch())
    assert not parts.linear
    assert features.shape == (5, 8)
    assert torch.equal(parts.head(features), logits)
    for name in ("weight", "bias"):
        with pytest.raises(ValueError, match=r"'top' \(Sequential\) is not a linear layer"):
            getattr(parts, name)
    assert parts.extractor_parameters() == list(model.body.parameters())


class Cosine(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 16.0 * F.linear(F.normalize(input), F.normalize(self.weight))


class Margin(nn.Linear):
    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        return F.linear(input, self.weight) + F.one_hot(labels, self.out_features)


class Renamed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class Adapted(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.low_rank = nn.Parameter(torch.zeros(sizes[1], sizes[0]))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.low_rank, self.bias)


@pytest.mark.parametrize(("kind", "linear"), [(Cosine, False), (Margin, False), (Renamed, True), (Adapted, False)])
def test_a_subclass_is_linear_only_if_it_computes_so(kind: type[nn.Linear], linear: bool) -> None:
    assert split(Net(body=nn.Linear(4, 8), fc=kind(8, 3))).linear is linear


def test_parametrized_weights_are_read_as_computed() -> None:
    model = Net(body=nn.Linear(4, 8), top=nn.Linear(8, 3)).double()
    nn.utils.parametrizations.weight_norm(model.top)
    parts = split(model)
    features, logits = parts.features_and_logits(batch())
    assert parts.linear
    torch.testing.assert_close(F.linear(features, parts.weight, parts.bias), logits)
    assert parts.extractor_parameters() == list(model.body.parameters())


def test_weight_and_bias_are_views() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1, bias=False), nn.Flatten())
    parts = split(model)
    assert parts.weight.shape == (3, 8)
    assert parts.weight.data_ptr() == model[2].weight.data_ptr()
    assert parts.bias is None
    parts = split(linear_net())
    assert parts.weight is parts.head.weight
    assert parts.bias is parts.head.bias


# One forward of the unchanged network


def test_features_and_logits_come_from_one_forward_with_graph() -> None:
    model = linear_net(drop=nn.Dropout(0.5)).train()
    parts = split(model)
    torch.manual_seed(0)
    parts.features(batch())
    calls = model.calls  # the first mini-batch is checked too
    features, logits = parts.features_and_logits(batch())
    assert model.calls == calls + 1
    assert torch.equal(F.linear(features, parts.weight, parts.bias), logits)
    (features.sum() + logits.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(parts.features(batch()), features)
    assert model.calls == calls + 2


@pytest.mark.parametrize("after", [nn.Softmax(1), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)], ids=repr)
def test_what_follows_the_head_does_not_touch_the_logits(after: nn.Module) -> None:
    model = linear_net(after=after).train()
    torch.manual_seed(0)
    output = model(batch())
    torch.manual_seed(0)
    parts = split(model)
    assert torch.equal(parts(batch()), output)
    torch.manual_seed(0)
    features, logits = parts.features_and_logits(batch())
    assert torch.equal(logits, F.linear(features, parts.weight, parts.bias))
    assert not torch.equal(logits, output)


def test_hooks_are_removed_also_when_the_forward_raises() -> None:
    def fail(_: Tensor) -> None:
        raise RuntimeError("after the head")

    model = linear_net()
    parts = split(model)
    parts.features(batch())
    assert hooks(model) == 0
    model.after = fail
    with pytest.raises(RuntimeError, match="after the head"):
        parts.features(batch())
    assert hooks(model) == 0


def test_hooks_of_the_user_stay() -> None:
    model = linear_net()
    seen: list[Tensor] = []
    model.fc.register_forward_hook(lambda module, args, output: seen.append(output))
    parts = split(model)
    parts.features(batch())
    parts.features(batch())
    assert len(seen) == 3  # one is the check of the first mini-batch
    assert hooks(model) == 1


def test_output_of_any_type_is_passed_on() -> None:
    model = linear_net()
    model.after = lambda logits: {"logits": logits, "extra": "text"}
    parts = split(model)
    assert parts(batch())["extra"] == "text"
    assert torch.equal(parts(batch())["logits"], parts.features_and_logits(batch())[1])


def test_dict_batches_and_a_head_called_by_keyword() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, values: Tensor) -> Tensor:
            return self.fc(input=self.body(values))

    model = Keywords().double()
    parts = split(model)
    features, logits = parts.features_and_logits({"values": batch()})
    assert torch.equal(features, model.body(batch()))
    assert torch.equal(logits, parts({"values": batch()}))


def test_one_by_one_convolution_on_a_one_by_one_map() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 3, 1), nn.Flatten())
    inputs = torch.randn(2, 3, 6, 6)
    features, logits = split(model).features_and_logits(inputs)
    assert (features.shape, logits.shape) == ((2, 8), (2, 3))
    assert torch.equal(logits, model(inputs))


def test_autocast_keeps_its_dtype() -> None:
    parts = split(linear_net().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = parts.features_and_logits(batch().float())
    assert features.dtype == logits.dtype == torch.bfloat16


# What cannot be split


def test_a_head_that_does_not_run() -> None:
    model = Net(body=nn.Linear(4, 3), fc=nn.Linear(3, 3), run="body").double()
    with pytest.raises(ValueError, match=r"'fc' ran 0 times .*head=\"name\""):
        split(model).features(batch())


def test_a_head_that_runs_twice() -> None:
    model = Net(body=nn.Linear(4, 3), fc=nn.Linear(3, 3), run="body fc fc").double()
    with pytest.raises(ValueError, match="'fc' ran 2 times"):
        split(model).features(batch())
    assert hooks(model) == 0


class Tokens(nn.Module):
    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.body, self.score = nn.Linear(4, 8), nn.Linear(8, 3)
        self.flat = flat

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        logits: Tensor = self.score(features.flatten(0, 1) if self.flat else features)
        return logits.view(*inputs.shape[:2], 3).mean(1)


@pytest.mark.parametrize(("flat", "shape"), [(False, r"\(2, 7, 8\)"), (True, r"\(14, 8\)")])
def test_a_head_on_tokens(flat: bool, shape: str) -> None:
    parts = split(Tokens(flat))
    with pytest.raises(ValueError, match=rf"'score' got features of shape {shape}, not \(N, D\) with N = 2"):
        parts.features(torch.randn(2, 7, 4))


def test_a_convolution_on_a_map_and_its_remedy() -> None:
    top = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Net(body=nn.Conv2d(3, 8, 3), conv=nn.Conv2d(8, 3, 1), pool=top)
    inputs = torch.randn(2, 3, 6, 6)
    with pytest.raises(ValueError, match=r"'conv' got features of shape \(2, 8, 4, 4\), not \(N, D, 1, 1\)"):
        split(model).features(inputs)
    model = Net(body=nn.Conv2d(3, 8, 3), top=nn.Sequential(nn.Conv2d(8, 3, 1), *top))
    features, logits = split(model, head="top").features_and_logits(inputs)
    assert features.shape == (2, 8, 4, 4)
    assert torch.equal(logits, model(inputs))


def test_a_named_module_that_returns_no_logits() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(ValueError, match=r"'1' returned shape \(2, 8, 2, 2\), not logits"):
        split(model, head="1").features(torch.randn(2, 3, 6, 6))


def test_a_named_module_that_returns_no_tensor() -> None:
    model = Net(lstm=nn.LSTM(4, 8, batch_first=True), fc=nn.Identity(), after=lambda out: out[0][:, -1])
    with pytest.raises(ValueError, match=r"'lstm' must take and return one tensor, not Tensor and tuple"):
        split(model, head="lstm").features(torch.randn(2, 7, 4))


def test_tied_parameters_are_refused() -> None:
    model = Net(embedding=nn.Linear(8, 3), body=nn.Linear(3, 8), fc=nn.Linear(8, 3))
    split(model)
    model.fc.weight = model.embedding.weight
    with pytest.raises(ValueError, match=r"'fc' shares a parameter with the extractor \('embedding.weight'\): untie"):
        split(model)


def test_a_head_with_two_names_is_not_tied() -> None:
    model = linear_net()
    model.layers = nn.ModuleList([model.fc])
    assert split(model, head="fc").extractor_parameters() == list(model.body.parameters())


# Copies, wrappers, compilation


def test_copies_and_pickles() -> None:
    parts = split(linear_net())
    assert list(parts.state_dict()) == [f"model.{name}" for name in parts.model.state_dict()]
    assert [name for name, _ in parts.named_children()] == ["model"]
    other = copy.deepcopy(parts)
    assert other.head is other.model.fc is not parts.head
    loaded: SplitModel = pickle.loads(pickle.dumps(parts))
    for copied in (other, loaded):
        assert (copied.head_name, copied.linear) == ("fc", True)
        assert torch.equal(copied.features(batch()), parts.features(batch()))


def test_data_parallel_and_ddp(tmp_path: Path) -> None:
    model = linear_net()
    expected = split(model).features_and_logits(batch())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        for wrapped in (nn.DataParallel(model), nn.parallel.DistributedDataParallel(model)):
            for parts in (split(wrapped), split(wrapped, head="fc"), split(wrapped, head="module.fc")):
                assert parts.head_name == "module.fc"
                torch.testing.assert_close(parts.features_and_logits(batch()), expected)
    finally:
        torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("compile_it", [compiled, compiled_in_place])
def test_compiled_networks(compile_it: Callable[[nn.Module], nn.Module]) -> None:
    # Compiled code does not notice hooks that come and go: both orders must give the features.
    for compiled_first in (True, False):
        torch._dynamo.reset()
        original = named(body=nn.Linear(4, 8), act=nn.Tanh(), fc=nn.Linear(8, 3), softmax=nn.Softmax(1)).double()
        model = compile_it(original)
        parts = split(model, head="fc")
        assert find_head(model) == parts.head_name
        for step in range(4):
            if (step % 2 == 0) is compiled_first:
                torch.testing.assert_close(parts(batch()), original(batch()))
            features, logits = parts.features_and_logits(batch())
            assert torch.equal(features, original.act(original.body(batch())))
            assert torch.equal(logits, original.fc(features))
        assert hooks(original) == 0


# Tracing asks every tensor for its gradient, and hides the warning that this gives.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_from_outside() -> None:
    torch._dynamo.reset()
    model = named(body=nn.Linear(4, 8), act=nn.Tanh(), fc=nn.Linear(8, 3)).double()

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = split(model)

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            features, logits = self.parts.features_and_logits(inputs)
            return features.square().mean() + logits.logsumexp(1).mean(), self.parts(inputs)

    # As after training without: the network itself is compiled without hook.
    torch.compile(model, backend="aot_eager")(batch())

    step = Loss()
    fast = torch.compile(step, backend="aot_eager")
    for n in (5, 5, 3):
        torch.testing.assert_close(fast(batch(n)), step(batch(n)))


def test_a_layer_alone_is_a_probe_in_a_sequential() -> None:
    with pytest.raises(HeadNotFoundError, match=r"Linear: a layer alone.*put it into nn\.Sequential"):
        find_head(nn.Linear(4, 3))
    assert find_head(nn.Sequential(nn.Linear(4, 3))) == "0"
