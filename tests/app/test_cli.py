"""The command line: runs that are killed and go on, runs that diverge, and what is said about bad input."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pof._support import precision
from pof.app.cards import load_network
from pof.app.cli import main, parse
from pof.app.options import DataOptions, ImproveOptions, ModelOptions, RunOptions, TrainOptions
from pof.app.run_files import read_config, read_rows
from pof.app.splits import load, split
from pof.data import eval_loader, train_loader
from pof.methods import SharpnessAware
from pof.training.evaluation import Metrics, evaluate
from pof.weights import save_model
from tests.processes import Process, Stop, pof, python, start

STRANGERS = "tests.strangers"
SMALL = ["--data", "digits", "--model", "small-cnn", "--train_size", "100", "--batch_size", "20", "--lr", "0.05"]
SMALL += ["--precision", "fp32"]  # whatever the processor is fast in
# Five steps per epoch, each with dropout; a state in the middle of each epoch.
RUN = ["train", *SMALL, "--model", f"{STRANGERS}:dropping", "--epochs", "2", "--checkpoint_every", "3"]
METHODS = {
    "finetune": ["--method", "finetune"],
    "pof fresh": ["--method", "pof", "--pof.features", "fresh"],
    "pof previous": ["--method", "pof", "--pof.features", "previous"],
    "adarand": ["--method", "adarand"],
    "late-sam": ["--method", "late-sam", "--sam.last_epochs", "1"],
    "ema": ["--method", "ema"],
}


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def figures(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log, but for the time."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run folder of an uninterrupted run of a method, made once."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Path:
        out = folder / name.replace(" ", "-")
        if not out.exists():
            assert pof(*RUN, *METHODS[name], "--out", str(out)).code == 0
        return out

    return run


def named(value: Any) -> str | None:
    return f"{value.event} {value.at}" if isinstance(value, Stop) else None


def assert_equal_runs(out: Path, whole: Path) -> None:
    assert sha256(out) == sha256(whole)
    assert figures(out) == figures(whole)
    assert not list(out.rglob("*.partial"))


KILLS = [
    ("pof fresh", Stop(signal.SIGKILL, "epoch", 0)),
    ("pof fresh", Stop(signal.SIGKILL, "step", 1)),
    ("pof fresh", Stop(signal.SIGKILL, "step", 4)),
    ("pof fresh", Stop(signal.SIGKILL, "epoch", 1)),
    ("pof fresh", Stop(signal.SIGKILL, "step", 9)),
    ("pof previous", Stop(signal.SIGKILL, "step", 4)),
    ("pof previous", Stop(signal.SIGKILL, "step", 7)),
    ("finetune", Stop(signal.SIGKILL, "step", 4)),
    ("adarand", Stop(signal.SIGKILL, "step", 4)),
    ("late-sam", Stop(signal.SIGKILL, "step", 7)),
    ("ema", Stop(signal.SIGKILL, "step", 4)),
]


@pytest.mark.parametrize(("name", "stop"), KILLS, ids=named)
def test_killed_run_goes_on_to_the_same_bits(name: str, stop: Stop, whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*RUN, *METHODS[name], "--out", str(out)]
    assert pof(*command, stop=stop).code == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    done = pof(*command, "--resume")
    assert done.code == 0, done.err
    assert_equal_runs(out, whole(name))


@pytest.mark.parametrize("call", [1, 2, 3, 5, 7, 8, 9, 10, 17])
def test_run_killed_while_it_writes_a_file_goes_on(call: int, whole: Any, tmp_path: Path) -> None:
    """Each file costs two calls: before and after it takes its place."""
    out = tmp_path / "run"
    command = [*RUN, *METHODS["finetune"], "--out", str(out)]
    assert pof(*command, stop=Stop(signal.SIGKILL, "fsync", call)).code == -signal.SIGKILL
    done = pof(*command, "--resume")
    assert done.code == 0, done.err
    assert_equal_runs(out, whole("finetune"))


def test_run_killed_from_outside_again_and_again(tmp_path: Path) -> None:
    longer = [*RUN, *METHODS["pof fresh"], "--epochs", "8"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert pof(*longer, "--out", str(whole)).code == 0
    kills = 0
    for goal in (7, 19, 31):
        command = start(*longer, "--out", str(out), "--resume")
        while command.process.is_alive() and len(read_rows(out)) < goal:
            time.sleep(0.001)
        command.process.kill()
        kills += command.wait().code == -signal.SIGKILL
    assert kills == 3, "the runs ended before they were killed"
    assert pof(*longer, "--out", str(out), "--resume").code == 0
    assert_equal_runs(out, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_after_the_step_and_the_run_goes_on(number: signal.Signals, whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*RUN, *METHODS["pof fresh"], "--out", str(out)]
    done = pof(*command, stop=Stop(number, "step", 1))
    assert done.code == 130
    assert f"{number.name} at step 2: stopped after the step; resume to go on from there" in done.out
    assert done.err == "" and not (out / "model.safetensors").exists()
    done = pof(*command, "--resume")
    assert done.code == 0 and "going on at step 2 of 10" in done.out
    assert_equal_runs(out, whole("pof fresh"))


def test_resume_of_a_finished_run_changes_nothing(whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole("finetune"), out)
    assert pof(*RUN, *METHODS["finetune"], "--out", str(out), "--resume").code == 0
    assert_equal_runs(out, whole("finetune"))


def test_a_run_goes_on_without_saying_its_options_again(whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pof(*RUN, *METHODS["pof fresh"], "--out", str(out), stop=Stop(signal.SIGTERM, "step", 1)).code == 130
    done = pof("train", "--resume", "--out", str(out))
    assert done.code == 0 and "going on at step 2 of 10" in done.out, done.err
    assert_equal_runs(out, whole("pof fresh"))


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("train --resume --out run", 0.3),
        ("train --out=run --resume=true", 0.3),
        ("post-train --resume true --out run", 0.3),
        ("train --out run --resume", 0.3),
        ("train --resume --out run --lr 0.2", 0.2),
        ("train --resume --config other.yaml --out run", 0.1),
        ("train --resume false --out run", 0.1),
        ("train --resume no --out run", 0.1),
        ("train --out run", 0.1),
        ("train --resume --out search", 0.1),
        ("train --resume --out nothing", 0.1),
        ("improve --resume --out search", 0.4),
        ("improve --resume --out run", None),
    ],
)
def test_what_goes_on_has_the_options_of_its_folder_unless_others_are_given(
    words: str, rate: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in {
        "run/config.yaml": "training: {method: finetune, lr: 0.3}",
        "search/config.yaml": "improve: {lr: 0.4, out: elsewhere, overwrite: true}",
        "search/improve.json": "{}",
        "other.yaml": "epochs: 3",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    kind = ImproveOptions if words.startswith("improve") else TrainOptions
    parsed = parse(words.split()).options
    assert next(options for options in parsed if isinstance(options, kind)).lr == rate
    place = next(options for options in parsed if isinstance(options, ImproveOptions | RunOptions))
    assert (place.out, place.overwrite) == (words.partition("--out")[2].strip(" =").split()[0], False)


@pytest.mark.parametrize("words", ["--config run.yaml --candidates sam", "--candidates=sam --config run.yaml"])
def test_candidates_that_are_given_take_the_place_of_those_in_a_file(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("{candidates: [sgd, pof], lr: 0.3}", "improve: {candidates: [sgd, pof], lr: 0.3}"):
        Path("run.yaml").write_text(text)
        for more, expected in ((words, ["sam"]), ("--config run.yaml", ["sgd", "pof"])):
            parsed = parse(["improve", "--out", "new", *more.split()]).options
            found = next(options for options in parsed if isinstance(options, ImproveOptions))
            assert (found.candidates, found.lr) == (expected, 0.3)


@pytest.mark.parametrize("words", ["--resume --out run", "--config run/config.yaml --out new"])
def test_another_method_has_no_options_of_the_one_in_a_runs_file(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text("training: {method: sam, lr: 0.3, sam: {rho: 0.2}}")
    for method, rho in (("finetune", None), ("sam", 0.2)):
        parsed = parse(["train", *words.split(), "--method", method]).options
        found = next(options for options in parsed if isinstance(options, TrainOptions))
        assert (found.method, found.lr, found.sam.rho) == (method, 0.3, rho)


def test_settings_are_added_to_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("{recipe: r.yaml, set: [seeds=3]}")
    parsed = parse(["experiment", "--config", str(tmp_path / "own.yaml"), "--set", "budget=2", "--out", "new"])
    assert next(options for options in parsed.options if hasattr(options, "set")).set == ["seeds=3", "budget=2"]


def test_where_there_is_nothing_to_go_on_with_that_is_said_before_what_is_lacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "improve.json").write_text("{}")  # of a search that died while it looked for its rates
    for command, name in (("train", "mistyped"), ("improve", "mistyped"), ("improve", "early")):
        assert main([command, "--resume", "--out", str(tmp_path / name)]) == 2
        said = capsys.readouterr()
        assert f"note: nothing in {tmp_path / name} to go on with" in " ".join(said.out.split())
        assert said.err.startswith("pof: error: give --model")


def test_a_search_that_died_while_it_looked_for_its_rates_goes_on_with_what_it_was_told(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    out, told = str(tmp_path / "search"), ["--weights", str(whole("finetune")), "--budget", "3", "--lr", "0.1"]
    told += ["--model", f"{STRANGERS}:dropping"]
    with monkeypatch.context() as patched:
        patched.setattr("pof.app.improve.improve._rates", die)
        assert main(["improve", *told, "--candidates", "sgd", "--device", "cpu", "--out", out]) == 130
    assert not (tmp_path / "search" / "rates.json").exists()
    capsys.readouterr()
    assert main(["improve", "--resume", "--out", out, "--budget", "4"]) == 0  # nothing is lost by another question
    assert "nothing in" not in capsys.readouterr().out
    assert {row["passes"] for row in json.loads((tmp_path / "search" / "result.json").read_text())["table"]} > {0}


def test_resume_where_there_is_no_run_starts_one(whole: Any, tmp_path: Path) -> None:
    done = pof(*RUN, *METHODS["finetune"], "--out", str(tmp_path / "run"), "--resume", "true")
    assert done.code == 0
    assert f"note: nothing in {tmp_path / 'run'} to go on with: this begins anew" in " ".join(done.out.split())
    assert_equal_runs(tmp_path / "run", whole("finetune"))


@pytest.mark.parametrize(("native", "found"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_that_auto_found_is_written_down(
    native: bool, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    out = tmp_path / "run"
    auto = ["--precision", "auto", "--epochs", "1", "--device", "cpu", "--out", str(out)]
    assert main(["train", *SMALL, *auto]) == 0
    assert read_config(out)["training"]["precision"] == found
    assert json.loads((out / "environment.json").read_text())["precision"] == found
    monkeypatch.setattr(precision, "has_bf16", lambda device: not native)
    assert main(["train", *SMALL, *auto, "--resume"]) == 2


# Divergence


def validation_error(weights: Path) -> Metrics:
    data = DataOptions(data="digits", train_size=300)
    loaded = load(data)
    network = load_network(ModelOptions(model="small-cnn", weights=str(weights)), loaded)
    loader = eval_loader(loaded, "train", batch_size=100, indices=split(loaded, data).validation)
    return evaluate(network, loader)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    settings = ["--train_size", "300", "--epochs", "12"]
    assert pof("train", *SMALL, *settings, "--out", str(out)).code == 0
    return out


def test_run_that_diverges_is_stopped_and_rolled_back(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fixed = ["--pof.sampling", "fixed", "--pof.gamma", "8", "--lr", "0.5", "--train_size", "300", "--epochs", "10"]
    done = pof("post-train", *SMALL, *fixed, "--weights", str(trained), "--out", str(out))
    assert done.code == 0
    assert "validation collapsed: error" in done.out
    assert "was put back. Remedy: lower the learning rate, or gamma, or draw it (sampling='uniform')" in done.out
    assert done.err == ""
    assert json.loads((out / "result.json").read_text())["stopped"] == "diverged"
    before, after = validation_error(trained), validation_error(out)
    assert before.error < 0.1
    assert (after.error, after.nll) <= (before.error, before.nll)


def test_run_without_validation_is_stopped_where_the_loss_is_not_finite(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    absurd = ["--method", "finetune", "--validation", "0", "--lr", "1e38", "--epochs", "1"]
    done = pof("post-train", *SMALL, *absurd, "--weights", str(trained), "--out", str(out))
    assert done.code == 0
    assert "the loss became nan at step 2 (epoch 1, learning rate 9.04508e+37)" in done.out
    assert "the network of epoch 0 was put back. Remedy: lower the learning rate" in done.out
    assert sha256(out) == sha256(trained)


def test_network_from_scratch_that_diverges_ends_with_code_1(tmp_path: Path) -> None:
    done = pof("train", *SMALL, "--lr", "1e38", "--epochs", "1", "--out", str(tmp_path / "run"))
    assert done.code == 1
    assert "Remedy: lower the learning rate" in done.out


# Bad input


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


WEIGHTS = ["--weights"]
BAD_INPUT = {
    "no such weights": ([*WEIGHTS, "absent.pt"], "no such weights file: absent.pt"),
    "pickle with code": (
        [*WEIGHTS, "code.pt"],
        "code.pt: refused, because reading it would execute code (it refers to posix.mkdir)",
    ),
    "truncated safetensors": ([*WEIGHTS, "cut.safetensors"], "cut.safetensors: not a complete safetensors file"),
    "weights of another network": ([*WEIGHTS, "other.safetensors"], "other.safetensors does not fit the Sequential: "),
    "folder without a network": ([*WEIGHTS, "empty"], "empty is not a run: it has no model.safetensors"),
    "unknown data": (
        ["--data", "nope"],
        "unknown data set 'nope', and no such folder or file: nope; known are ",
    ),
    "no such data_root": (["--data", "cifar10", "--data_root", "nope"], "no such folder: data_root nope"),
    "labels out of range": (
        ["--data", f"{STRANGERS}:with_label_out_of_range"],
        "label 3 of sample 5 is out of range for 3 classes; labels are 0 to 2",
    ),
    "empty folder": (["--data", "empty"], "empty: no subfolders in it; an image folder has one subfolder"),
    "class without images": (["--data", "hollow"], "hollow: no image in it that can be read"),
    "one class only": (["--data", "single"], "single: only one class (cat); a classifier needs at least two"),
    "not a factory": (["--data", f"{STRANGERS}:Absent"], f"the module {STRANGERS!r} has no 'Absent'"),
    "train_size of nothing": (["--train_size", "0"], "train_size must be a whole number >= 1; got 0"),
    "fraction in percent": (
        ["--train_size", "null", "--fraction", "20"],
        "fraction 20.0: give a share of the training samples, less than 1, or --train_size, a number of samples",
    ),
    "validation in percent": (["--validation", "20"], "validation 20.0: give a share of the training samples, less"),
    "factory that raises": (
        ["--model", f"{STRANGERS}:with_a_bug"],
        f"'{STRANGERS}:with_a_bug' raised KeyError: 'depth'",
    ),
    "lr auto without a run": (["--lr", "auto"], "lr auto reads the learning rate from the folder of the run"),
    "rho of words": (["--method", "sam", "--sam.rho", "large"], "sam.rho"),
    "rho of msam": (
        ["--weights", "run/model.safetensors", "--method", "msam", "--sam.rho", "auto"],
        "msam ascends along its momentum, and no mini-batch has",
    ),
    "level": (["--method", "head-ascent", "--ascent.level", "2"], "level is a share of the loss of guessing"),
    "batch of nothing": (["--batch_size", "0"], "batch_size must be a whole number >= 1; got 0"),
    "unknown model": (["--model", "resnet21"], "unknown model 'resnet21'; similar: timm:resnet26, resnet20"),
    "unknown head": (["--head", "nope"], "there is no module 'nope'; name one with head=\"name\"; candidates: 'fc'"),
    "frozen head, unknown": (
        ["--weights", "run/model.safetensors", "--head", "nope", "--freeze_head", "true"],
        "there is no module 'nope'",
    ),
    "frozen head, random": (
        ["--model", "small-cnn", "--freeze_head", "true"],
        "a network without --weights has a random head, which has to be",
    ),
    "radius of a network that is not trained": (
        ["--model", "small-cnn", "--method", "late-sam", "--sam.rho", "auto"],
        "sam.rho auto is for a network that is trained already: give --weights, or a number",
    ),
    "frozen head, new": (
        ["--weights", "run/model.safetensors", "--source_classes", "10", "--freeze_head", "true"],
        "freeze_head: a new head (source_classes 10) has to be trained",
    ),
    "head in doubt": (
        ["--data", f"{STRANGERS}:without_flaw", "--model", f"{STRANGERS}:TwoHeads"],
        "'left', 'right'",
    ),
    "network for other images": (
        ["--data", f"{STRANGERS}:without_flaw", "--model", f"{STRANGERS}:for_larger_images"],
        "cannot be multiplied",
    ),
    "unknown method": (["--method", "nope"], "unknown method 'nope': choose one of finetune, pof, "),
    "negative lr": (["--lr", "-0.1"], "lr must be a finite number > 0; got -0.1"),
    "lr of words": (["--lr", "fast"], "lr"),
    "epochs in halves": (["--epochs", "1.5"], "epochs"),
    "no epochs": (["--epochs", "0"], "epochs must be a whole number >= 1; got 0"),
    "gamma": (["--method", "pof", "--pof.gamma", "-1"], "gamma must be a finite number >= 0; got -1.0"),
    "sampling": (["--pof.sampling", "wild"], "pof.sampling"),
    "unknown flag": (["--nope", "3"], "--nope"),
    "no such config": (["--config", "absent.yaml"], "absent.yaml"),
    "config with an unknown key": (["--config", "key.yaml"], "nope"),
    "config that is no YAML": (["--config", "broken.yaml"], "broken.yaml is no YAML: "),
    "config that is no text": (["--config", "bytes.yaml"], "bytes.yaml is no YAML: "),
    "config that is empty": (["--config", "empty.yaml"], "empty.yaml holds no options"),
    "config of a run without its model": (["--config", "section.yaml"], "section.yaml: 'model' holds no options"),
    "config of a run without its training": (["--config", "cut.yaml"], "cut.yaml: 'training' holds no options"),
    "abbreviation": (["--resum"], "--resum"),
    "resume of a damaged run": (["--out", "damaged", "--resume"], "damaged/config.yaml is no YAML: "),
    "resume of another program's folder": (["--out", "foreign", "--resume"], "cannot resume from foreign: foo was 1"),
    "resume with another method": (
        ["--out", "run", "--resume", "--method", "pof"],
        "training.method was 'finetune' and is now 'pof'",
    ),
    "unknown device": (["--device", "nope"], "nope"),
    "out is another run": (
        ["--out", "run"],
        "run holds a run already: give another --out, or go on with --resume true",
    ),
    "resume with another lr": (
        ["--out", "run", "--resume", "--lr", "0.1"],
        "cannot resume from run: training.lr was 0.05 and is now 0.1; resume with the same configuration",
    ),
    "resume with other data": (
        ["--out", "run", "--resume", "--train_size", "120"],
        "data.train_size was 100 and is now 120",
    ),
    "out is a file": (["--out", "code.pt"], "code.pt exists and holds no run: give --out a new or empty folder"),
    "out holds other files": (["--out", "single"], "single exists and holds no run"),
    "out below a file": (["--out", "code.pt/run"], "Not a directory: code.pt/run"),
}


def test_frozen_head_stays_while_the_extractor_is_trained(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["post-train", *SMALL, "--weights", str(trained), "--epochs", "1", "--validation", "0"]
    assert main([*command, "--method", "sam", "--freeze_head", "true", "--out", str(out)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, out))
    changed = {name for name in before if before[name].is_floating_point() and not before[name].equal(after[name])}
    assert changed == {name for name in before if before[name].is_floating_point() and not name.startswith("fc.")}


def test_radius_from_the_data_is_that_of_the_mini_batches_trained_with(trained: Path, tmp_path: Path) -> None:
    settings = ["--train_size", "300", "--epochs", "1", "--method", "sam", "--sam.rho", "auto"]
    assert main(["post-train", *SMALL, *settings, "--weights", str(trained), "--out", str(tmp_path / "out")]) == 0
    data = DataOptions(data="digits", train_size=300)
    loaded = load(data)
    batches = train_loader(loaded, batch_size=20, seed=0, indices=split(loaded, data).train)
    method = SharpnessAware(load_network(ModelOptions(model="small-cnn", weights=str(trained)), loaded))
    rho = method.calibrate(batches)
    assert rho > 0.1
    (radius,) = {row["radius"] for row in read_rows(tmp_path / "out") if row["event"] == "step"}
    assert radius == pytest.approx(rho)


def test_a_network_that_does_not_fit_is_told_in_a_line(whole: Any, tmp_path: Path) -> None:
    done = pof(
        *RUN,
        "--weights",
        str(whole("finetune")),
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "1",
        "--method",
        "sam",
        "--sam.rho",
        "auto",
    )
    assert done.code == 0 and done.err == ""
    assert "warning: rho is 0: the loss of this network is above 0.15 times that of guessing" in done.out
    (radius,) = {row["radius"] for row in read_rows(tmp_path / "out") if row["event"] == "step"}
    assert radius == 0


@pytest.fixture(scope="module")
def surroundings(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surroundings")
    shutil.copytree(whole("finetune"), folder / "run")
    for name in ("empty", "hollow/cat", "hollow/dog", "single/cat"):
        (folder / name).mkdir(parents=True)
    # Files of these names need no content: one class is refused by the names alone.
    (folder / "single" / "cat" / "1.jpg").touch()
    torch.save({"weight": torch.ones(1), "hook": Code()}, folder / "code.pt")
    complete = (folder / "run" / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(complete[:-100])
    save_model(nn.Linear(2, 2), folder / "other.safetensors")
    (folder / "key.yaml").write_text("nope: 1\n")
    (folder / "section.yaml").write_text("model:\ndata: {}\ntraining: {method: sam}\n")
    (folder / "cut.yaml").write_text("model: {}\ntraining:\n")
    (folder / "broken.yaml").write_text("lr: [1\n b")
    (folder / "bytes.yaml").write_bytes(b"\xff")
    (folder / "empty.yaml").write_text("")
    for name, text in {"damaged": "training: [1\n b", "foreign": "foo: 1"}.items():
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_in_one_line_and_nothing_is_written(
    case: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD_INPUT[case]
    monkeypatch.chdir(surroundings)
    before = contents(surroundings)
    out = [] if "--out" in arguments else ["--out", "new"]
    assert main([*RUN, *out, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pof: error: ") and error.count("\n") == 1
    assert message in error
    assert contents(surroundings) == before


def test_nan_in_the_images_is_named_and_no_network_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*RUN, "--data", f"{STRANGERS}:with_nan", "--workers", "0", "--out", "new"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("pof: error: inputs contain nan (sample ") and error.count("\n") == 1
    assert "position [0, 3, 4]); remove such samples or replace the values" in error
    assert not (tmp_path / "new" / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["post-train", "evaluate"])
def test_commands_that_need_weights_say_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if command == "evaluate" else ["--out", "new"]
    assert main([command, "--data", "digits", "--model", "small-cnn", *out]) == 2
    assert "--weights" in capsys.readouterr().err


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown data set"):
        main(["data", "--data", "nope"])


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    done = python("-m", "pof", *RUN, "--data", "nope", "--out", str(tmp_path / "new"))
    assert done.returncode == 2
    assert done.stderr.startswith("pof: error: unknown data set 'nope'") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and not (tmp_path / "new").exists()


def test_network_of_a_run_is_evaluated_to_its_own_figures(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((trained / "result.json").read_text())["test_after"]
    assert main(["evaluate", "--data", "digits", "--model", "small-cnn", "--weights", str(trained)]) == 0
    out = capsys.readouterr().out
    assert f"{100 * expected['error']:.2f} %" in out and f"{expected['nll']:.4f}" in out and "797" in out


# A full disk

NOT_PERMITTED = 99
NEW_MOUNT_NAMESPACE = 0x00020000


def on_a_full_disk(folder: str, size: str, command: list[str]) -> int:
    """Run a command on a tmpfs that is too small, then resume it on the same one, grown; seen by this process only."""
    unshare = ctypes.CDLL(None).unshare
    mounts = [["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "none", folder]]
    if unshare(NEW_MOUNT_NAMESPACE) or any(subprocess.run(["mount", *mount]).returncode for mount in mounts):
        return NOT_PERMITTED
    out = Path(folder, "run")
    print("first", main([*command, "--out", str(out)]))
    print("left over", [path.name for path in out.rglob("*.partial")])
    subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
    print("second", main([*command, "--out", str(out), "--resume"]))
    print("sha256", sha256(out))
    return 0


# Room for nothing; for the first state (270 KB), but not for a second one beside it.
@pytest.mark.parametrize(("size", "file"), [("8k", ""), ("400k", "state.pt")])
def test_full_disk_loses_nothing(size: str, file: str, tmp_path: Path) -> None:
    command = [*RUN, *METHODS["finetune"], "--model", "small-cnn"]
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    done = Process(on_a_full_disk, str(disk), size, command).wait()
    if done.code == NOT_PERMITTED:
        pytest.skip(f"mounting a tmpfs is not permitted: {done.err}")
    assert done.code == pof(*command, "--out", str(whole)).code == 0
    lines = done.out.splitlines()
    assert {"first 2", "left over []", "second 0", f"sha256 {sha256(whole)}"} <= set(lines), lines
    assert done.err.startswith("pof: error: cannot write: No space left on device") and done.err.count("\n") == 1
    assert done.err.endswith(f"{file}\n")


def test_weight_decay_beside_l2sp_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--model", "small-cnn", "--data", "digits", "--epochs", "1", "--lr", "0.01", "--device", "cpu"]
    for method, decay, told in (("l2sp", "0.0005", True), ("l2sp", "0", False), ("bss", "0.0005", False)):
        out = tmp_path / f"{method}{decay}"
        assert main(["train", *base, "--method", method, "--weight_decay", decay, "--out", str(out)]) == 0
        assert ("pulls the weights to the origin" in " ".join(capsys.readouterr().out.split())) is told


def test_a_dry_run_refuses_a_new_head_that_is_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", "small-cnn", "--data", "digits", "--freeze_head", "true", "--out", str(tmp_path / "out")]
    for more in ([], ["--dry_run"]):
        assert main(["train", *asked, *more]) == 2
        assert "has a random head, which has to be trained" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("layers", ["conv2", "conv1,conv2", "conv1, conv2", '["conv1", "conv2"]'])
def test_layers_of_delta_are_one_name_or_a_list(layers: str, tmp_path: Path) -> None:
    options = ["--method", "delta", "--regularizer.layers", layers, "--epochs", "1", "--device", "cpu"]
    assert main(["train", *SMALL, *options, "--out", str(tmp_path / "run")]) == 0
    rows = read_rows(tmp_path / "run")
    assert next(row for row in rows if row["event"] == "epoch" and row["epoch"] == 1)["train_penalty"] > 0
