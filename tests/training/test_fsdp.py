"""FSDP2 in two processes: parameters are sharded, and a step is that of one process with whole ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import pof
from pof._support import distributed
from pof.methods import Finetune, Method, Regularized
from pof.optim import MSAM, PerturbingOptimizer
from pof.regularizers import AdaRand
from tests.cases import batch, mlp
from tests.processes import ranks

# Sums over ranks are taken in another order: rounding of float64 only, enlarged by the line search.
TOLERANCE = 1e-9
HEADS = ["linear", "timm", "general"]
SHARDINGS = ["one unit", "one unit, resharded", "head a unit", "head whole"]
CASES = list(itertools.product(HEADS, SHARDINGS, ["fresh", "previous"]))


class OwnLinear(nn.Linear):
    """As timm's: the same, with a forward of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


def network(head: str = "linear") -> nn.Sequential:
    torch.manual_seed(0)
    model = mlp()
    if head == "general":
        model.fc = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    if head == "timm":
        model.fc = OwnLinear(6, 4).double()
    return model


def shard(model: nn.Module, sharding: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    if sharding == "head a unit":
        fully_shard(model.fc)
    options: dict[str, Any] = {"reshard_after_forward": True} if sharding == "one unit, resharded" else {}
    if sharding == "head whole":
        options["ignored_params"] = set(model.fc.parameters())
    return fully_shard(model, **options)


def share(values: Tensor, rank: int, size: int) -> Tensor:
    return values[rank * len(values) // size : (rank + 1) * len(values) // size]


def place() -> tuple[int, int]:
    return (dist.get_rank(), 2) if dist.is_initialized() else (0, 1)


def steps(method: Method, optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """Three steps, the last mini-batch shorter and of an odd size."""
    rank, size = place()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    results: list[dict[str, Tensor]] = []
    mini_batches = [batch(n, seed=seed) for seed, n in enumerate([16, 16, 13, 11])]
    for (inputs, targets), other in itertools.pairwise(mini_batches):
        mine = share(inputs, rank, size), share(targets, rank, size)
        reference = [share(values, rank, size) for values in other] if method.needs_reference else []
        kept: dict[str, Tensor] = {}

        def closure(mine: Any = mine, reference: Any = reference, n: int = len(targets), kept: Any = kept) -> Tensor:
            optimizer.zero_grad()
            out = method(*mine, *reference)
            # FSDP2 averages over the processes, as DDP does.
            (out.loss * len(mine[1]) * size / n).backward()
            kept.update(loss=out.loss.detach() * len(mine[1]) / n, **out.metrics)
            return out.loss.detach()

        if isinstance(optimizer, PerturbingOptimizer):
            optimizer.run_passes(closure)
        else:
            closure()
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters)
        kept["gradient"] = torch.cat([distributed.whole(gradient).flatten() for gradient in gradients])
        kept["norm"] = distributed.whole(nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        if not isinstance(method, pof.PoF):
            method.after_step()
        results.append(kept)
    return results


def pof_steps(head: str, features: Any, sharding: str | None) -> list[dict[str, Tensor]]:
    model = network(head) if sharding is None else shard(network(head), sharding)
    # Leaves whole copies of the parameters behind.
    pof.evaluate(model, [batch(8)])
    method = pof.PoF(model, "fc", features=features, seed=5)
    return steps(method, torch.optim.SGD(list(method.trainable_parameters()), lr=0.3))


def other_steps(name: str, sharding: str | None) -> list[dict[str, Tensor]]:
    model = network() if sharding is None else shard(network(), sharding)
    method: Method = Finetune(model)
    optimizer: torch.optim.Optimizer
    if name.startswith("adarand"):
        regularizer = AdaRand.from_loader(pof.split(model), [batch(64, seed=9)], num_classes=4, strength=0.3)
        method = Regularized(model, regularizer)
        trained = list(method.trainable_parameters())
        plain = torch.optim.SGD(trained, lr=0.3)
        optimizer = plain if name == "adarand" else pof.SAM(trained, torch.optim.SGD, 0.3, model=method, lr=0.3)
    elif name == "msam":
        optimizer = MSAM(method.trainable_parameters(), torch.optim.SGD, 0.3, lr=0.3, momentum=0.9)
    else:
        adaptive = name == "asam"
        optimizer = pof.SAM(method.trainable_parameters(), torch.optim.SGD, 0.3, adaptive, model=model, lr=0.3)
    return steps(method, optimizer)


OTHERS = list(itertools.product(["sam", "asam", "msam", "adarand", "adarand, sam"], ["one unit", "head a unit"]))


def on_a_rank(rank: int) -> dict[str, Any]:
    return {
        "pof": [pof_steps(head, features, sharding) for head, sharding, features in CASES],
        "others": [other_steps(name, sharding) for name, sharding in OTHERS],
        "half": {sharding: half_precision(sharding) for sharding in SHARDINGS},
        "mixed": mixed_norm(rank),
        "resumed": resumed(),
        "refused": refused(),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ranks(on_a_rank, 2, tmp_path_factory.mktemp("fsdp"))


def assert_as_one_process(several: list[list[dict[str, Tensor]]], one: list[dict[str, Tensor]]) -> None:
    for number, expected in enumerate(one):
        parts = [steps[number] for steps in several]
        torch.testing.assert_close(sum(part["loss"] for part in parts), expected["loss"], rtol=0, atol=TOLERANCE)
        for name in expected.keys() - {"loss", "loss_without_penalty", "penalty"}:
            assert torch.equal(parts[0][name], parts[1][name]), name
            torch.testing.assert_close(parts[0][name], expected[name], rtol=0, atol=TOLERANCE, msg=f"{name} {number}")


@pytest.mark.parametrize(("head", "sharding", "features"), CASES)
def test_pof(found: Any, head: str, sharding: str, features: str) -> None:
    expected = pof_steps(head, features, None)
    assert float(expected[1]["radius"]) > 0
    assert_as_one_process([each["pof"][CASES.index((head, sharding, features))] for each in found], expected)


@pytest.mark.parametrize(("name", "sharding"), OTHERS)
def test_other_methods(found: Any, name: str, sharding: str) -> None:
    """The norm of SAM is that of all shards."""
    assert_as_one_process([each["others"][OTHERS.index((name, sharding))] for each in found], other_steps(name, None))


# Half precision: the loss is taken of logits that are computed again from the features


def half_precision(sharding: str | None) -> dict[str, Tensor]:
    rank, size = place()
    model = network().float()
    method = pof.PoF(model if sharding is None else shard(model, sharding), sampling="fixed")
    parameters = list(method.trainable_parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inputs, targets), other = batch(16, seed=1), batch(16, seed=2)
        mine = [share(values, rank, size) for values in (inputs.float(), targets, other[0].float(), other[1])]
        out = method(*mine)
    out.loss.backward()
    gradients = [p.grad for p in parameters if p.grad is not None]
    return {"radius": out.radius, "gradient": torch.cat([distributed.whole(g).flatten() for g in gradients])}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_half_precision(found: Any, sharding: str) -> None:
    expected = half_precision(None)
    for each in found:
        torch.testing.assert_close(each["half"][sharding]["radius"], expected["radius"], rtol=1e-4, atol=0)
        # Gradients of two halves are rounded to bfloat16 (2^-9) before they are averaged.
        torch.testing.assert_close(each["half"][sharding]["gradient"], expected["gradient"], rtol=0.02, atol=2e-3)


# Norms, state, and what is refused


def mixed_norm(rank: int) -> Tensor:
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    part = DTensor.from_local(torch.tensor([[3.0, 0.0], [0.0, 2.0]])[rank : rank + 1], mesh, [Shard(0)])
    from pof._support.norms import global_norm

    return global_norm([part, torch.tensor([6.0]), part])


def test_norm_of_whole_and_sharded_tensors(found: Any) -> None:
    for each in found:
        torch.testing.assert_close(each["mixed"], torch.tensor(62.0).sqrt())


def resumed() -> list[bool]:
    """Two steps in a row, and two with everything saved and loaded between them."""
    weights = []
    for breaks in (False, True):
        model = shard(network(), "head a unit")
        method = pof.PoF(model, "fc", features="previous", seed=5)
        for number in range(2):
            if number and breaks:
                state = method.state_dict()
                method = pof.PoF(shard(network(), "head a unit"), "fc", features="previous", seed=7)
                method.load_state_dict(state)
            optimizer = torch.optim.SGD(list(method.trainable_parameters()), lr=0.3)
            method(*batch(8, seed=number)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(list(method.parameters()))
    return [torch.equal(distributed.whole(a), distributed.whole(b)) for a, b in zip(*weights, strict=True)]


def test_state_is_saved_and_loaded(found: Any) -> None:
    assert all(each["resumed"] == [True] * 4 for each in found)


def refused() -> list[str]:
    from torch.distributed.fsdp import fully_shard

    from pof.regularizers import L2SP

    messages = []

    def note(call: Any) -> None:
        with pytest.raises(ValueError, match="fully_shard") as caught:
            call()
        messages.append(str(caught.value))

    note(lambda: fully_shard(pof.PoF(network())))
    model = network("general")
    fully_shard(model.fc[0])
    part = pof.PoF(fully_shard(model), "fc")
    note(lambda: part(*batch(4), *batch(4)))
    note(lambda: pof.fit(pof.PoF(shard(network(), "one unit")), [batch(4)], device="cpu"))
    note(lambda: L2SP(shard(network(), "one unit")))
    return messages


def test_what_is_refused_says_why(found: Any) -> None:
    for each in found:
        method, part, fit, l2sp = each["refused"]
        assert "apply it to the model, fully_shard(method.model)" in method
        assert "fully_shard was applied to '0' inside of the head" in part
        assert "use DDP (pof.fit does so by itself)" in fit
        assert "L2-SP reads parameters beside the forward pass" in l2sp
