"""``improve``: the better network or the incoming one, untouched; killed and resumed; every bad end in a sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.app.cli import main
from pof.app.improve.job import _load_validation, as_trained_before
from pof.app.improve.judge import Confirmation, figures, fit_of, halves, logits_on
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, TrainOptions
from pof.app.run_files import RunError
from pof.app.splits import load
from pof.training.checkpoint import CheckpointError

FAST: dict[str, Any] = {"budget": 8.0, "lr": 0.2, "device": "cpu"}


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=generator) + 1.2 * nn.functional.one_hot(y, 6), y


def network(steps: int = 3) -> nn.Module:
    """Trained for a few steps, so that there is something to gain."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = data(96, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_a_search_does_not_go_on_with_other_validation_data(tmp_path: Path) -> None:
    train, validation = loaders(30)
    given: Any = {**FAST, "budget": 2.0, "candidates": ["sgd"], "out": tmp_path / "out"}
    pof.improve(network(), train, validation, **given)
    others = [(x, (y + 1) % 3) for x, y in validation]
    with pytest.raises(RunError, match=r"labels of val_loader was '[0-9a-f]{16}' and is now"):
        pof.improve(network(), train, others, resume=True, **given)


def loaders(validation: int = 300) -> tuple[Any, Any]:
    return DataLoader(TensorDataset(*data(96, 1)), batch_size=16, shuffle=True), [data(validation, 2)]


def test_a_network_that_is_not_finished_gets_better_and_stays_as_it_was() -> None:
    model = network()
    state = copy.deepcopy(model.state_dict())
    result = pof.improve(model, *loaders(), candidates=["sgd", "head-ascent"], **FAST)
    assert result.improved and result.chosen != "incoming"
    assert result.after.error < result.before.error
    assert result.p_error < 0.05
    assert result.table[0].name == "incoming" and result.chosen in {row.name for row in result.table}
    assert [row.name for row in result.table if row.note == "handed back"] == [result.chosen]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    put_together = [row for row in result.table if row.name.startswith(("0.", "soup"))]
    assert len(put_together) >= 3 and not any(row.passes for row in put_together)
    rows = {
        row.name: row.scaled_nll for row in result.table[1:] if (row.error or 1.0) <= (result.table[0].error or 0.0)
    }
    trained = [nll for name, nll in rows.items() if nll and name.startswith(("sgd", "head-ascent"))]
    chooses, _ = halves(loaders()[1][0][1], 0)
    for network_, nll in ((result.model, rows[result.chosen]), (result.single, min(trained))):
        logits, targets = logits_on(network_, loaders()[1])
        assert figures(logits[chooses], targets[chooses]).scaled_nll == nll  # what was judged is what is handed back
    assert result.model is not model and result.passes <= FAST["budget"] + 1
    assert pof.evaluate(result.model, loaders()[1]).error < pof.evaluate(model, loaders()[1]).error


def test_a_soup_names_what_is_in_it() -> None:
    result = pof.improve(network(), *loaders(), candidates=["sgd", "sam", "head-ascent"], **FAST | {"budget": 20.0})
    names = {row.name for row in result.table}
    (soup,) = (name.removeprefix("soup of ") for name in names if name.startswith("soup of "))
    assert len(soup.split("; ")) > 1 and set(soup.split("; ")) <= names


def test_where_nothing_helps_the_incoming_network_itself_is_handed_back() -> None:
    model = network(0)
    pof.fit(pof.Finetune(model), loaders()[0], epochs=30, device="cpu")
    state = copy.deepcopy(model.state_dict())
    # Validation labels that have nothing to do with the inputs: nothing that is learned can be better there.
    x, _ = data(300, 2)
    y = torch.randint(3, (300,), generator=torch.Generator().manual_seed(5))
    tiny = {"a": {"method": "finetune", "lr": 1e-9}}
    result = pof.improve(model, loaders()[0], [(x, y)], candidates=tiny, budget=2.0, lr=0.1, device="cpu")
    assert not result.improved and result.chosen == "incoming" and result.model is model
    assert "incoming network is handed back unchanged" in result.message
    assert result.before == result.after
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_choice_that_is_not_confirmed_is_not_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Confirmation(150, 1, 2, 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    monkeypatch.setattr("pof.app.improve.improve.confirm", lambda *_: worse)
    model = network()
    result = pof.improve(model, *loaders(), candidates=["sgd"], **FAST)
    assert not result.improved and result.chosen == "incoming" and result.model is model
    assert result.message.startswith("nothing was confirmed")
    assert [row.note for row in result.table].count("best in choosing, not confirmed") == 1


ordinary = loaders


class Killed(Exception):
    pass


@pytest.mark.parametrize(("after", "own"), [(1, False), (3, False), (3, True)])
def test_a_killed_search_goes_on_and_ends_the_same(after: int, own: bool, tmp_path: Path) -> None:
    def loaders() -> tuple[Any, Any]:
        """One of pof's own counts the epochs itself, and a resumed search has gone through fewer."""
        train, held_out = ordinary()
        return pof.data.DatasetLoader(train.dataset, batch_size=16, seed=0, shuffle=True) if own else train, held_out

    candidates = ["sgd", "pof", "sam auto"]
    rows: list[Any] = []

    def die(row: Any) -> None:
        rows.extend([row] if row["event"] == "rung" else [])
        if len(rows) == after:
            raise Killed

    torch.manual_seed(11)
    whole = pof.improve(network(), *loaders(), candidates=candidates, out=tmp_path / "a", **FAST)
    torch.manual_seed(11)
    with pytest.raises(Killed):
        pof.improve(network(), *loaders(), candidates=candidates, out=tmp_path / "b", log=die, **FAST)
    torch.manual_seed(12)
    resumed = pof.improve(network(), *loaders(), candidates=candidates, out=tmp_path / "b", resume=True, **FAST)
    assert whole.table == resumed.table
    assert whole.message == resumed.message
    written = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
    assert written[0] == written[1]
    values = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def test_a_damaged_state_ends_the_search_and_drops_no_candidate(tmp_path: Path) -> None:
    given: dict[str, Any] = {"candidates": ["sgd", "pof", "head-ascent"], "out": tmp_path / "out", **FAST}

    def die(row: Any) -> None:
        if row["event"] == "rung" and row["rung"] == 2:
            raise Killed

    with pytest.raises(Killed):
        pof.improve(network(), *loaders(), log=die, **given)
    states = list((tmp_path / "out" / "runs").rglob("*.pt"))
    assert states
    for file in states:
        file.write_bytes(b"damaged")
    before = (tmp_path / "out" / "journal.jsonl").read_text()
    with pytest.raises(CheckpointError, match="state"):
        pof.improve(network(), *loaders(), resume=True, **given)
    assert (tmp_path / "out" / "journal.jsonl").read_text() == before


def test_the_rates_do_not_depend_on_what_the_loader_has_given_before() -> None:
    x, y = data(96, 1)
    train = pof.data.DatasetLoader(TensorDataset(x, y), batch_size=16, seed=0, shuffle=True)
    given: Any = {"candidates": ["sgd"], "budget": 4.0, "device": "cpu"}
    first = pof.improve(network(), train, loaders(60)[1], **given)
    second = pof.improve(network(), train, loaders(60)[1], **given)
    assert first.table == second.table


def test_a_folder_is_taken_once_and_goes_on_with_the_same_arguments_only(tmp_path: Path) -> None:
    def again(**changes: Any) -> pof.ImproveResult:
        options = {"candidates": ["sgd"], "out": tmp_path / "out", "budget": 2.0, "lr": 0.1, "device": "cpu"}
        return pof.improve(network(), *loaders(), **options | changes)

    again()
    with pytest.raises(RunError, match="holds a search already: give another folder, or go on with resume"):
        again()
    with pytest.raises(RunError, match=r"budget was 2.0 and is now 3.0"):
        again(resume=True, budget=3.0)
    with pytest.raises(RunError, match=r"training.weight_decay was 0.0005 and is now 0.1"):
        again(resume=True, training=TrainOptions("finetune", weight_decay=0.1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(RunError, match="holds other files"):
        again(out=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "x"


@pytest.mark.parametrize(
    "changes",
    [{"budget": 0}, {"candidates": ["magic"]}, {"lr": -1.0}, {"resume": True}, {"candidates": {"sam": {"lr": -1.0}}}],
)
def test_a_search_is_not_removed_before_another_is_ready_to_start(tmp_path: Path, changes: dict[str, Any]) -> None:
    given: Any = {**FAST, "budget": 2.0, "candidates": ["sgd"], "out": tmp_path / "out"}
    pof.improve(network(), *loaders(30), **given)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"budget|magic|lr|resume or overwrite"):
        pof.improve(network(), *loaders(30), **given | {"overwrite": True} | changes)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    pof.improve(network(), *loaders(30), **given | {"overwrite": True, "budget": 3.0})
    assert json.loads((tmp_path / "out" / "improve.json").read_text())["budget"] == 3.0
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files too \(mine.txt\), and nothing is removed"):
        pof.improve(network(), *loaders(30), **given | {"overwrite": True})


def test_a_candidate_that_cannot_be_leaves_no_folder(tmp_path: Path) -> None:
    wrong = {"own": {"method": "finetune", "lrr": 1}}
    with pytest.raises(ValueError, match=r"candidates.own: .*lrr"):
        pof.improve(network(), *loaders(30), **FAST | {"candidates": wrong, "out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_candidates_that_diverge_are_named_and_the_incoming_network_is_kept() -> None:
    model = network()
    wild = {"wild": {"method": "finetune", "lr": 1e30}, "wilder": {"method": "sam", "lr": 1e35}}
    result = pof.improve(model, *loaders(), candidates=wild, **FAST)
    assert not result.improved and result.model is model
    notes = {row.name: row.note for row in result.table}
    assert all("diverged" in note or "not finite" in note for name, note in notes.items() if name != "incoming")


def test_few_and_contaminated_validation_data_are_said() -> None:
    x, y = data(96, 1)
    x = x + 8 * nn.functional.one_hot(y, 6)
    model, train = network(0), DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    pof.fit(pof.Finetune(model), train, epochs=20, device="cpu", optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
    result = pof.improve(model, train, [(x, y)], candidates=["sgd"], budget=2.0, lr=1e-4, device="cpu")
    assert any("only 48 validation samples confirm" in note for note in result.notes)
    assert any("they favour it over every candidate" in note for note in result.notes)
    assert not any("does not fit" in note for note in result.notes)


def test_a_network_that_is_not_fitted_gets_plain_training_with_most_of_the_budget() -> None:
    result = pof.improve(network(0), *loaders(), **(FAST | {"budget": 16.0}))
    assert any("does not fit its training data (error" in note and "only plain" in note for note in result.notes)
    spent = {row.name: row.passes for row in result.table if row.method}
    assert {name: spent[name] for name in spent if name[:3] == "sgd" and name.endswith("last")} == pytest.approx(
        {"sgd, lr 0.1, last": 14.0, "sgd, lr 0.02, last": 2.0}
    )
    named = pof.improve(network(0), *loaders(), candidates=["sam auto"], budget=2.0, lr=1e-4, device="cpu")
    assert any("plain training alone, as --candidates sgd, may gain more" in note for note in named.notes)
    plain = pof.improve(network(0), *loaders(), candidates=["sgd"], budget=2.0, lr=1e-4, device="cpu")
    assert any("only plain training was tried" in note for note in plain.notes)


def test_soft_targets_of_training_tell_how_well_they_are_fitted() -> None:
    y = torch.arange(12) % 3
    soft = 0.8 * nn.functional.one_hot(y, 3) + 0.1 * nn.functional.one_hot((y + 1) % 3, 3) + 0.1 / 3
    soft = soft / soft.sum(dim=1, keepdim=True)
    assert fit_of(nn.Identity(), [(soft.log(), soft)]).fits  # the loss is their entropy, the least that can be
    assert not fit_of(nn.Identity(), [(0 * soft.log(), soft)]).fits
    assert fit_of(nn.Identity(), [(soft.roll(1, 1).log(), soft)]).error == 1.0


def test_a_search_trains_on_mixed_samples() -> None:
    train, validation = loaders()
    mixed = [(x, 0.9 * nn.functional.one_hot(y, 3) + 0.1 * nn.functional.one_hot(y.flip(0), 3)) for x, y in train]
    result = pof.improve(network(), mixed, validation, candidates=["sgd"], **FAST)
    assert result.before.n == 150


def test_a_budget_that_goes_into_the_rates_is_said() -> None:
    few: Any = {"candidates": ["sgd"], "budget": 1.0, "device": "cpu"}
    result = pof.improve(network(), *loaders(), **few)
    said = [note for note in result.notes if note.startswith("finding the rates took")]
    raced = sum(row.passes for row in result.table if row.name.endswith(", last"))
    took = float(said[0].split()[4])
    assert took > 0.5 and result.passes == pytest.approx(took + raced, abs=0.05)
    assert "of a budget of 1 passes, and the race had 0.1: give more, or lr" in said[0]
    assert not any("finding" in note for note in pof.improve(network(), *loaders(), **few, lr=0.1).notes)


def test_a_class_that_validation_lacks_is_no_obstacle() -> None:
    x, y = data(300, 2)
    result = pof.improve(network(), loaders()[0], [(x[y < 2], y[y < 2])], candidates=["sgd"], **FAST)
    assert result.before.n == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget must be a finite number of passes > 0, at most 1000000; got 0"),
        ({"budget": float("nan")}, "budget must be a finite number"),
        ({"candidates": ["magic"]}, "'magic' is not known; choose among sam auto, head-ascent"),
        ({"candidates": []}, "candidates: give 1 to 64 names, or none for the usual ones; got 0"),
        ({"candidates": {}}, "candidates: give 1 to 64 names"),
        ({"candidates": {f"{n}": {"method": "finetune"} for n in range(65)}}, "candidates: .*; got 65"),
        ({"candidates": {"own": {"method": "finetune", "lrr": 1}}}, "lrr"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pof.improve(network(), *loaders(), **FAST | changes)


def test_the_command_writes_network_table_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = ["--model", "small-cnn", "--data", "digits", "--train_size", "100", "--validation", "0.3"]
    common = [*digits, "--device", "cpu", "--batch_size", "50"]
    assert main(["train", *common, "--epochs", "3", "--lr", "0.1", "--out", str(tmp_path / "base")]) == 0
    command = ["improve", *common, "--weights", str(tmp_path / "base"), "--budget", "4", "--out", str(tmp_path / "new")]
    assert main([*command, "--candidates", "sgd"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    page = (tmp_path / "new" / "report.html").read_text()
    assert result["message"] in " ".join(shown.split())
    assert result["chosen"] in page and f"{100 * result['before']['error']:.2f} %" in page
    weights = str(tmp_path / "new" / "model.safetensors")
    assert main(["evaluate", *digits, "--device", "cpu", "--weights", weights]) == 0
    test = json.loads((tmp_path / "new" / "test.json").read_text())
    for key, form in {"error": "{:.2%}", "nll": "{:.4f}", "ece": "{:.2%}"}.items():
        for pair in (test, result):
            cells = "".join(f"<td>{form.format(pair[of][key]).replace('%', ' %')}</td>" for of in ("before", "after"))
            assert cells in page
    assert f"{100 * test['after']['error']:.2f} %" in capsys.readouterr().out
    assert main(["improve", *common, "--out", str(tmp_path / "other")]) == 2
    assert "give --weights FILE" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [("",), ("_train", "_val"), ("_train", "_test")])
def test_all_validation_data_of_the_users_own_validate_and_none_of_the_training_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: tuple[str, ...]
) -> None:
    """Without parts no fifth of them is taken for a test set; else it is the part for validation, or for training."""
    generator = np.random.default_rng(0)

    def arrays(name: str, **sizes: int) -> str:
        made = {f"x{part}": generator.integers(0, 255, (n, 8, 8), dtype=np.uint8) for part, n in sizes.items()}
        labels = {f"y{part}": np.arange(n) % 3 for part, n in sizes.items()}
        np.savez(tmp_path / name, **made, **labels)
        return str(tmp_path / name)

    training, own = (
        arrays("data.npz", _train=60, _test=30),
        arrays("own.npz", **dict(zip(parts, (36, 24), strict=False))),
    )
    common = ["--model", "small-cnn", "--data", training, "--batch_size", "20", "--device", "cpu"]
    assert main(["train", *common, "--validation", "0", "--epochs", "1", "--out", str(tmp_path / "base")]) == 0
    out = ["--out", str(tmp_path / "better"), "--candidates", "sgd", "--lr", "0.01", "--budget", "1"]
    assert main(["improve", *common, "--weights", str(tmp_path / "base"), "--validation_data", own, *out]) == 0
    assert "no test data" not in "".join(capsys.readouterr())
    result = json.loads((tmp_path / "better" / "result.json").read_text())
    assert result["before"]["n"] == (12 if "_val" in parts else 18)
    assert json.loads((tmp_path / "better" / "improve.json").read_text())["length of train_loader"] == 3


def test_validation_arrays_are_normalised_as_those_of_the_training(tmp_path: Path) -> None:
    for name, brightest in {"data": 100, "own": 255}.items():
        images = np.random.default_rng(0).integers(0, brightest, (30, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(30) % 3)
    data, model = DataOptions(str(tmp_path / "data.npz")), ModelOptions("small-cnn")
    loaded = load(data, model)
    own = _load_validation(str(tmp_path / "own.npz"), loaded, data, model)
    assert (own.mean, own.std) == (loaded.mean, loaded.std)
    assert own.mean != load(DataOptions(str(tmp_path / "own.npz")), model).mean
    with pytest.raises(ValueError, match="is the data set that is trained on, and has no part for validation"):
        _load_validation(str(tmp_path / "." / "data.npz"), loaded, data, model)


def test_a_network_that_was_trained_with_another_loss_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {loss: bce, batch_size: 7}\n")
    with pytest.warns(UserWarning, match="was trained with the loss bce, and candidates are trained and judged with"):
        training = as_trained_before(ModelOptions("small-cnn", weights=str(tmp_path)), ImproveOptions("out"))
    assert training.batch_size == 7
