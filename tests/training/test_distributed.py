"""Several processes as one: a step, a run, and the command line under torchrun, against a single process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

import pof
from pof._support import distributed
from pof.app import job
from pof.app.method_options import PoFOptions
from pof.app.methods import Context, build_method
from pof.app.options import TrainOptions
from pof.app.run_files import read_rows
from pof.data.batch_sampler import StatelessBatchSampler
from pof.methods import Method
from pof.weights import read_weights
from tests.cases import batch, mlp
from tests.processes import pof as command
from tests.processes import pof_ranks, python, ranks

# Sums over ranks are taken in another order: rounding of float64 only, enlarged by the line search.
TOLERANCE = 1e-9
STEPS = list(itertools.product(["linear", "general"], ["fresh", "previous"], [16, 13, 3]))
"""Head, features, samples of the last mini-batch; of 3 samples the first of four processes gets none."""


def network(head: str = "linear") -> nn.Module:
    torch.manual_seed(0)
    model = mlp()
    if head == "general":
        model.fc = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    return model


def share(values: Tensor, rank: int, size: int) -> Tensor:
    """The rows of one process: contiguous, sizes differ by at most one."""
    return values[rank * len(values) // size : (rank + 1) * len(values) // size]


# A step


def global_batches(last: int) -> list[tuple[Tensor, Tensor]]:
    return [batch(16, seed=1), batch(16, seed=2), batch(last, seed=3), batch(last - 1, seed=4)]


def steps(method: pof.PoF, module: nn.Module, last: int, rank: int = 0, size: int = 1) -> list[dict[str, Tensor]]:
    """Three steps of SGD by hand, with what each of them gave."""
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.3)
    parts = [tuple(share(values, rank, size) for values in each) for each in global_batches(last)]
    results = []
    for number, (mine, reference) in enumerate(itertools.pairwise(parts)):
        out = module(*mine, *(reference if method.features == "fresh" else ()))
        optimizer.zero_grad()
        # DDP averages over the processes; the mean over the samples weighs each process by its own.
        (out.loss * len(mine[1]) * size / len(global_batches(last)[number][1])).backward()
        results.append(
            {
                "radius": out.radius,
                "bounded": out.bounded,
                "gradient_norm": out.gradient_norm,
                "expansion": torch.tensor(out.expansion, dtype=torch.float64),
                "loss": out.loss.detach(),
                "logits": out.logits,
                "perturbed_logits": out.perturbed_logits.detach(),
                "features": method.network.features(mine[0]).detach(),
                "gradient": torch.cat([p.grad.flatten() for p in method.trainable_parameters() if p.grad is not None]),
            }
        )
        optimizer.step()
    return results


def steps_of_a_rank(rank: int) -> list[list[dict[str, Tensor]]]:
    results = []
    for head, features, last in STEPS:
        method = pof.PoF(network(head), "fc", features=features, seed=5)  # type: ignore[arg-type]
        results.append(steps(method, DistributedDataParallel(method), last, rank, dist.get_world_size()))
    return results


@pytest.fixture(scope="module", params=[2, 4])
def stepped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each process and each of ``STEPS``, what the steps gave."""
    return ranks(steps_of_a_rank, request.param, tmp_path_factory.mktemp("steps"))


def direction(result: dict[str, Tensor]) -> Tensor:
    """The unit direction (C, D + 1) that took the logits to the perturbed ones; N >= D + 1 rows determine it."""
    response = (result["logits"] - result["perturbed_logits"]) / (result["expansion"] * result["radius"])
    features = torch.cat([result["features"], torch.ones(len(response), 1, dtype=torch.float64)], 1)
    return torch.linalg.lstsq(features, response).solution.T


@pytest.mark.parametrize(("head", "features", "last"), STEPS)
def test_step_of_several_processes_equals_that_of_one(stepped: Any, head: str, features: Any, last: int) -> None:
    method = pof.PoF(network(head), "fc", features=features, seed=5)
    expected = steps(method, method, last)
    results = [each[STEPS.index((head, features, last))] for each in stepped]
    counts = [len(targets) for _, targets in global_batches(last)]
    for number, one in enumerate(expected):
        several = [result[number] for result in results]
        for name in ("radius", "bounded", "gradient_norm", "expansion", "gradient"):
            for each in several:
                torch.testing.assert_close(each[name], one[name], rtol=0, atol=TOLERANCE)
        # Not only close: the same bits on every rank, or the networks would drift apart.
        assert all(torch.equal(each[name], several[0][name]) for each in several for name in ("radius", "gradient"))
        weights = [len(each["logits"]) / counts[number] for each in several]
        loss = sum(each["loss"] * weight for each, weight in zip(several, weights, strict=True))
        torch.testing.assert_close(loss, one["loss"], rtol=0, atol=TOLERANCE)
        joined = {k: torch.cat([each[k] for each in several]) for k in ("logits", "perturbed_logits", "features")}
        for name, values in joined.items():
            torch.testing.assert_close(values, one[name], rtol=0, atol=TOLERANCE)
        if one["expansion"] > 0 and head == "linear" and counts[number] >= 7:
            torch.testing.assert_close(direction(one | joined), direction(one), rtol=0, atol=TOLERANCE)
            assert float(direction(one).norm()) == pytest.approx(1, abs=TOLERANCE)
    assert float(expected[1]["radius"]) > 0 and bool(expected[1]["bounded"])


# A run of pof.fit


class ShareLoader:
    """Float64 mini-batches of which each process takes its share; 43 samples by 8 leave a short one of 3.

    Of that the first of four processes gets none.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        # The sampler itself refuses mini-batches of which a process would get nothing.
        self.sampler = StatelessBatchSampler(size=43, batch_size=8, shuffle=True, seed=3)
        self.place = (rank, world_size)
        self.inputs, self.targets = batch(43, seed=9)

    def __len__(self) -> int:
        return len(self.sampler)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.sampler.order(epoch)
        for index in range(start, len(self)):
            rows = share(self.sampler.rows(order, index), *self.place)
            yield self.inputs[rows], self.targets[rows]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.iterate(0)


def built(name: str) -> Method:
    """A method by the name of the command line, around the same network on every rank."""
    kind, _, features = name.partition(" ")
    training = TrainOptions(method=kind, pof=PoFOptions(features=features or "fresh"))  # type: ignore[arg-type]
    return build_method(Context(network(), None, training, 4, [batch(43, seed=9)]))


def run(rank: int, name: str, folder: str | None = None, die_at: int = 0, signalled: int = -1) -> dict[str, Any]:
    """A whole run; rank ``signalled`` gets SIGTERM after step 4."""
    size = dist.get_world_size() if distributed.active() else 1
    rows: list[dict[str, Any]] = []

    def log(row: Any) -> None:
        rows.append(dict(row))
        if row["event"] == "step" and row["step"] == die_at:
            raise KeyboardInterrupt
        if row["event"] == "step" and row["step"] == 4 and rank == signalled:
            os.kill(os.getpid(), signal.SIGTERM)

    method = built(name)
    try:
        result = pof.fit(
            method,
            ShareLoader(rank, size),
            epochs=2,
            optimizer=job.make_optimizer(method, TrainOptions(method=name.partition(" ")[0], lr=0.2)),
            val_loader=[batch(43, seed=9)],
            accumulation=2,
            clip_norm=1.0,
            checkpoint_dir=folder,
            checkpoint_every=2,
            resume=folder is not None,
            device="cpu",
            log=log,
        )
    except KeyboardInterrupt:
        return {"rows": rows}
    return {
        "weights": dict(method.model.state_dict()),
        "rows": rows,
        "stopped": result.stopped or "",
        "message": result.message,
        "steps": result.steps,
    }


def assert_same_weights(result: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for name, value in result["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=0, atol=tolerance)


class Rows(IterableDataset[Any]):
    """Shares its samples out among the processes itself, as webdataset and datasets do; it says its own length."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Any]:
        rank, size = dist.get_rank(), dist.get_world_size()
        return iter(list(zip(*batch(16, seed=9), strict=True))[rank::size])


class Own(Sampler[int]):
    """A sampler of the user's own, that nobody else can judge."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        return iter(range(dist.get_rank(), 16, 2))


def shared_loaders(data: Any) -> dict[str, DataLoader[Any]]:
    return {
        "sampler": DataLoader(data, 4, sampler=DistributedSampler(data)),
        "batch sampler": DataLoader(data, batch_sampler=BatchSampler(DistributedSampler(data), 4, drop_last=False)),
        "stream": DataLoader(Rows(), 4),
        "own": DataLoader(data, 4, sampler=Own()),
    }


def loaders_of_a_rank(rank: int) -> list[Any]:
    inputs, targets = batch(16, seed=9)
    data = TensorDataset(torch.arange(16.0, dtype=torch.float64).unsqueeze(1).repeat(1, 5) + 0 * inputs, targets)
    found: list[Any] = []
    for name, loader in shared_loaders(data).items():
        seen: list[float] = []

        def note(_: Any, arguments: Any, seen: list[float] = seen) -> None:
            seen += arguments[0][:, 0].tolist()

        method = pof.Finetune(mlp())
        with method.register_forward_pre_hook(note), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pof.fit(method, loader, epochs=2, device="cpu")
        assert not any("the same first mini-batch" in str(each.message) for each in said), name
        found.append((name, seen))
    with pytest.warns(UserWarning, match="all 2 processes have the same first mini-batch"):
        pof.fit(pof.Finetune(mlp()), [batch(4, seed=9)], epochs=1, device="cpu")
    plain = [DataLoader(data, 4), DataLoader(data, 4, shuffle=True)]
    for loader in (*plain, DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, False))):
        with pytest.raises(ValueError, match="each of 2 processes would train on the same batches"):
            pof.fit(pof.Finetune(mlp()), loader, epochs=1, device="cpu")
    shared = shared_loaders(data)
    with pytest.raises(ValueError, match=r"val_loader has a DistributedSampler.*all of the validation data"):
        pof.fit(pof.Finetune(mlp()), shared["own"], val_loader=shared["batch sampler"], epochs=1, device="cpu")
    return found


def test_loaders_that_share_the_samples_out(tmp_path: Path) -> None:
    for (name, first), (_, second) in zip(*ranks(loaders_of_a_rank, 2, tmp_path), strict=True):
        if name != "stream":
            for epoch in (slice(0, 8), slice(8, 16)):
                assert sorted(first[epoch] + second[epoch]) == list(range(16)), name
        assert len(first) == len(second) == 16
        assert name in {"stream", "own"} or first[:8] != first[8:], f"{name}: the same order in each epoch"


@pytest.mark.parametrize(
    ("size", "name"),
    [(size, name) for size in (2, 4) for name in ("finetune", "pof", "pof previous")]
    + [(2, name) for name in ("late-sam", "ema", "randreg", "adarand", "bss", "head-ascent")],
)
def test_run_of_several_processes_equals_that_of_one(size: int, name: str, tmp_path: Path) -> None:
    one, results = run(0, name), ranks(run, size, tmp_path, name)
    for result in results:
        assert_same_weights(result, results[0], 0.0)
        assert_same_weights(result, one, TOLERANCE)
    initial = network().state_dict()
    assert not torch.allclose(one["weights"]["body.weight"], initial["body.weight"])
    for row, expected in zip(results[0]["rows"], one["rows"], strict=True):
        assert row["event"] == expected["event"]
        assert row.keys() == expected.keys()
        for figure in row.keys() - {"event", "seconds", "message", "stopped"}:
            assert row[figure] == pytest.approx(expected[figure], abs=TOLERANCE), figure


@pytest.mark.parametrize("name", ["pof", "pof previous", "adarand"])
def test_resume_of_two_processes_is_exact(name: str, tmp_path: Path) -> None:
    whole = ranks(run, 2, tmp_path, name)
    ranks(run, 2, tmp_path, name, str(tmp_path / "state"), 3)
    resumed = ranks(run, 2, tmp_path, name, str(tmp_path / "state"))
    assert resumed[0]["rows"][0]["step"] == 2
    for result, expected in zip(resumed, whole, strict=True):
        assert_same_weights(result, expected, 0.0)


def test_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    results = ranks(run, 2, tmp_path, "pof", str(tmp_path / "state"), 0, 1)
    assert [result["stopped"] for result in results] == ["interrupted"] * 2
    assert results[0]["steps"] == results[1]["steps"] < 6
    assert "a signal on another process" in results[0]["message"] and "SIGTERM" in results[1]["message"]


def judged_apart(rank: int) -> tuple[int, list[float], dict[str, Tensor]]:
    """Each process has validation data of its own, by which the others' best epoch would be another."""
    method = built("finetune")
    inputs, targets = batch(43, seed=9)
    validation = [(inputs, targets if rank == 0 else (targets + 1) % 4)]
    result = pof.fit(method, ShareLoader(rank, 2), epochs=3, val_loader=validation, device="cpu", optimizer=quick)
    return result.best_epoch, [row["val_error"] for row in result.history], dict(method.model.state_dict())


def quick(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def test_the_first_process_judges_for_all(tmp_path: Path) -> None:
    (best, errors, weights), (other_best, other_errors, other_weights) = ranks(judged_apart, 2, tmp_path)
    assert best == other_best > 0 and errors == other_errors
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())


def nan_on_one_rank(rank: int) -> str:
    inputs, targets = batch(8, seed=rank)
    if rank == 1:
        inputs = inputs * float("nan")
    with pytest.warns(pof.DivergenceWarning):
        result = pof.fit(pof.Finetune(network()), [(inputs, targets)], epochs=2, device="cpu")
    return f"{result.stopped} {result.steps}"


def test_loss_that_is_not_finite_on_one_process_stops_all(tmp_path: Path) -> None:
    assert ranks(nan_on_one_rank, 2, tmp_path) == ["diverged 1"] * 2


def in_ddp_already(rank: int) -> str:
    model = DistributedDataParallel(network())
    with pytest.raises(ValueError, match=r"DistributedDataParallel\(pof.PoF\(model\)\)") as caught:
        pof.PoF(model)
    # With its head frozen before, DDP waits for nothing that does not come.
    frozen = network()
    frozen.fc.requires_grad_(False)
    method = pof.PoF(DistributedDataParallel(frozen), seed=5)
    return f"{caught.value} {len(steps(method, method, 13, rank, 2))}"


def test_model_that_is_in_ddp_already(tmp_path: Path) -> None:
    for message in ranks(in_ddp_already, 2, tmp_path):
        assert message.startswith("the model is in DistributedDataParallel already") and message.endswith(" 3")


# The rows of all processes


def gathered(rank: int) -> list[Tensor]:
    rows = torch.arange(rank * 10, rank * 10 + rank + 1)
    return list(distributed.gather_rows(rows, rows[:, None].expand(-1, 2).double() / 3))


def test_rows_are_gathered_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    for integers, numbers in ranks(gathered, 3, tmp_path):
        assert integers.tolist() == [0, 10, 11, 20, 21, 22]
        assert torch.equal(numbers, integers[:, None].expand(-1, 2).double() / 3)


def refused(rank: int) -> list[str]:
    messages = []
    for mine in (torch.zeros(3, 2, dtype=(torch.float32, torch.float64)[rank]), torch.zeros(3, 2 + rank)):
        with pytest.raises(ValueError, match="do not fit together") as caught:
            distributed.gather_rows(torch.zeros(3), mine)
        messages.append(str(caught.value))
    return messages


def test_rows_that_do_not_fit_together_are_refused_everywhere(tmp_path: Path) -> None:
    first, second = ranks(refused, 2, tmp_path)
    assert "rows of process 0 are torch.float32 (), torch.float32 (2,), others" in first[0]
    assert "rows of process 1 are torch.float32 (), torch.float32 (3,), others" in second[1]


def test_one_process_gathers_nothing() -> None:
    rows = torch.arange(3)
    assert not distributed.active()
    assert distributed.gather_rows(rows)[0] is rows


# What is exchanged


@contextmanager
def counting(method: Method) -> Iterator[tuple[DistributedDataParallel, dict[str, int]]]:
    """The method in DDP, and the bytes that this process hands to the collectives from now on."""
    module, sent = DistributedDataParallel(method), {"gathered": 0, "reduced": 0, "gradients": 0}
    gather, reduce = dist.all_gather, dist.all_reduce

    def counted_gather(parts: list[Tensor], tensor: Tensor) -> None:
        sent["gathered"] += tensor.nbytes
        gather(parts, tensor)

    def counted_reduce(tensor: Tensor, *options: Any, **more: Any) -> None:
        sent["reduced"] += tensor.nbytes
        reduce(tensor, *options, **more)

    def hook(_, bucket):  # DDP refuses annotations that are strings
        sent["gradients"] += bucket.buffer().nbytes
        averaged = reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return averaged.get_future().then(lambda done: done.value()[0])

    module.register_comm_hook(None, hook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", counted_gather)
        patch.setattr(dist, "all_reduce", counted_reduce)
        yield module, sent


def bytes_of_a_rank(rank: int) -> list[dict[str, int]]:
    found = []
    for name in ("pof", "pof previous", "finetune", "adarand"):
        method = built(name)
        with counting(method) as (module, sent):
            inputs, targets = (share(values, rank, 2) for values in batch(13, seed=1))
            reference = [share(values, rank, 2) for values in batch(9, seed=2)] if method.needs_reference else []
            output = module(inputs, targets, *reference)
            output.loss.backward()
            method.after_step()
            found.append(sent)
    return found


def test_bytes_of_a_step_are_those_of_the_documentation(tmp_path: Path) -> None:
    """docs/trainers/distributed.md; float64 here, b = 8.  Of 13 and of 9 rows the second process has 7 and 5."""
    b, features, classes, head, extractor = 8, 6, 4, 4 * 6 + 4, 6 * 5 + 6
    for found in ranks(bytes_of_a_rank, 2, tmp_path):
        fresh, previous, finetune, adarand = found
        assert fresh == {"gathered": 16 + 5 * (b * features + 8), "reduced": 0, "gradients": b * extractor}
        assert previous == {"gathered": 16 + 7 * (b * features + 8), "reduced": 0, "gradients": b * extractor}
        assert finetune == {"gathered": 0, "reduced": 0, "gradients": b * (extractor + head)}
        sums = b * classes * (features + 1)
        assert adarand == {"gathered": 16 + 7 * 8, "reduced": sums, "gradients": b * (extractor + head)}


def bytes_of_a_run(rank: int) -> list[int]:
    found = []
    for name in ("finetune", "pof"):
        with counting(built(name)) as (_, sent):
            run(rank, name)
            found.append(sent["reduced"])
    return found


def test_bytes_that_fit_adds_to_each_step(tmp_path: Path) -> None:
    # Six steps; 1 figure of fine-tuning (the loss), 4 of PoF, each in float64, and the weight that they share.
    for found in ranks(bytes_of_a_run, 2, tmp_path):
        assert found == [6 * (16 + 8 * (figures + 1)) for figures in (1, 4)]


# The command line

SMALL = ["--data", "digits", "--model", "small-cnn", "--train_size", "110", "--batch_size", "20", "--epochs", "2"]
COMMAND = ["train", *SMALL, "--method", "pof"]


def assert_one_whole_run(folder: Path) -> None:
    names = {"config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "result.json", "state"}
    assert {path.name for path in folder.iterdir()} == names | {"tensorboard"}
    assert len(list((folder / "tensorboard").iterdir())) == 1
    # 110 samples by 20: five mini-batches and a short one.
    assert [row["step"] for row in read_rows(folder) if row["event"] == "step"] == list(range(1, 13))
    assert "processes: 2" in (folder / "config.yaml").read_text()
    assert json.loads((folder / "result.json").read_text())["test_after"]["n"] == 797
    assert all(bool(value.isfinite().all()) for value in read_weights(folder / "model.safetensors").values())


def test_torchrun_writes_one_run_folder(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "pof"]
    done = python(*launcher, *COMMAND, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1 and done.stdout.count("epoch   2") == 1
    assert_one_whole_run(tmp_path / "run")


def test_resume_with_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert [done.code for done in pof_ranks(2, *COMMAND, *out)] == [0, 0]
    assert_one_whole_run(tmp_path / "run")
    done = command(*COMMAND, *out, "--resume")
    assert done.code == 2
    assert "processes was 2 and is now 1; resume with the same configuration" in done.err


def test_process_that_fails_ends_all_with_a_message(tmp_path: Path) -> None:
    """Only the first process opens the run folder; the other one must not wait for it for ever."""
    (tmp_path / "run").mkdir()
    settings = "model: {model: small-cnn}\ndata: {data: digits}\ntraining: {method: finetune}\n"
    (tmp_path / "run" / "config.yaml").write_text(settings)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "step", "step": 1, "epoch": 1, "loss": 1.0}\n')
    first, second = pof_ranks(2, *COMMAND, "--out", str(tmp_path / "run"))
    assert (first.code, second.code) == (2, 2)
    assert "run holds a run already: give another --out, or go on with --resume true" in first.err
    assert second.err.startswith("pof: error: ") and "Traceback" not in first.err + second.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl"}
    assert (tmp_path / "run" / "config.yaml").read_text() == settings
