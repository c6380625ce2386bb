from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pof
from pof._support.batches import check_inputs, class_targets, to_device, unpack

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.bool]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 1, 0, 1, 1])


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_class_indices_of_any_kind_become_int64(dtype, shape):
    targets = Y.to(dtype).reshape(shape)
    for batch in ((X, targets), [X, targets], {"x": X, "labels": targets}):
        found = unpack(batch)[1]
        assert found.dtype == torch.int64
        assert found.tolist() == Y.tolist()


def test_what_is_right_or_belongs_to_a_custom_loss_is_handed_on():
    multi_hot = torch.tensor([[1, 1, 0], [0, 0, 1]], dtype=torch.int32)
    for targets in (Y, torch.rand(6, 3), torch.rand(6, 1), multi_hot, torch.zeros(2, 1, 4, 4).byte()):
        assert unpack((X, targets))[1] is targets


def test_arrays_and_lists_of_a_custom_collate():
    assert torch.equal(unpack((X, Y.tolist()))[1], Y)
    for dtype in ("int32", ">i4", "uint16"):
        assert torch.equal(unpack((X, numpy.asarray(Y, dtype=dtype)))[1], Y)
    assert torch.equal(unpack((X, list(Y)))[1], Y)
    with pytest.raises(ValueError, match=r"targets are texts \('cat', ...\): give class indices, integers from 0"):
        unpack((X, ["cat", "dog"] * 3))
    # For a custom loss.
    assert unpack((X, {"y": Y}))[1] == {"y": Y}


def test_integer_rows_are_one_hot_or_refused():
    one_hot = F.one_hot(Y, 3)
    assert torch.equal(class_targets(one_hot, 3), Y)
    assert torch.equal(class_targets(one_hot.bool(), 3), Y)
    for wrong in ([0, 1, 1], [0, 0, 0], [0, 2, -1]):
        one_hot[2] = torch.tensor(wrong)
        with pytest.raises(ValueError, match=r"integer targets \(6, 3\) are not one-hot \(row 2\): several labels"):
            class_targets(one_hot, 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


KINDS = {
    **{str(dtype): Y.to(dtype) for dtype in INTEGERS},
    "column": Y[:, None].int(),
    "one-hot": F.one_hot(Y, 2),
}


@pytest.mark.parametrize("method", [pof.Finetune, pof.PoF, pof.HeadAscent])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_label_gives_the_loss_of_class_indices(kind, method):
    losses, weights = [], []
    for targets in (Y, KINDS[kind]):
        step = method(net(), class_weights=torch.tensor([0.1, 2.0]))
        out = step(X, targets, *((X, targets) if method is pof.PoF else ()))
        out.loss.backward()
        losses.append(out.loss.detach())
        weights.append(step.weight_of(targets))
    assert torch.equal(*losses)
    assert torch.equal(*weights)
    assert pof.evaluate(net(), [(X, KINDS[kind])]) == pof.evaluate(net(), [(X, Y)])
    features, weight, bias = torch.randn(6, 5), torch.randn(2, 5), torch.zeros(2)
    given, wanted = (pof.head_gradient(features, targets, weight, bias).weight for targets in (KINDS[kind], Y))
    assert torch.equal(given, wanted)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, "column"])
def test_regularisers_take_every_kind_of_integer(kind):
    targets = Y[:, None].int() if kind == "column" else Y.to(kind)
    states = []
    for given in (Y, targets):
        adarand = pof.regularizers.AdaRand(torch.zeros(2, 4), torch.ones(2, 4))
        penalty = adarand(X, given)
        adarand.update(X, given)
        states.append([penalty, *adarand.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True) if isinstance(a, torch.Tensor))


def test_to_the_cpu_is_waited_for(monkeypatch):
    """Off an accelerator torch hands out memory at once, and fills it later."""
    later = []
    plain = torch.Tensor.to

    def to(tensor, device, *, non_blocking):
        later.append(non_blocking)
        return plain(tensor, device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    for device in ("cpu", torch.device("cpu"), torch.device("meta")):
        to_device({"x": [X]}, device)
    assert later == [False, False, True]


def as_nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor(list(tensor.unbind()))


LAYOUTS = [
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.to_sparse_csr(),
    as_nested,
    lambda tensor: torch.nested.nested_tensor(list(tensor.unbind()), layout=torch.jagged),
]


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_and_nested_inputs_are_asked_for_their_values(layout):
    check_inputs(layout(torch.ones(2, 3)))
    wrong = torch.ones(2, 3)
    wrong[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"inputs hold NaN or infinity \(1 of 6 values\)"):
        check_inputs(layout(wrong))


def test_a_nested_tensor_without_parts_holds_nothing_wrong():
    check_inputs(torch.nested.nested_tensor([]))


class OfSparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Parameter(torch.ones(4, 3)), nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sparse.mm(inputs, self.body).relu())


@pytest.mark.filterwarnings("ignore::pof.DivergenceWarning")
def test_a_run_on_sparse_inputs_is_validated_and_rolled_back():
    torch.manual_seed(0)
    loader = [(X.to_sparse(), Y)] * 3
    model = OfSparse()
    assert pof.fit(pof.Finetune(model), loader, epochs=1, val_loader=loader, device="cpu").stopped is None
    before = model.body.detach().clone()
    method = pof.Finetune(model)
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e38)
    result = pof.fit(method, loader, epochs=2, optimizer=optimizer, device="cpu")
    assert result.stopped == "diverged"
    assert torch.equal(result.model.body, before)


@pytest.mark.filterwarnings("ignore::pof.DivergenceWarning")
def test_a_roll_back_does_not_wait_for_its_remedy(monkeypatch):
    def cannot(inputs):
        raise NotImplementedError("no isfinite for this layout")

    monkeypatch.setattr("pof.training.loop.check_inputs", cannot)
    method = pof.Finetune(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e38)
    result = pof.fit(method, [(X, Y)] * 3, epochs=2, optimizer=optimizer, device="cpu")
    assert result.stopped == "diverged" and result.message.endswith(method.remedy)
