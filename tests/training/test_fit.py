"""The loop: steps as a hand-written loop takes them, selection, divergence, bitwise identical resume."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.data.batch_sampler import drops_last
from pof.training import checkpoint
from pof.training.fit import find_device
from tests.cases import batch, batches, mlp


def sgd(lr: float = 0.1) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-2)


CONSTANT = pof.Schedule("constant")


def loader(seed: int = 0, n: int = 52, size: int = 16) -> DataLoader[Any]:
    inputs, targets = batch(n, seed=seed)
    return DataLoader(TensorDataset(inputs, targets), batch_size=size, shuffle=True)


def test_plain_steps_equal_a_hand_written_loop() -> None:
    torch.manual_seed(0)
    mine = mlp(norm=True)
    slow = copy.deepcopy(mine)
    data = batches(5, last=5)
    pof.fit(pof.Finetune(mine), data, epochs=2, optimizer=sgd(), schedule=CONSTANT, clip_norm=0.5, device="cpu")
    optimizer = sgd()(slow.parameters())
    for _ in range(2):
        for inputs, targets in data:
            optimizer.zero_grad()
            F.cross_entropy(slow(inputs), targets).backward()
            nn.utils.clip_grad_norm_(slow.parameters(), 0.5)
            optimizer.step()
    assert all(torch.equal(v, slow.state_dict()[k]) for k, v in mine.state_dict().items())


@pytest.mark.parametrize(("epochs", "said"), [(1, "1 epoch; no validation"), (2, "2 epochs; no validation")])
def test_one_epoch_is_not_several(epochs: int, said: str) -> None:
    assert pof.fit(pof.Finetune(mlp()), batches(2), epochs=epochs, device="cpu").message.startswith(said)


def test_accumulated_short_batch_counts_by_its_samples() -> None:
    torch.manual_seed(0)
    mine, data = mlp(), batches(3, last=2)
    whole = copy.deepcopy(mine)
    pof.fit(pof.Finetune(mine), data, epochs=1, optimizer=sgd(), schedule=CONSTANT, accumulation=3, device="cpu")
    joined = (torch.cat([b[0] for b in data]), torch.cat([b[1] for b in data]))
    pof.fit(pof.Finetune(whole), [joined], epochs=1, optimizer=sgd(), schedule=CONSTANT, device="cpu")
    for p, q in zip(mine.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_figures_of_an_epoch_are_means_over_samples(accumulation: int) -> None:
    model, data = mlp(), batches(3, last=2)
    method = pof.PoF(model, sampling="fixed")
    result = pof.fit(method, data, epochs=1, optimizer=sgd(0.0), accumulation=accumulation, device="cpu")
    outputs = [method(*each, *other) for each, other in pof.with_reference(data)]
    sizes = [len(targets) for _, targets in data]
    for name in ("loss", "radius", "gradient_norm"):
        mean = sum(getattr(out, name).item() * n for out, n in zip(outputs, sizes, strict=True)) / sum(sizes)
        assert result.history[1][f"train_{name}"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("given", [False, True], ids=["without model", "with model"])
def test_sam_takes_running_statistics_from_its_first_pass(given: bool) -> None:
    torch.manual_seed(0)
    mine = mlp(norm=True)
    slow = copy.deepcopy(mine)
    data = batches(4, last=5)

    def sam(model: nn.Module) -> pof.SAM:
        return pof.SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, model=model if given else None)

    pof.fit(pof.Finetune(mine), data, epochs=2, optimizer=sam(mine), schedule=CONSTANT, device="cpu")
    optimizer = sam(slow)
    for inputs, targets in data * 2:
        optimizer.zero_grad()
        F.cross_entropy(slow(inputs), targets).backward()
        kept = copy.deepcopy(slow.norm.state_dict())
        with optimizer.perturbed():
            optimizer.zero_grad()
            F.cross_entropy(slow(inputs), targets).backward()
        with torch.no_grad():
            for name, buffer in slow.norm.named_buffers():
                buffer.copy_(kept[name])
        optimizer.step()
    assert int(mine.norm.num_batches_tracked) == 8
    assert all(torch.equal(v, slow.state_dict()[k]) for k, v in mine.state_dict().items())


def test_schedule_is_followed_and_logged() -> None:
    rows: list[Any] = []
    schedule = pof.Schedule("cosine", warmup_steps=2)
    pof.fit(
        pof.Finetune(mlp()), batches(4), epochs=2, optimizer=sgd(0.3), schedule=schedule, device="cpu", log=rows.append
    )
    rates = [row["lr"] for row in rows if row["event"] == "step"]
    assert rates == pytest.approx([0.3 * schedule.factor(step, 8) for step in range(8)])
    assert rates[:2] == pytest.approx([0.1, 0.2]) and rates[2] == pytest.approx(0.3) and rates[-1] < 0.03


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_schedule_kinds(kind: Any) -> None:
    schedule = pof.Schedule(kind, milestones=(0.5,), decay=0.1)
    factors = [schedule.factor(s, 10) for s in (0, 4, 5, 10)]
    assert factors == pytest.approx(
        {"constant": [1, 1, 1, 1], "step": [1, 1, 0.1, 0.1], "cosine": [1, 0.6545085, 0.5, 0.0]}[kind]
    )


def test_best_on_validation_is_handed_back() -> None:
    torch.manual_seed(0)
    model, data = mlp(), batches(4)
    result = pof.fit(
        pof.Finetune(model), data, epochs=6, optimizer=sgd(0.5), val_loader=batches(2, first=9), device="cpu"
    )
    errors = [(row["val_error"], row["val_nll"]) for row in result.history]
    assert result.best_epoch == min(range(7), key=lambda e: errors[e])
    assert pof.evaluate(model, batches(2, first=9)).error == errors[result.best_epoch][0]


def test_incoming_network_comes_back_unchanged_when_nothing_was_better() -> None:
    torch.manual_seed(0)
    model = mlp()
    data = batches(2)
    pof.fit(pof.Finetune(model), data, epochs=60, optimizer=sgd(0.5), schedule=CONSTANT, device="cpu")
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = [(x, (y + 1) % 4) for x, y in data]
    result = pof.fit(pof.Finetune(model), wrong, epochs=2, optimizer=sgd(1e-3), val_loader=data, device="cpu")
    assert (result.best_epoch, result.stopped) == (0, None)
    assert "no epoch was better on validation than the incoming network" in result.message
    assert all(torch.equal(v, trained[k]) for k, v in model.state_dict().items())


def test_validation_collapse_stops_the_run_and_says_so() -> None:
    torch.manual_seed(0)
    model, data = mlp(), batches(2)
    pof.fit(pof.Finetune(model), data, epochs=60, optimizer=sgd(0.5), schedule=CONSTANT, device="cpu")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrong = [(x, (y + 1) % 4) for x, y in data]
    with pytest.warns(
        pof.DivergenceWarning, match=r"validation collapsed: error .* after epoch \d+ \(step \d+\).*Remedy: lower"
    ):
        result = pof.fit(pof.Finetune(model), wrong, epochs=50, optimizer=sgd(0.5), val_loader=data, device="cpu")
    assert result.stopped == "diverged" and result.epochs < 50
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class WrongAtFirst:
    """Mini-batches whose labels are wrong in the first epochs."""

    def __init__(self, data: list[tuple[torch.Tensor, torch.Tensor]], epochs: int) -> None:
        self.data, self.left = data, epochs

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.left -= 1
        return iter([(x, (y + (self.left >= 0)) % 4) for x, y in self.data])


def test_a_collapse_may_recover_while_the_rate_can_fall() -> None:
    """SGD at a large rate was stopped after its first epoch, and the incoming network was handed back for it."""
    torch.manual_seed(0)
    model, data = mlp(), batches(2)
    pof.fit(pof.Finetune(model), data, epochs=60, optimizer=sgd(0.5), schedule=CONSTANT, device="cpu")
    method, loader = pof.Finetune(model), WrongAtFirst(data, epochs=20)
    result = pof.fit(method, loader, epochs=60, optimizer=sgd(0.5), val_loader=data, device="cpu")
    errors = [row["val_error"] for row in result.history]
    assert max(errors) > 0.7 and errors[-1] < 0.3
    assert (result.stopped, result.epochs) == (None, 60)


def test_non_finite_loss_stops_at_its_step_and_puts_the_last_good_epoch_back() -> None:
    torch.manual_seed(0)
    model = mlp()
    good = batches(3)
    bad = [*good[:2], (good[2][0] * float("nan"), good[2][1])]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(
        pof.DivergenceWarning, match=r"became nan at step 3 \(epoch 1, learning rate 0.1\).*epoch 0 was put back"
    ):
        result = pof.fit(pof.Finetune(model), bad, epochs=2, optimizer=sgd(), schedule=CONSTANT, device="cpu")
    assert result.stopped == "diverged" and result.steps == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_afterwards_is_the_one_before(training: bool) -> None:
    method = pof.Finetune(mlp(norm=True, dropout=0.1)).train(training)
    pof.fit(method, batches(2), epochs=1, val_loader=batches(1), device="cpu")
    assert {module.training for module in method.modules()} == {training}


METHODS = {
    "finetune": pof.Finetune,
    "pof fresh": pof.PoF,
    "pof previous": lambda model: pof.PoF(model, features="previous"),
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 11])
@pytest.mark.parametrize("name", METHODS)
def test_resume_is_bitwise_identical_from_any_step(name: str, stop: int, tmp_path: Path) -> None:
    """A run that dies without notice goes on from its last checkpoint as if nothing had happened."""

    def run(folder: Path, die_at: int | None = None, resume: bool = False) -> tuple[Any, list[Any]]:
        rows: list[Any] = []

        def log(row: Any) -> None:
            rows.append({k: v for k, v in row.items() if k != "seconds"})
            if die_at is not None and row["event"] == "step" and row["step"] == die_at:
                raise Killed

        torch.manual_seed(4)
        model = mlp(norm=True, dropout=0.2)
        torch.manual_seed(77 if resume else 5)
        result = pof.fit(
            METHODS[name](model),
            loader(),
            epochs=3,
            optimizer=sgd(),
            val_loader=[batch(seed=8)],
            checkpoint_dir=folder,
            checkpoint_every=2,
            resume=resume,
            accumulation=1,
            device="cpu",
            log=log,
        )
        return result, rows

    whole, all_rows = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", die_at=stop)
    resumed, rows = run(tmp_path / "cut", resume=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.model.state_dict().items())
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.history] == strip
    assert rows[-1] == all_rows[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops_and_the_run_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    def run(folder: Path, resume: bool = False, interrupt: bool = False) -> Any:
        def log(row: Any) -> None:
            if interrupt and row["event"] == "step" and row["step"] == 5:
                os.kill(os.getpid(), number)

        torch.manual_seed(0)
        method = pof.PoF(mlp())
        return pof.fit(
            method, loader(), epochs=3, optimizer=sgd(), checkpoint_dir=folder, resume=resume, device="cpu", log=log
        )

    whole = run(tmp_path / "a")
    handler = signal.getsignal(number)
    with pytest.warns(
        pof.InterruptionWarning, match=f"{number.name} at step 6: stopped after the step; resume to go on"
    ):
        stopped = run(tmp_path / "b", interrupt=True)
    assert signal.getsignal(number) is handler
    assert stopped.stopped == "interrupted" and number.name in stopped.message and stopped.steps == 6
    resumed = run(tmp_path / "b", resume=True)
    assert resumed.stopped is None
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


@pytest.mark.parametrize("judged", [True, False])
def test_an_interrupted_run_hands_back_the_best_network_so_far(judged: bool) -> None:
    """Where it can tell which that is; else that of the step."""
    given = mlp()
    states = [copy.deepcopy(given.state_dict())]

    def log(row: Any) -> None:
        if row["event"] == "epoch" and row["epoch"] == 1:
            states.append(copy.deepcopy(given.state_dict()))
        if row["event"] == "step" and row["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    which = "the best so far" if judged else "that of this step"
    validation = batches(2) if judged else None
    destroying = torch.optim.SGD(given.parameters(), lr=1e3)
    with pytest.warns(pof.InterruptionWarning, match=rf"at step 5: .*nothing was saved.*the network is {which}"):
        result = pof.fit(
            pof.Finetune(given),
            batches(3),
            epochs=9,
            optimizer=destroying,
            val_loader=validation,
            device="cpu",
            log=log,
        )
    assert result.best_epoch == (0 if judged else 1)
    same = [all(torch.equal(p, state[name]) for name, p in given.state_dict().items()) for state in states]
    assert same == [judged, False]


def test_a_signal_behind_the_last_step_is_not_lost() -> None:
    def log(row: Any) -> None:
        if row["event"] == "epoch" and row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.warns(pof.InterruptionWarning, match="SIGTERM came after the last step: the run is complete"):
        result = pof.fit(pof.Finetune(mlp()), batches(3), epochs=2, device="cpu", log=log)
    assert result.stopped is None and result.steps == 6


def test_a_signal_beside_a_divergence_does_not_call_the_run_complete() -> None:
    def stopping() -> Any:
        for inputs, targets in batches(2):
            yield inputs, targets
        os.kill(os.getpid(), signal.SIGTERM)
        yield inputs.fill_(torch.inf), targets

    class Loader:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            return stopping()

    with (
        pytest.warns(pof.DivergenceWarning),
        pytest.warns(pof.InterruptionWarning, match="SIGTERM came after the last step: the loss became nan at step 3"),
    ):
        result = pof.fit(pof.Finetune(mlp()), Loader(), epochs=2, device="cpu")
    assert result.stopped == "diverged"


def test_resume_with_another_configuration_is_refused(tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        method = options.pop("method", pof.PoF)(mlp())
        return pof.fit(method, batches(3), checkpoint_dir=tmp_path, device="cpu", **{"epochs": 2, **options})

    run()
    with pytest.raises(pof.CheckpointError, match=r"epochs was 2 and is now 3"):
        run(epochs=3, resume=True)
    with pytest.raises(pof.CheckpointError, match=r"method was 'PoF' and is now 'Finetune'"):
        run(method=pof.Finetune, resume=True)
    with pytest.raises(pof.CheckpointError, match=r"PoF.gamma was 2.0 and is now 1.0"):
        run(method=lambda m: pof.PoF(m, gamma=1.0), resume=True)


def test_resume_with_another_accumulation_is_refused_where_the_steps_are_as_many(tmp_path: Path) -> None:
    def run(accumulation: int, resume: bool = False) -> Any:
        options: Any = {"epochs": 1, "checkpoint_dir": tmp_path, "resume": resume, "device": "cpu"}
        return pof.fit(pof.Finetune(mlp()), batches(5), accumulation=accumulation, **options)

    run(3)
    with pytest.raises(pof.CheckpointError, match=r"accumulation was 3 and is now 4"):
        run(4, resume=True)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / checkpoint.STATE_FILE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(pof.CheckpointError, match=r"state.pt is damaged .*remove .* to start anew"):
        pof.fit(pof.Finetune(mlp()), batches(2), checkpoint_dir=tmp_path, resume=True, device="cpu")


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    def run(resume: bool) -> Any:
        torch.manual_seed(0)
        return pof.fit(pof.PoF(mlp()), batches(3), epochs=2, checkpoint_dir=tmp_path, resume=resume, device="cpu")

    first, again = run(False), run(True)
    assert again.steps == first.steps == 6
    assert all(torch.equal(v, first.model.state_dict()[k]) for k, v in again.model.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(precision: Any) -> None:
    torch.manual_seed(0)
    model = mlp().float()
    data = [(x.float(), y) for x, y in batches(4)]
    before = pof.evaluate(model, data).nll
    pof.fit(pof.PoF(model), data, epochs=20, optimizer=sgd(0.05), precision=precision, device="cpu")
    assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in model.parameters())
    assert pof.evaluate(model, data).nll < before


@pytest.mark.parametrize(("norm", "last", "warned"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_a_small_last_mini_batch_under_batch_norm_is_warned_of(norm: bool, last: int, warned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 3) for n in (8, 8, last)]
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Flatten(), nn.Linear(16, 3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pof.fit(pof.Finetune(nn.Sequential(*layers)), data, epochs=3, device="cpu")
    said = [str(w.message) for w in caught if "drop_last=True" in str(w.message)]
    assert len(said) == warned
    assert not warned or said[0].startswith("the last step of an epoch has 1 samples, a full mini-batch 8")


@pytest.mark.parametrize(
    ("samples", "batch_size", "dropped"),
    [(5000, 128, True), (160, 128, False), (159, 128, True), (8, 128, False), (256, 128, False)],
)
def test_jobs_leave_out_a_last_mini_batch_under_a_quarter(samples: int, batch_size: int, dropped: bool) -> None:
    assert drops_last(samples, batch_size) is dropped


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    method = pof.Finetune(mlp())
    for options, message in (
        ({"epochs": 0}, "epochs must be a whole number >= 1; got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number >= 1; got 2.5"),
        ({"epochs": float("nan")}, "epochs must be a whole number >= 1; got nan"),
        ({"epochs": float("inf")}, "epochs must be a whole number >= 1; got inf"),
        ({"accumulation": 1.5}, "accumulation must be a whole number >= 1; got 1.5"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every must be a whole number >= 1; got nan"),
        ({"clip_norm": float("nan")}, "clip_norm must be a finite number > 0; got nan"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number > 0; got 0.0"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16; got 'fp8'"),
        ({"resume": True}, "resume=True needs checkpoint_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            pof.fit(method, batches(2), **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedule must be a pof.Schedule, .*; got 'cosine'"):
        pof.fit(method, batches(2), schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training loader is empty"):
        pof.fit(method, [], device="cpu")
    with pytest.raises(ValueError, match="needs a length"):
        pof.fit(method, iter(batches(2)), device="cpu")
    with pytest.raises(ValueError, match="milestones are fractions"):
        pof.Schedule("step", milestones=(30.0,))


def test_a_zero_grad_of_ones_own_is_called() -> None:
    calls = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append("class")
            super().zero_grad(set_to_none)

    def wrapped(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        inner = optimizer.zero_grad
        optimizer.zero_grad = lambda *args, **kwargs: (calls.append("object"), inner(*args, **kwargs))  # type: ignore[assignment]
        return optimizer

    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 2
    for make in (lambda parameters: Own(parameters, lr=0.1), wrapped):
        pof.fit(pof.Finetune(nn.Sequential(nn.Linear(3, 2))), batches, epochs=1, optimizer=make, device="cpu")
    assert calls == ["class", "class", "object", "object"]


def test_one_process_needs_no_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert find_device("cpu") == torch.device("cpu")
    there = torch.accelerator.is_available()
    assert find_device(None).type == (torch.accelerator.current_accelerator().type if there else "cpu")  # type: ignore[union-attr]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImportError, match=r"several processes need accelerate: pip install 'pof\[app\]'"):
        find_device(None)


@pytest.mark.parametrize("kind", ["sam", "msam"])
def test_a_function_that_makes_a_plain_optimizer_gets_it_wrapped(kind: Any) -> None:
    """And one that makes a sharpness-aware optimizer gets that."""
    start, data = mlp(), batches()
    wrapper, options = {"sam": pof.SAM, "msam": pof.MSAM}[kind], {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}

    def trained(make: Any, method: Any) -> torch.Tensor:
        made = method(copy.deepcopy(start))
        pof.fit(made, data, epochs=1, optimizer=make, schedule=CONSTANT, device="cpu")
        return made.model.fc.weight.detach()

    def aware(model: nn.Module) -> pof.Method:
        return pof.SharpnessAware(model, kind=kind, rho=0.3)

    wrapped = trained(lambda p: torch.optim.SGD(p, **options), aware)
    assert torch.equal(wrapped, trained(lambda p: wrapper(p, torch.optim.SGD, 0.3, **options), aware))
    assert not torch.equal(wrapped, trained(lambda p: torch.optim.SGD(p, **options), pof.Finetune))


def test_a_start_that_is_refused_leaves_no_state(tmp_path: Path) -> None:
    method = pof.SharpnessAware(mlp())
    own = torch.optim.SGD(method.trainable_parameters(), lr=0.1)
    with pytest.raises(ValueError, match="SGD perturbs nothing"):
        pof.fit(method, batches(), epochs=1, optimizer=own, checkpoint_dir=tmp_path, device="cpu")
    pof.fit(method, batches(), epochs=1, optimizer=sgd(), checkpoint_dir=tmp_path, device="cpu")


@pytest.mark.parametrize(("first", "kept"), [("a Dataset", False), ("labels", False), ("right", True)])
def test_a_first_mini_batch_that_is_refused_leaves_no_state(first: str, kept: bool, tmp_path: Path) -> None:
    x, y = batch(16)
    loaders: dict[str, Any] = {
        "a Dataset": TensorDataset(x, y),
        "labels": [(x, y + 9)],
        "right": [(x, y), (x, y + 9)],
    }
    with pytest.raises(ValueError, match=r"DataLoader|class indices must be in \[0, 3\]"):
        pof.fit(pof.Finetune(mlp()), loaders[first], epochs=1, checkpoint_dir=tmp_path, device="cpu")
    assert (tmp_path / "state.pt").exists() is kept


class Draws(pof.Finetune):
    """A method of one's own that draws before each epoch."""

    def before_epoch(self, epoch: int, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        torch.rand(3)


def test_a_state_from_before_the_first_step_goes_on_bitwise(tmp_path: Path) -> None:
    def run(stop: bool = False, **options: Any) -> nn.Module:
        model = mlp(dropout=0.5)
        torch.manual_seed(1)

        def log(row: Any) -> None:
            if stop and row.get("step") == 1:
                shutil.copytree(tmp_path / "run", tmp_path / "first")

        pof.fit(Draws(model), batches(), epochs=1, optimizer=sgd(), device="cpu", log=log, **options)
        return model

    whole = run(stop=True, checkpoint_dir=tmp_path / "run").state_dict()
    resumed = run(checkpoint_dir=tmp_path / "first", resume=True).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("sgd", r"must be a torch\.optim\.Optimizer, or a function of the parameters .* got 'sgd'"),
        (lambda parameters: None, r"function must return a torch\.optim\.Optimizer; got None"),
    ],
)
def test_what_is_no_optimizer_is_named(optimizer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pof.fit(pof.Finetune(mlp()), batches(), epochs=1, optimizer=optimizer)


@pytest.mark.parametrize("kind", ["sam", "asam"])
def test_lbfgs_is_refused_inside_of_sam_too(kind: Any) -> None:
    with pytest.raises(ValueError, match="LBFGS computes the loss several times"):
        pof.fit(
            pof.SharpnessAware(mlp(), kind=kind), batches(), epochs=1, optimizer=lambda p: torch.optim.LBFGS(list(p))
        )  # type: ignore[no-untyped-call]


def test_a_radius_in_words_names_the_call() -> None:
    with pytest.raises(ValueError, match=r"rho must be a number; for .* method\.calibrate\(loader\)"):
        pof.SharpnessAware(mlp(), rho="auto")  # type: ignore[arg-type]
