"""What is compiled stays compiled in training: calls of compiled graphs are counted, losses are those of eager."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof.app.methods import METHODS as TABLE
from pof.app.methods import Context, MethodOptions, build_method
from pof.head.split import split
from pof.methods import Averaged, Method, Regularized
from pof.models import build_model

# Tracing asks every tensor for its gradient, and hides the warning that this gives.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

CLASSES = 3
BATCHES = [
    (torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % CLASSES) for n in (6, 6, 4)
]


class Graphs:
    """A backend that runs graphs as they are, and counts."""

    def __init__(self) -> None:
        self.compiled = self.calls = 0

    def __deepcopy__(self, _: Any) -> Graphs:
        return self  # copies of compiled networks are counted too

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return pof.models.SmallCNN(num_classes=CLASSES, in_channels=1)


def whole(model: nn.Module, graphs: Graphs) -> nn.Module:
    return torch.compile(model, backend=graphs)  # type: ignore[return-value]


def in_place(model: nn.Module, graphs: Graphs) -> nn.Module:
    model.compile(backend=graphs)
    return model


def after_running(model: nn.Module, graphs: Graphs) -> nn.Module:
    """Compiled code that knows nothing of the split."""
    state = copy.deepcopy(model.state_dict())
    fast = whole(model, graphs)
    fast(BATCHES[0][0]).sum().backward()
    model.zero_grad()
    model.load_state_dict(state)
    return fast


def a_part(model: nn.Module, graphs: Graphs) -> nn.Module:
    model.conv2 = torch.compile(model.conv2, backend=graphs)
    return model


def the_head(model: nn.Module, graphs: Graphs) -> nn.Module:
    model.fc = torch.compile(model.fc, backend=graphs)
    return model


def by_the_split(model: nn.Module, graphs: Graphs) -> nn.Module:
    split(model).compile(backend=graphs)
    return model


def adarand(model: nn.Module) -> Method:
    features = split(model).features(BATCHES[0][0]).shape[1]
    statistics = torch.zeros(CLASSES, features), torch.ones(CLASSES, features)
    return Regularized(model, pof.AdaRand(*statistics, seed=0))


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "finetune": pof.Finetune,
    "pof fresh": pof.PoF,
    "pof previous": lambda model: pof.PoF(model, features="previous"),
    "head ascent": pof.HeadAscent,
    "sam": pof.SharpnessAware,
    "regularized": adarand,
    "averaged": lambda model: Averaged(pof.Finetune(model), "swa"),
}


def train(method: Method) -> list[float]:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return method.build_optimizer(torch.optim.SGD, lr=0.02)

    torch.manual_seed(0)
    result = pof.fit(method, BATCHES, epochs=2, optimizer=optimizer, val_loader=BATCHES, device="cpu")
    return [row[key] for row in result.history[1:] for key in ("train_loss", "val_nll")]


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_every_method_trains_compiled(make: Callable[[nn.Module], Method], graphs: Graphs) -> None:
    expected = train(make(cnn()))
    model = whole(cnn(), graphs)
    assert train(make(model)) == pytest.approx(expected, rel=1e-5)
    # Twelve forwards of training and evaluation at least; none was uncompiled.
    assert graphs.calls >= 12
    assert graphs.compiled <= 8


@pytest.mark.parametrize("compile_it", [in_place, after_running, a_part, the_head, by_the_split])
@pytest.mark.parametrize("name", ["pof fresh", "sam"])
def test_however_it_was_compiled(
    name: str, compile_it: Callable[[nn.Module, Graphs], nn.Module], graphs: Graphs
) -> None:
    expected = train(METHODS[name](cnn()))
    model = compile_it(cnn(), graphs)
    graphs.calls = 0
    assert train(METHODS[name](model)) == pytest.approx(expected, rel=1e-5)
    assert graphs.calls >= 12


@pytest.mark.parametrize("compile_it", [whole, in_place, after_running, a_part, the_head])
def test_each_forward_is_a_call_of_one_graph(
    compile_it: Callable[[nn.Module, Graphs], nn.Module], graphs: Graphs
) -> None:
    original = cnn().eval()
    model = compile_it(original, graphs)
    parts = split(model, head="fc")
    names = list(model.state_dict())
    parts.features(BATCHES[0][0])
    graphs.calls = graphs.compiled = 0
    for _ in range(3):
        features, logits = parts.features_and_logits(BATCHES[0][0])
        torch.testing.assert_close(logits, model(BATCHES[0][0]))
        torch.testing.assert_close(F.linear(features, parts.weight, parts.bias), logits)
    assert graphs.calls == 6
    assert graphs.compiled <= 1  # that of plain calls
    # Nothing stays on the user's network.
    assert list(model.state_dict()) == names
    assert "forward" not in vars(parts.head)
    assert not any(m._forward_hooks for m in original.modules())


def test_a_split_network_dies_with_its_last_reference(graphs: Graphs) -> None:
    model = whole(cnn(), graphs)
    parts = split(model)
    features = weakref.ref(parts.features(BATCHES[0][0]))
    assert copy.deepcopy(parts).features(BATCHES[0][0]).shape == (6, 256)
    dead = weakref.ref(parts)
    del parts
    gc.collect()
    assert dead() is None
    assert features() is None


def test_the_whole_graph_holds_in_one_piece(graphs: Graphs) -> None:
    model = torch.compile(cnn(), backend=graphs, fullgraph=True)
    split(model).features(BATCHES[0][0])
    assert (graphs.compiled, graphs.calls) == (1, 1)


def test_a_step_compiled_from_outside_keeps_the_network_compiled(graphs: Graphs) -> None:
    method = pof.HeadAscent(cnn())
    expected = method(*BATCHES[0]).loss
    fast = torch.compile(pof.HeadAscent(cnn()), backend=graphs)
    torch.testing.assert_close(fast(*BATCHES[0]).loss, expected)
    before = graphs.calls
    fast(*BATCHES[0])
    assert graphs.calls > before


def test_a_head_that_compiled_code_does_not_run_is_said_once(graphs: Graphs) -> None:
    class Unlike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            features = self.body(inputs)
            if torch.compiler.is_compiling():
                return F.linear(features, self.fc.weight, self.fc.bias)
            return self.fc(features)  # type: ignore[no-any-return]

    model = whole(Unlike(), graphs)
    parts = split(model, head="fc")
    inputs = torch.randn(5, 4)
    with pytest.warns(UserWarning, match=r"does not run its head '_orig_mod.fc' as a module"):
        _, logits = parts.features_and_logits(inputs)
    torch.testing.assert_close(logits, model(inputs))
    parts.features_and_logits(inputs)


@pytest.fixture(scope="module")
def shared() -> Iterator[Graphs]:
    """Graphs of ResNet-20, traced once for all methods that want the same."""
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


SMALL = [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(n)), torch.arange(6) % 3) for n in (0, 1)]


@pytest.mark.parametrize("name", TABLE)
def test_a_compiled_resnet20_in_every_method_of_the_table(name: str, shared: Graphs) -> None:
    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = build_model("resnet20", num_classes=3)
        if compiled:
            model = whole(model, shared)
        source = torch.nn.Linear(64, 4) if name == "co-tuning" else None  # the others have none
        options = MethodOptions(name, epochs=1)
        method = build_method(Context(model, None, options, 3, SMALL, SMALL, source_head=source))
        rows: list[dict[str, Any]] = []
        if name == "delta":  # its hooks are not heard in code that was compiled before they came
            torch._dynamo.reset()
        shared.calls = 0
        pof.fit(method, SMALL, epochs=1, device="cpu", log=rows.append)  # type: ignore[arg-type]
        return [row["loss"] for row in rows if row["event"] == "step"]

    expected = losses(compiled=False)
    assert len(expected) == 2
    assert losses(compiled=True) == pytest.approx(expected, rel=1e-5)
    assert shared.calls >= 2  # one at least in each step
