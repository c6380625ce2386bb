"""``improve`` where things are odd: names, numbers, mini-batches, lines that were cut short, networks handed back."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof._support.random import isolated
from pof.app.improve import race, rate
from pof.app.improve.candidates import Candidate
from pof.app.improve.judge import fit_of
from pof.app.improve.race import JUDGED, Race, folder_of
from pof.app.improve.rungs import Rung
from pof.app.options import TrainOptions
from tests.app.improve.test_improve import FAST, Killed, data, loaders, network


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_a_network_is_handed_back_with_what_it_came_with() -> None:
    """Head ascent freezes the head, an average all parameters, DELTA has a hook: none of it is left."""
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 1, 8, 8) + y[:, None, None, None]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    model[0].bias.requires_grad_(False)
    own = [parameter.requires_grad for parameter in model.parameters()]
    train = DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True)
    for method in ("head-ascent", "delta", "finetune"):
        given: Any = {"candidates": {"own": {"method": method, "lr": 0.1}}, "budget": 2, "device": "cpu"}
        result = pof.improve(model, train, [(x, y.clone())], **given)
        assert result.single is not model
        assert [parameter.requires_grad for parameter in result.single.parameters()] == own
        assert not any(module._forward_hooks or module.training for module in result.single.modules())


@pytest.mark.parametrize("accumulation", [2, 4])
def test_steps_of_several_mini_batches_are_counted_as_such(accumulation: int) -> None:
    taken: Counter[str] = Counter()
    given: Any = {"candidates": ["sgd", "head-ascent"], **FAST, "budget": 24.0}
    result = pof.improve(
        network(),
        *loaders(),
        training=TrainOptions("finetune", accumulation=accumulation),
        log=lambda row: taken.update([row["run"]] if row["event"] == "step" else []),
        **given,
    )
    # A pass has 6 mini-batches; each of four candidates spends 2.4 passes, and the best one 14.4 more.
    short, long = {2: (7, 43), 4: (5, 29)}[accumulation]
    assert sorted(taken.values()) == [short] * 3 + [short + long]
    assert result.passes == pytest.approx((4 * short + long) / {2: 3, 4: 2}[accumulation])


def test_what_is_spent_are_whole_steps_and_one_at_least() -> None:
    x, y = data(40, 1)
    rows: list[Any] = []
    train = DataLoader(TensorDataset(x, y), batch_size=40)
    given: Any = {"candidates": ["sgd", "sam"], **FAST, "budget": 0.5, "log": rows.append}
    result = pof.improve(network(), train, loaders()[1], **given)
    spent = {row.name: row.passes for row in result.table if row.name.endswith(", last") and "way" not in row.name}
    # Four candidates take a step, the best of them another: a step of SAM is two passes.
    assert sorted(spent.values()) in ([1.0, 2.0, 2.0, 2.0], [1.0, 1.0, 2.0, 4.0])
    assert result.passes == sum(spent.values())
    assert rows[0]["passes"] == pytest.approx(4 * 1.5 + 1.5)


def test_every_candidate_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = ["a b", "a_b", "A b", "../../out", "x" * 300, "x" * 301, "a\nb"]
    found = [folder_of(f"{name}, lr 0.1") for name in names]
    assert len({name.lower() for name in found}) == len(names)
    assert not any("/" in name or len(name) > 200 for name in found)
    assert folder_of("sam auto, lr 0.1") == "sam_auto_lr_0.1"  # as it was
    pair = {
        "a b": {"method": "finetune", "lr": 0.1},
        "a_b": {"method": "finetune", "lr": 0.1, "average": {"kind": "swa"}},
    }
    pof.improve(network(), *loaders(30), candidates={**pair, "../../x": pair["a b"]}, out=tmp_path / "a" / "b", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list((tmp_path / "a" / "b" / "runs").iterdir())) == 4  # and the long run


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_that_was_cut_short_does_not_join_the_next_one(cut: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {"candidates": ["sgd"], **FAST}

    def die_after(number: int) -> Any:
        told: list[int] = []

        def die(row: Any) -> None:
            told.extend([1] if row["event"] == "rung" and not row["known"] else [])
            if len(told) == number:
                raise Killed

        return die

    whole = pof.improve(network(), *loaders(), out=tmp_path / "a", **given)
    for number in (2, 1):
        with pytest.raises(Killed):
            pof.improve(network(), *loaders(), out=tmp_path / "b", resume=number == 1, log=die_after(number), **given)
        journal = tmp_path / "b" / "journal.jsonl"
        journal.write_text(journal.read_text()[:-cut])
    assert pof.improve(network(), *loaders(), out=tmp_path / "b", resume=True, **given).table == whole.table
    assert all(json.loads(line)["run"] for line in journal.read_text().splitlines())


def test_runs_that_were_dropped_together_are_in_their_order(tmp_path: Path) -> None:
    """The best ones are put together: of those dropped in the first rung, not the one that was named first."""

    class Judged(Race):
        def _judge(self, candidate: Candidate, number: int) -> dict[str, Any]:
            nll = float(candidate.name[-1])
            figures = {"error": 0.1, "nll": nll, "scaled_nll": nll, "temperature": 1.0}
            return {
                "run": candidate.name,
                "rung": number,
                "passes": 1.0,
                "dropped": "",
                **dict.fromkeys(JUDGED, figures),
            }

    x, y = data(30, 1)
    race = Judged(network(), None, [(x, y)], [(x, y)], y, y, 3, 1, tmp_path, 0, lambda row: None)
    candidates = [Candidate(f"number {n}", TrainOptions("finetune")) for n in (5, 3, 4, 1, 6, 2)]
    found = race.go(candidates, [Rung(6, 1.0), Rung(3, 2.0), Rung(2, 3.0)])
    assert [run.candidate.name[-1] for run in found] == list("123456")


@pytest.mark.parametrize("seed", [0, 2])
def test_a_radius_of_shuffled_data_is_the_same_whenever_a_run_is_taken_up(seed: int) -> None:
    """Of a loader that shuffles by the global generator, as most do, which other mini-batches gave another radius."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))
    x, y = data(200, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    train = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    given: Any = {"candidates": ["sam auto", "sam auto quarter"], "budget": 4.0, "lr": 0.05, "device": "cpu"}
    torch.manual_seed(100 + seed)
    result = pof.improve(model, train, loaders()[1], **given)
    assert sum(row.error is not None for row in result.table) >= 9


def test_a_method_that_the_network_does_not_take_does_not_end_the_search_for_rates() -> None:
    result = pof.improve(plain(), *loaders(), candidates=["sgd", "sam-on"], budget=2.0, device="cpu")
    notes = [row.note for row in result.table if row.method == "sam-on"]
    assert len(notes) == 2 and all("belongs to a normalisation layer" in note for note in notes)


def test_a_mini_batch_too_small_for_batch_norm_is_said_before_the_race() -> None:
    train = DataLoader(TensorDataset(*data(97, 1)), batch_size=16)
    with pytest.raises(
        ValueError, match="step 7 has a mini-batch of 1 sample, too few for batch norm: give the loader"
    ):
        pof.improve(network(), train, loaders()[1], candidates=["sgd"], budget=20.0, device="cpu")


def test_one_validation_sample_cannot_choose_and_confirm() -> None:
    with pytest.raises(ValueError, match="val_loader gives one sample: give two at least"):
        pof.improve(network(), loaders()[0], [data(1, 2)], candidates=["sgd"], **FAST)


def test_some_mini_batches_are_mixed_and_some_are_not() -> None:
    x, y = data(96, 1)
    soft = nn.functional.one_hot(y, 3).float()
    mixed, hard, model = [(x[:48], soft[:48]), (x[48:], y[48:])], [(x[:48], y[:48]), (x[48:], y[48:])], network()
    assert fit_of(model, mixed) == fit_of(model, hard)
    assert pof.improve(model, mixed, loaders()[1], candidates=["sgd"], **FAST).table[0].error is not None


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    train, validation = loaders(60)
    rates = {f"sgd {n}": {"method": "finetune", "lr": lr} for n, lr in enumerate(np.logspace(-2, -1, 2))}
    plainly: dict[str, Any] = {"candidates": rates, "budget": 2, "seed": 1, "device": "cpu"}
    odd = {**plainly, "budget": np.int64(2), "seed": np.int64(1), "out": tmp_path}
    expected, found = (pof.improve(network(), train, validation, **given) for given in (plainly, odd))
    assert expected.table == found.table
    assert (
        pof.improve(network(), train, validation, **{**plainly, "out": tmp_path, "resume": True}).table == found.table
    )


def test_a_network_that_cannot_be_copied_is_named() -> None:
    model = plain()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Sequential holds what cannot be copied \(cannot pickle '_thread.lock'"):
        pof.improve(model, *loaders(), candidates=["sgd"], budget=2.0, device="cpu")


def test_all_draws_are_seeded_on_the_network_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout on a GPU draws from the GPU's own generator, which would go on from run to run."""
    places: list[Any] = []

    def noted(seed: int, *device: Any, **options: Any) -> Any:
        places.extend(device or ["not said"])
        return isolated(seed, *device, **options)

    for module in (race, rate):
        monkeypatch.setattr(module, "isolated", noted)
    pof.improve(network(), *loaders(), candidates=["sgd", "pof"], budget=2.0, device="cpu")
    assert set(places) == {torch.device("cpu")}
