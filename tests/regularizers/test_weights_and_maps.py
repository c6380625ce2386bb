"""L2-SP, BSS and DELTA: closed forms, and the model they watch."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pof
from pof.regularizers import BSS, DELTA, L2SP, widest_convolutions
from tests.cases import batch, mlp
from tests.regularizers import problem


def test_l2sp_equals_its_closed_form_and_finds_the_head_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    regularizer = L2SP(model, strength=0.5, head_strength=0.25)
    head = sum(float(p.detach().square().sum()) for p in model[2].parameters())
    assert float(regularizer().detach()) == pytest.approx(0.125 * head)
    with torch.no_grad():
        model[0].weight += 2.0
    assert float(regularizer().detach()) == pytest.approx(0.25 * 6 * 4 + 0.125 * head, rel=1e-6)
    regularizer().backward()
    torch.testing.assert_close(model[0].weight.grad, torch.full((3, 2), 0.5 * 2.0))
    torch.testing.assert_close(model[2].bias.grad, 0.25 * model[2].bias.detach())


def test_l2sp_follows_parameters_that_are_replaced_and_keeps_its_start_in_the_state() -> None:
    model = problem.network()
    regularizer = L2SP(model, "head", strength=1.0, head_strength=0.0)
    moved = {name: value + 1 if name == "stem.bias" else value for name, value in model.state_dict().items()}
    model.load_state_dict(moved, assign=True)
    assert float(regularizer().detach()) == pytest.approx(0.5 * 4)
    resumed = L2SP(model, "head", strength=1.0, head_strength=0.0)
    assert resumed() == 0
    resumed.load_state_dict(regularizer.state_dict())
    assert float(resumed().detach()) == pytest.approx(0.5 * 4)


def test_l2sp_head_only_copies_no_start_weights() -> None:
    regularizer = L2SP(problem.network(), "head", strength=0.0, head_strength=1.0)
    assert not regularizer.state_dict()
    assert regularizer() > 0


def test_bss_equals_its_closed_form() -> None:
    values = torch.tensor([5.0, 3.0, 2.0, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    v, _ = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64, generator=generator))
    features = (values[:, None] * v.T).requires_grad_()
    penalty = BSS(strength=0.1, k=2)(features)
    penalty.backward()
    torch.testing.assert_close(penalty.detach(), torch.tensor(0.1 * (2.0**2 + 0.5**2), dtype=torch.float64))
    # d sigma^2 = 2 sigma u v^T, with u a unit vector here.
    torch.testing.assert_close(features.grad, 0.2 * values.where(values < 3, 0.0)[:, None] * v.T)


def test_bss_of_repeated_and_vanishing_singular_values_has_a_finite_gradient() -> None:
    for features in (torch.eye(4), torch.zeros(4, 6), torch.ones(4, 6)):
        features.requires_grad_()
        BSS(k=2)(features).backward()
        assert features.grad.isfinite().all()


def test_delta_is_zero_at_the_start_and_the_source_stays() -> None:
    model, data = problem.network().eval(), problem.batches()
    regularizer = DELTA(model, ["stem", "conv"])
    inputs, targets = data[0]
    features = pof.split(model, "head").features(inputs)
    assert regularizer(features, targets, inputs) == 0
    model.train()
    source = deepcopy(regularizer._source[0].state_dict())
    problem.run(model, regularizer, data)
    for name, value in regularizer._source[0].state_dict().items():
        assert torch.equal(value, source[name]), name
    assert not regularizer.state_dict()
    model.eval()
    model(inputs)
    assert regularizer(features, targets, inputs) > 0


def test_delta_needs_one_forward_per_penalty_and_sees_no_validation_pass() -> None:
    model, (inputs, _) = problem.network(), problem.batches()[0]
    regularizer = DELTA(model, ["stem"])
    with torch.no_grad():
        model(inputs)
    with pytest.raises(ValueError, match="only 0 of the layers"):
        regularizer(inputs=inputs)
    model(inputs)
    with torch.no_grad():
        model(problem.batches()[1][0])
    regularizer(inputs=inputs)
    with pytest.raises(ValueError, match="once per penalty"):
        regularizer(inputs=inputs)
    model(inputs)
    with pytest.raises(ValueError, match=r"'stem' gave \(7, 4, 4, 4\) in the model and \(3, 4, 4, 4\)"):
        regularizer(inputs=inputs[:3])


def test_delta_hooks_come_off_and_do_not_hinder_copies() -> None:
    model, (inputs, _) = problem.network(), problem.batches()[0]
    regularizer = DELTA(model, ["stem"])
    model(inputs)
    assert torch.equal(deepcopy(model)(inputs), model(inputs))
    pickle.dumps(model)
    regularizer.close()
    assert not any(m._forward_hooks for m in model.modules())
    DELTA(model, ["stem"], strength=0.0).close()


def test_delta_refuses_weights_of_another_width_and_layers_without_a_tensor() -> None:
    model, (inputs, _) = problem.network(), problem.batches()[0]
    regularizer = DELTA(model, ["stem"], channel_weights=[torch.ones(3)])
    model(inputs)
    with pytest.raises(ValueError, match=r"4 channels; its channel_weights have shape \(3,\)"):
        regularizer(inputs=inputs)
    lstm = nn.LSTM(2, 3)
    DELTA(nn.Sequential(lstm), ["0"])
    with pytest.raises(ValueError, match="a LSTM among DELTA's layers returns a tuple"):
        lstm(torch.zeros(1, 1, 2))


def test_widest_convolutions_take_inputs_of_another_device() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)).to("meta")
    places = []  # the meta device takes tensors of others, a GPU does not
    network.register_forward_pre_hook(lambda module, args: places.append(args[0].device.type))
    assert widest_convolutions(network, torch.zeros(1, 3, 9, 9)) == ("0", "1")
    assert places == ["meta"]


def test_widest_convolutions_are_the_ends_of_a_resnets_stages() -> None:
    with torch.random.fork_rng():
        resnet = torchvision.models.resnet50().train()
    expected = ("layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3")
    assert widest_convolutions(resnet, torch.zeros(1, 3, 64, 64)) == expected
    assert resnet.training
    assert widest_convolutions(problem.network(), problem.batches()[0][0]) == ("stem", "conv")
    with pytest.raises(ValueError, match="Linear has no convolution with a map"):
        widest_convolutions(nn.Linear(2, 2), torch.zeros(1, 2))


def test_delta_at_the_authors_scale_is_their_sum_over_samples_and_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3)).double()
    inputs = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    regularizer = DELTA(
        model, ["0", "2"], strength=0.01 * 4, channel_weights=[torch.full((3,), 3.0), torch.full((5,), 5.0)]
    )
    source = deepcopy(model)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    model(inputs)
    squares = [(model[:n](inputs) - source[:n](inputs)).square() for n in (1, 3)]
    expected = 0.01 * 0.5 * sum(each.mean(dim=(2, 3)).sum() for each in squares)
    model(inputs)
    torch.testing.assert_close(regularizer(inputs=inputs), expected, rtol=1e-12, atol=0)


def test_l2sp_takes_a_heads_name_without_the_prefix_of_a_wrapper() -> None:
    model = problem.network()
    compiled = torch.compile(model, backend="eager")
    assert L2SP(compiled, "head").head == pof.split(compiled, "head").head_name == "_orig_mod.head"
    assert torch.equal(L2SP(compiled, "head")(), L2SP(model, "head")())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_is_cast_with_the_method(dtype: torch.dtype) -> None:
    model = mlp()
    method = pof.Regularized(model, DELTA(model, ["body"]), "fc").to(dtype)
    inputs, targets = batch()
    assert float(method(inputs.to(dtype), targets).metrics["penalty"]) == 0.0


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "vit_tiny_r_s16_p8_224"]
)
def test_a_stem_alone_says_nothing_of_a_transformer(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model(name, num_classes=3)
    with pytest.raises(ValueError, match=r"matrices of .* behind its last convolution, '.*proj'.* such as") as raised:
        widest_convolutions(network, torch.zeros(1, 3, 224, 224))
    named = str(raised.value).split("such as '")[1].split("'")[0]
    regularizer = DELTA(network, [named])
    inputs = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network.eval()(inputs)
    with torch.no_grad():
        network.get_submodule(named).weight.mul_(2.0)
    network(inputs)
    assert regularizer(inputs=inputs).item() > 0


@pytest.mark.parametrize(("stem", "depth"), [(1, 1), (1, 3), (2, 1)])
def test_the_layer_that_is_named_instead_of_the_stem_runs(stem: int, depth: int) -> None:
    """``nn.MultiheadAttention`` never calls its own matrix."""

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), *(nn.Conv2d(16, 16, 1) for _ in range(stem - 1)))
            block = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True, dropout=0.0)
            self.blocks, self.head = nn.TransformerEncoder(block, depth), nn.Linear(16, 5)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.blocks(self.stem(inputs).flatten(2).transpose(1, 2)).mean(1))

    model, inputs = Transformer(), torch.randn(2, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"\d of the \d+ matrices of .*says nothing of them: give layers by name"
    ) as raised:
        widest_convolutions(model, inputs)
    method = pof.Regularized(model, DELTA(model, [str(raised.value).split("such as '")[1].split("'")[0]]))
    assert method(inputs, torch.tensor([0, 1])).loss.isfinite()


def test_of_a_network_of_attention_alone_a_block_is_named() -> None:
    """The output of attention is a tuple, and its matrices run in no module of their own."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            mixed: Tensor = tokens + self.attn(tokens, tokens, tokens)[0]
            return mixed

    stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2))
    model = nn.Sequential(stem, Block(), Block(), nn.Flatten(), nn.Linear(256, 3))
    inputs = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"4 of the 5 matrices of Sequential .* such as '2' ") as raised:
        widest_convolutions(model, inputs)
    method = pof.Regularized(model, DELTA(model, [str(raised.value).split("such as '")[1].split("'")[0]]))
    assert method(inputs, torch.tensor([0, 1])).loss.isfinite()
    DELTA(model, ["1.attn"])
    with pytest.raises(ValueError, match=r"MultiheadAttention among DELTA's layers returns a tuple.* the block around"):
        model(inputs)


class Attending(nn.Module):
    """Attentions without a block around each; ``inside`` is what stands beside them."""

    def __init__(self, inside: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2))
        self.attns = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(3))
        self.norms = nn.ModuleList([] if inside is None else [inside] * 3)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).transpose(1, 2)
        for attention in self.attns:
            tokens = tokens + attention(tokens, tokens, tokens)[0]
            for norm in self.norms:
                tokens = norm(tokens)
        logits: Tensor = self.head(tokens.flatten(1))
        return logits


def test_only_layers_that_give_tokens_are_named_as_an_example() -> None:
    inputs = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"6 of the 7 matrices of Attending .* give layers by name$"):
        widest_convolutions(Attending(), inputs)
    model = Attending(nn.LayerNorm(16))
    with pytest.raises(ValueError, match=r"such as 'norms.0' ") as raised:
        widest_convolutions(model, inputs)
    name = str(raised.value).split("such as '")[1].split("'")[0]
    assert pof.Regularized(model, DELTA(model, [name]))(inputs, torch.tensor([0, 1])).loss.isfinite()


def test_delta_takes_no_layer_twice() -> None:
    model = torch.compile(problem.network(), backend="eager")
    with pytest.raises(ValueError, match=r"named once each; got \('stem', '_orig_mod.stem'\)"):
        DELTA(model, ["stem", "_orig_mod.stem"])


def test_delta_is_built_before_a_compiled_network_of_its_class_trains() -> None:
    """The other one's graph knows of no hook; training begins with graphs of its own."""
    torch._dynamo.reset()
    first, second = problem.network(), problem.network()
    methods = [pof.Finetune(first), pof.Regularized(second, DELTA(second, ["stem", "conv"]))]
    first.compile(backend="eager")
    second.compile(backend="eager")
    results = [pof.fit(method, list(problem.batches()), epochs=1) for method in methods]
    assert results[1].history[-1]["train_penalty"] > 0


def test_delta_leaves_compiled_networks_alone_once_training_has_begun() -> None:
    """Its own and any other of the process: one tracing for each run, however many steps."""
    torch._dynamo.reset()
    graphs: list[nn.Module] = []

    def counting(graph: nn.Module, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    model, other = problem.network(), torch.compile(nn.Linear(5, 5), backend=counting)
    method = pof.Regularized(model, DELTA(model, ["stem", "conv"])).train()
    model.compile(backend=counting)
    counts = []
    for inputs, targets in problem.batches()[:1] * 4:
        other(torch.ones(2, 5))
        method(inputs, targets).loss.backward()
        nn.utils.clip_grad_norm_(list(method.trainable_parameters()), 1.0)
        counts.append(len(graphs))
    assert counts == [2] * 4


def test_layers_of_a_network_that_was_compiled_and_ran_before_are_found() -> None:
    torch._dynamo.reset()
    model = problem.network().eval()
    inputs = problem.batches()[0][0]
    plain = widest_convolutions(model, inputs)
    model.compile(backend="eager")
    with torch.no_grad():
        model(inputs)
    assert widest_convolutions(model, inputs) == plain


@pytest.mark.parametrize("before", [False, True])
def test_delta_of_a_compiled_network_whose_class_was_compiled_before(before: bool) -> None:
    """Without a guard on hooks the graph of the other network would run, and record no map."""

    def penalties(compiled: bool) -> list[float]:
        model = problem.network()
        regularizer, network = DELTA(model, ["stem", "conv"]), pof.split(model, "head")
        if compiled:
            network.compile(backend="eager")
        found = []
        for inputs, targets in problem.batches():
            features = network.features(inputs)
            found.append(regularizer(features, targets, inputs).item())
            features.sum().backward()
            with torch.no_grad():
                model.stem.weight.sub_(0.1 * model.stem.weight.grad)
        return found

    plain = penalties(compiled=False)
    torch._dynamo.reset()
    if before:
        other = pof.split(problem.network(), "head")
        other.compile(backend="eager")
        for inputs, _ in problem.batches():
            other.features(inputs)
    assert penalties(compiled=True) == pytest.approx(plain) and plain[-1] > 0


def test_delta_takes_names_without_the_prefix_of_a_wrapper() -> None:
    model = torch.compile(problem.network(), backend="eager")
    assert DELTA(model, ["stem", "_orig_mod.conv"]).layers == ("_orig_mod.stem", "_orig_mod.conv")
    parallel = nn.ModuleDict({"module": torch.compile(problem.network(), backend="eager")})
    assert DELTA(parallel, ["stem"]).layers == ("module._orig_mod.stem",)
    half = nn.Sequential(OrderedDict(body=torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")))
    assert DELTA(half, ["body.0"]).layers == ("body._orig_mod.0",)


@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_of_one_size_before_some_matrices_are_no_stem(padding: int) -> None:
    side = 8 - 4 * (1 - padding)
    body = [nn.Conv2d(1, 8, 3, padding=padding), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=padding), nn.ReLU()]
    matrices = [nn.Linear(16 * side**2, 32), *(nn.Linear(32, 32) for _ in range(6)), nn.Linear(32, 10)]
    found = widest_convolutions(nn.Sequential(*body, nn.Flatten(), *matrices), torch.zeros(2, 1, 8, 8))
    assert found == (("2",) if padding else ("0", "2"))
