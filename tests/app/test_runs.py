"""A run knows itself: what its folder says is inherited, what is said against it is refused by name."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import pof
from pof._support.random import seed_everything
from pof.app import job
from pof.app.cards import load_with_source_head
from pof.app.cli import main, parse, settled
from pof.app.options import DataOptions, ModelOptions, TrainOptions
from pof.app.run_files import read_config
from pof.app.run_folder import FILES
from pof.app.splits import load, split, training_batches
from pof.data import ImageData, eval_loader
from pof.models.card import NetworkCard
from pof.weights import load_model, read_metadata, save_model
from tests import processes
from tests.interrupted import resumes_bitwise

SMALL = ["--epochs", "1", "--batch_size", "20", "--device", "cpu", "--precision", "fp32", "--workers", "0"]
COLOURS = {"green": (20, 200, 40), "red": (220, 30, 30)}


def images(root: Path, classes: dict[str, tuple[int, int, int]]) -> Path:
    for part, count in (("train", 40), ("test", 5)):
        for name, colour in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 36), colour).save(root / part / name / f"{number}.png")
    return root


def stubborn() -> nn.Module:
    """Knows no number of classes: it always has 1000, as many a published network."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 1000))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 32 px on a folder of images, with a validation split of its own seed."""
    folder = tmp_path_factory.mktemp("base")
    images(folder / "flags", COLOURS)
    data = ["--data", str(folder / "flags"), "--image_size", "32", "--mean", "0.5,0.5,0.5", "--split_seed", "3"]
    assert main(["train", "--model", "small-cnn", *data, *SMALL, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factory's network of 1000 classes that was given a new head."""
    folder = tmp_path_factory.mktemp("tuned")
    images(folder / "flags", COLOURS)
    save_model(stubborn(), folder / "published.safetensors")
    data = ["--data", str(folder / "flags"), "--image_size", "32", "--weights", str(folder / "published.safetensors")]
    assert main(["fine-tune", "--model", f"{__name__}:stubborn", *data, *SMALL, "--out", str(folder / "run")]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("pof: error: ") and said.count("\n") == 1
    return said


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line of the test error that ``pof evaluate`` prints."""
    capsys.readouterr()
    assert main(list(words)) == 0, capsys.readouterr().err
    return next(line for line in capsys.readouterr().out.splitlines() if "error" in line)


# What is written


def test_config_and_header_say_what_the_network_is(base: Path) -> None:
    config = read_config(base / "run")
    network = config["network"]
    assert (network["model"], network["classes"], network["input_shape"]) == (
        "small-cnn",
        ["green", "red"],
        [3, 32, 32],
    )
    assert network["head"] == "fc" and network["source_classes"] is None
    said = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.229, 0.224, 0.225], "crop": 7 / 8, "squash": False}
    assert said.items() <= network["preprocessing"].items()
    assert config["data"]["split_seed"] == 3 and config["training"]["method"] == "finetune" and "commit" in config
    card = NetworkCard.read(read_metadata(base / "run" / "model.safetensors"))
    assert card is not None and json.loads(json.dumps(vars(card), default=vars)) == network


def test_load_run_needs_nothing_else(base: Path) -> None:
    run = pof.load_run(base / "run")
    assert run.classes == ("green", "red") and run.preprocessing is not None and run.preprocessing.size == 32
    assert not run.model.training and run.folder == base / "run" and run.config["data"]["split_seed"] == 3
    other = pof.models.build_model("small-cnn", num_classes=2)
    assert load_model(other, base / "run") == read_metadata(base / "run")
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run.model(inputs), other.eval()(inputs))


# What is inherited


def test_evaluate_a_run_folder_alone_gives_the_figures_of_its_run(base: Path, capsys: Any) -> None:
    result = json.loads((base / "run" / "result.json").read_text())
    found = error_of(capsys, "evaluate", str(base / "run"), "--device", "cpu")
    assert f"{100 * result['test_after']['error']:.2f} %" in found
    assert found == error_of(capsys, "evaluate", "--weights", str(base / "run"), "--device", "cpu")


def test_post_train_a_run_folder_alone(base: Path, tmp_path: Path) -> None:
    assert main(["post-train", "--weights", str(base / "run"), *SMALL, "--out", str(tmp_path / "out")]) == 0
    before, after = read_config(base / "run"), read_config(tmp_path / "out")
    assert after["network"] == before["network"] and after["data"] == before["data"]
    assert after["model"] == {**before["model"], "weights": str(base / "run"), "head": "fc"}


def test_a_file_of_a_run_says_what_the_network_is_but_not_the_data(base: Path, capsys: Any) -> None:
    file = str(base / "run" / "model.safetensors")
    data = ["--data", str(base / "flags"), "--device", "cpu"]
    assert error_of(capsys, "evaluate", file, *data) == error_of(capsys, "evaluate", str(base / "run"))
    assert "give --data" in refused(capsys, "evaluate", file)


def test_other_test_data_are_prepared_as_those_of_the_training(base: Path, tmp_path: Path) -> None:
    other = images(tmp_path / "other", COLOURS)
    parsed = parse(["evaluate", str(base / "run"), "--data", str(other)])
    model, data = settled(parsed)[:2]
    assert (model.model, data.data, data.split_seed) == ("small-cnn", str(other), 0)
    assert main(["evaluate", str(base / "run"), "--data", str(other), "--device", "cpu"]) == 0


def test_a_new_head_on_other_data_is_no_dead_end(base: Path, tmp_path: Path, capsys: Any) -> None:
    other = images(tmp_path / "other", {"blue": (0, 0, 250), **COLOURS})
    tuning = ["fine-tune", "--weights", str(base / "run"), "--data", str(other), "--method", "finetune", *SMALL]
    assert main([*tuning, "--out", str(tmp_path / "new")]) == 0
    card = pof.load_run(tmp_path / "new").card
    assert (card.classes, card.source_classes, card.input_shape) == (("blue", "green", "red"), 2, (3, 32, 32))
    assert "source_classes 7: the network in" in refused(
        capsys, *tuning, "--source_classes", "7", "--out", str(tmp_path / "x")
    )


def test_a_factory_with_a_new_head_is_used_again(tuned: Path, tmp_path: Path, capsys: Any) -> None:
    run, mine = str(tuned / "run"), ["--model", f"{__name__}:stubborn"]
    assert read_config(tuned / "run")["network"]["source_classes"] == 1000
    assert "error" in error_of(capsys, "evaluate", run, *mine, "--device", "cpu")
    again = str(tmp_path / "again")
    assert main(["post-train", "--weights", run, *mine, *SMALL, "--out", again]) == 0
    assert main(["evaluate", again, *mine, "--device", "cpu"]) == 0
    assert main(["flatness", run, again, "--trust_factories", "--batches", "1", "--device", "cpu"]) == 0
    loaded = pof.load_run(again, trust_factories=True)
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_the_code_that_a_run_names_needs_consent(tuned: Path, capsys: Any) -> None:
    said = refused(capsys, "evaluate", str(tuned / "run"))
    assert f"names the factory '{__name__}:stubborn', whose code would run: give --model {__name__}:stubborn" in said
    with pytest.raises(ValueError, match="trust_factories=True"):
        pof.load_run(tuned / "run")


# What is refused

AGAINST = {
    "size": (["--image_size", "224"], "--image_size: the network in {run} was trained on inputs of 3 x 32 x 32, and"),
    "mean": (["--mean", "0.4,0.4,0.4"], "--mean 0.4,0.4,0.4: the network in {run} was trained with 0.5,0.5,0.5"),
    "std": (["--std", "[1, 1, 1]"], "--std 1,1,1: the network in {run} was trained with 0.229,0.224,0.225"),
    "crop": (["--crop", "0.5"], "--crop 0.5: the network in {run} was trained with 0.875: leave out --crop"),
    "interpolation": (["--interpolation", "bicubic"], "--interpolation bicubic: the network in {run} was trained with"),
    "model": (["--model", "resnet20"], "--model resnet20: the network in {run} is small-cnn: leave out --model"),
    "split seed": (
        ["--split_seed", "0"],
        "--split_seed 0: {run} was trained with split_seed 3, so its network",
    ),
    "validation": (["--validation", "0.3"], "--validation 0.3: {run} was trained with validation 0.1"),
}


@pytest.mark.parametrize("case", AGAINST)
@pytest.mark.parametrize("command", ["evaluate", "post-train", "improve"])
def test_what_is_said_against_a_run_is_refused_by_name(
    command: str, case: str, base: Path, tmp_path: Path, capsys: Any
) -> None:
    words, message = AGAINST[case]
    more = {"evaluate": ["--device", "cpu"], "post-train": SMALL, "improve": ["--device", "cpu"]}[command]
    out = [] if command == "evaluate" else ["--out", str(tmp_path / "out")]
    said = refused(capsys, command, "--weights", str(base / "run"), *words, *more, *out)
    assert message.format(run=base / "run") in said
    assert not (tmp_path / "out").exists()


def test_processes_compare_their_options_before_one_of_them_refuses_its_own(
    base: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(settings: Any) -> None:
        raise ValueError(f"split_seed {settings['data']['split_seed']} here")

    monkeypatch.setattr(job, "agree", differ)  # the others would wait for one that has refused
    words = ["post-train", "--weights", str(base / "run"), "--split_seed", "0", *SMALL, "--out", str(tmp_path / "out")]
    assert "split_seed 0 here" in refused(capsys, *words)


def test_another_order_of_classes_and_other_classes_are_refused(base: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(base / "run", run)
    network = pof.load_run(run)
    turned = NetworkCard("small-cnn", ("red", "green"), (3, 32, 32), preprocessing=network.preprocessing)
    save_model(network.model, run / "model.safetensors", metadata=turned.metadata())
    said = refused(capsys, "evaluate", str(run))
    assert f"the order of the classes: class 0 is 'red' in {run} and 'green' in flags" in said
    other = images(tmp_path / "other", {"blue": (0, 0, 250), "red": (250, 0, 0)})
    said = refused(capsys, "evaluate", str(base / "run"), "--data", str(other))
    assert f"the classes: 'green' of the network in {base / 'run'} is not in other" in said
    three = images(tmp_path / "three", {"blue": (0, 0, 250), **COLOURS})
    assert "has 2, and three has 3" in refused(capsys, "evaluate", str(base / "run"), "--data", str(three))


def test_a_network_without_a_run_needs_model_and_data(tmp_path: Path, capsys: Any) -> None:
    save_model(nn.Linear(2, 2), tmp_path / "net.safetensors")
    assert "give --model, or as --weights the folder of a run" in refused(
        capsys, "evaluate", str(tmp_path / "net.safetensors"), "--data", "digits"
    )
    assert "give --data" in refused(capsys, "data")


# Older runs


def test_a_run_of_an_older_version_is_read_by_its_options(base: Path, tuned: Path, tmp_path: Path, capsys: Any) -> None:
    for source, mine in ((base, []), (tuned, ["--model", f"{__name__}:stubborn"])):
        run = tmp_path / source.name
        shutil.copytree(source / "run", run)
        config = {key: value for key, value in read_config(run).items() if key not in {"network", "commit"}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        loaded = pof.load_run(run, trust_factories=True)
        save_model(loaded.model, run / "model.safetensors")
        assert pof.load_run(run, trust_factories=True).card == replace(loaded.card, head=None)
        found = [error_of(capsys, "evaluate", str(at), *mine, "--device", "cpu") for at in (run, source / "run")]
        assert found[0] == found[1]


# The folder


def test_the_config_of_a_run_is_read_by_its_command(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", "--config", str(base / "run" / "config.yaml"), "--out", str(out)]) == 0
    before, after = read_config(base / "run"), read_config(out)
    assert after == before
    names = ("model.safetensors",)
    assert [(out / name).read_bytes() for name in names] == [(base / "run" / name).read_bytes() for name in names]


def test_what_is_given_beside_a_config_counts_on_either_side_of_it(base: Path) -> None:
    file = str(base / "run" / "config.yaml")
    for words in (["--seed", "3", "--config", file], [f"--config={file}", "--seed", "3"]):
        parsed = parse(["train", *words, "--out", "x"])
        _, data, training, _ = parsed.options
        assert (training.seed, training.batch_size, data.split_seed) == (3, 20, 3)


def test_a_folder_with_another_config_is_no_run_to_overwrite(base: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    command = ["train", "--config", str(base / "run" / "config.yaml"), "--out", str(tmp_path), "--overwrite"]
    assert f"{tmp_path} exists and holds no run: give --out a new or empty folder" in refused(capsys, *command)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_that_is_not_there_is_named(tmp_path: Path, capsys: Any) -> None:
    assert f"no such file or folder: {tmp_path / 'runn'}" in refused(capsys, "evaluate", str(tmp_path / "runn"))


def test_overwrite_removes_a_run_and_nothing_else(base: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(base / "run", run)
    command = ["train", "--config", str(base / "run" / "config.yaml"), "--out", str(run), "--seed", "1"]
    assert "or remove that run with --overwrite" in refused(capsys, *command)
    assert "not both" in refused(capsys, *command, "--overwrite", "--resume")
    (run / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "holds other files too (notes.txt), and nothing is removed" in refused(capsys, *command, "--overwrite")
    (run / "notes.txt").unlink()
    refused(capsys, *command, "--overwrite", "--lr", "-1")
    own = ["post-train", "--weights", str(run), *SMALL, "--out", str(run), "--overwrite"]
    assert "holds the weights to start from, and nothing is removed" in refused(capsys, *own)
    del before[run / "notes.txt"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*command, "--overwrite"]) == 0
    assert read_config(run)["training"]["seed"] == 1 and all((run / name).exists() for name in FILES)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.txt").write_text("mine")
    said = refused(capsys, *command[:-4], "--out", str(tmp_path / "other"), "--overwrite")
    assert "exists and holds no run" in said and (tmp_path / "other" / "config.txt").exists()


def test_a_run_that_died_before_its_first_step_does_not_block_its_folder(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(base / "run" / "config.yaml", run)
    (run / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 0, "step": 0, "best": true}\n')
    command = ["train", "--config", str(base / "run" / "config.yaml"), "--seed", "1", "--out", str(run)]
    assert main(command) == 0
    assert read_config(run)["training"]["seed"] == 1
    assert main(command) == 2


# Help and flags


def test_help_shows_the_dozen_and_help_all_the_rest(capsys: Any) -> None:
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse(["post-train", flag])
        texts[flag] = capsys.readouterr().out
    assert all(f" --{name} " in texts["--help"] for name in ("weights", "out", "method", "epochs", "lr", "data"))
    assert "--sam.rho" not in texts["--help"] and "pof post-train --help-all" in " ".join(texts["--help"].split())
    assert 12 <= texts["--help"].count("\n  --") <= 16
    assert "--sam.rho" in texts["--help-all"] and "--split_seed" in texts["--help-all"]


def test_every_option_is_described_in_whole_sentences() -> None:
    from pof.app.cli import COMMANDS
    from pof.app.cli._parser import _help

    texts = {name: text for command in COMMANDS.values() for group in command.groups for name, text in _help(group)}
    assert [name for name, text in texts.items() if not (text[:1].isupper() and text.endswith("."))] == []


def test_version(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"pof {pof.__version__}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["--method", "pof", "--sam.rho", "0.1"],
            "--sam.rho is an option of sam, asam, sam-on, msam, late-sam, rewarm",
        ),
        (["--pof.gamma", "1", "--method", "ema"], "--pof.gamma is an option of pof, and --method is ema"),
        (["--method", "l2sp", "--regularizer.k", "2"], "--regularizer.k is an option of bss, and --method is l2sp"),
        (["--method", "sam", "--sam.last_epochs", "2"], "--sam.last_epochs is an option of late-sam"),
        (["--method", "sam", "--average.decay", "0.9"], "--average.decay is an option of ema, and --method is sam"),
    ],
)
def test_options_of_other_methods_are_refused(words: list[str], named: str, capsys: Any) -> None:
    assert named in refused(capsys, "train", "--model", "small-cnn", "--data", "digits", "--out", "x", *words)


def test_a_file_may_hold_the_defaults_of_other_methods(tmp_path: Path, capsys: Any) -> None:
    """As ``--print_config`` writes them."""
    words = ["train", "--model", "small-cnn", "--data", "digits", "--out", str(tmp_path / "out"), "--config"]
    for level in (0.15, 0.2):
        (tmp_path / f"{level}.yaml").write_text(f"sam: {{level: {level}}}\n")
    assert "sam.level" in parse([*words, str(tmp_path / "0.15.yaml")]).given
    assert "--sam.level is an option of sam" in refused(capsys, *words, str(tmp_path / "0.2.yaml"))


def test_options_of_the_average_beside_a_method_are_its_own() -> None:
    parsed = parse(["train", "--method", "sam", "--average.kind", "ema", "--average.decay", "0.9", "--out", "x"])
    assert parsed.options[2].average.decay == 0.9


@pytest.mark.parametrize("flag", [["--dry_run"], ["--dry_run", "true"], ["--dry-run=true"]])
def test_a_dry_run_prints_plan_and_cost_and_writes_nothing(
    flag: list[str], base: Path, tmp_path: Path, capsys: Any
) -> None:
    out = ["--out", str(tmp_path / "out")]
    post = [
        "post-train",
        "--weights",
        str(base / "run"),
        "--method",
        "sam",
        "--epochs",
        "3",
        "--batch_size",
        "12",
        *out,
    ]
    assert main([*post, "--device", "cpu", *flag]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cost 6 forward-backward passes over the training data" in said
    assert "72 for training, 8 for validation, 10 for the test at the end" in said
    if flag == ["--dry_run"]:
        assert main(["improve", "--weights", str(base / "run"), "--budget", "7", "--device", "cpu", *out, *flag]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "cost 7 forward-backward passes" in said
        assert "head-ascent (only sgd if the network does not fit its training data)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "steps"), [("12", 2), ("18", 2), ("20", 2), ("23", 1)])
def test_a_dry_run_counts_the_steps_that_the_run_takes(
    size: str, steps: int, base: Path, tmp_path: Path, capsys: Any
) -> None:
    """72 samples: whole windows, a window begun, and a last mini-batch that is left out (3 of 23) or not (12 of 20)."""
    post = ["post-train", "--weights", str(base / "run"), "--method", "finetune", "--epochs", "2", "--device", "cpu"]
    post += ["--batch_size", size, "--accumulation", "3", "--out", str(tmp_path / "out")]
    assert main([*post, "--dry_run"]) == 0
    assert f"steps {2 * steps} (2 epochs of {steps})" in " ".join(capsys.readouterr().out.split())
    assert main(post) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 2 * steps


def test_images_that_are_not_square_are_normalised_as_those_of_the_training(tmp_path: Path, capsys: Any) -> None:
    """Such as spectrograms: arrays have no size to be brought to, but the network has a mean and a deviation."""
    for name, least in {"a": 0, "b": 90}.items():
        pixels = np.random.default_rng(0).integers(least, least + 99, (60, 8, 12), dtype=np.uint8)
        np.savez(
            tmp_path / f"{name}.npz",
            x_train=pixels[:40],
            y_train=np.arange(40) % 2,
            x_test=pixels[40:],
            y_test=np.arange(20) % 2,
        )
    run, other = str(tmp_path / "run"), str(tmp_path / "b.npz")
    assert main(["train", "--model", "small-cnn", "--data", str(tmp_path / "a.npz"), *SMALL, "--out", run]) == 0
    loaded = load(DataOptions(other), ModelOptions("small-cnn", weights=run))
    card, own = pof.load_run(run).card, load(DataOptions(str(tmp_path / "a.npz")))
    assert (loaded.mean, loaded.std) == (card.mean, card.std) == (own.mean, own.std)
    assert main(["evaluate", run, "--data", other, "--device", "cpu"]) == 0
    assert "--mean 0.5: the network in" in refused(capsys, "evaluate", run, "--data", other, "--mean", "0.5")


def test_a_search_goes_on_with_the_data_prepared_as_they_were(base: Path, tmp_path: Path, capsys: Any) -> None:
    search = ["improve", "--weights", str(base / "run"), "--budget", "1", "--lr", "0.01", "--candidates", "finetune"]
    search += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "better"), "--resume"]
    assert main(search) == 0, capsys.readouterr().err
    before = (tmp_path / "better" / "config.yaml").read_bytes()
    said = refused(capsys, *search, "--augment", "none")
    assert "data.augment was 'default' and is now 'none'" in said
    assert "data.train_size was None and is now 70" in refused(capsys, *search, "--train_size", "70")
    assert (tmp_path / "better" / "config.yaml").read_bytes() == before
    assert main([*search, "--data", str(base / "run" / ".." / "flags")]) == 0, "the same data by another path"


def test_a_search_goes_on_without_saying_its_options_again(base: Path, tmp_path: Path, capsys: Any) -> None:
    search = ["--weights", str(base / "run"), "--budget", "1", "--lr", "0.01", "--candidates", "finetune", "sam"]
    search += ["--device", "cpu", "--workers", "0", "--batch_size", "12"]
    assert main(["improve", *search, "--out", str(tmp_path / "whole")]) == 0
    killed = processes.pof(
        "improve", *search, "--out", str(tmp_path / "new"), stop=processes.Stop(signal.SIGKILL, "fsync", 20)
    )
    assert killed.code == -signal.SIGKILL and not (tmp_path / "new" / "result.json").exists()
    assert main(["improve", "--resume", "--out", str(tmp_path / "new")]) == 0, capsys.readouterr().err
    assert (tmp_path / "new" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


def test_improve_writes_a_network_that_knows_itself(base: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "better"
    search = ["improve", "--weights", str(base / "run"), "--budget", "2", "--lr", "0.01", "--candidates", "finetune"]
    search += ["--validation", "0.1", "--device", "cpu", "--batch_size", "12", "--workers", "0", "--out", str(out)]
    assert main(search) == 0, capsys.readouterr().err
    assert pof.load_run(out).card == pof.load_run(base / "run").card
    assert main(["evaluate", str(out), "--device", "cpu"]) == 0
    assert "or remove that search with overwrite" in refused(capsys, *search)
    assert main([*search, "--overwrite", "--seed", "1"]) == 0
    assert json.loads((out / "improve.json").read_text())["seed"] == 1
    again = tmp_path / "again"
    assert main(["improve", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0, capsys.readouterr().err
    assert (again / "result.json").read_bytes() == (out / "result.json").read_bytes()


def test_co_tuning_on_the_command_line_is_its_formula_and_resumes_bitwise(tmp_path: Path, monkeypatch: Any) -> None:
    few = ["--batch_size", "20", "--device", "cpu", "--precision", "fp32"]
    data = ["--data", "digits", "--train_size", "60"]
    assert main(["train", "--model", "small-cnn", *data, *few, "--epochs", "1", "--out", str(tmp_path / "source")]) == 0
    tune = ["fine-tune", "--weights", str(tmp_path / "source"), "--source_classes", "10", "--method", "co-tuning", *few]
    tune += ["--epochs", "2", "--checkpoint_every", "1"]
    assert main([*tune, "--out", str(tmp_path / "whole")]) == 0

    model = ModelOptions("small-cnn", str(tmp_path / "source"), source_classes=10)
    options = DataOptions("digits", train_size=60)
    loaded = load(options, model)
    splits = split(loaded, options)
    seed_everything(0)
    network, source = load_with_source_head(model, loaded, "cross-entropy")
    assert source is not None
    parts = pof.split(network.eval())
    ((images, labels),) = eval_loader(loaded, "train", batch_size=60, indices=splits.train)
    likely = torch.softmax(source(parts.features(images)), dim=1)
    relationship = torch.stack([likely[labels == c].mean(dim=0) for c in range(10)])
    first = training_batches(loaded, splits, options, TrainOptions("co-tuning", batch_size=20), torch.device("cpu"))
    images, labels = next(iter(first.iterate(0)))
    network.train()
    hoped = torch.log_softmax(source(parts.features(images)), dim=1)
    penalty = -2.3 * (relationship[labels] * hoped).sum(dim=1).mean()
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert next(row for row in rows if row["event"] == "step")["penalty"] == pytest.approx(
        float(penalty.detach()), rel=1e-5
    )
    assert resumes_bitwise(tune, tmp_path, monkeypatch, step=5)


def test_a_run_of_a_network_in_a_folder_is_used_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to where the run was started; a hub might have a network of that name."""
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "nets").mkdir(parents=True)
    other.mkdir()
    monkeypatch.chdir(home)
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    timm.models.save_for_hf(network, "nets/small", model_config={"num_classes": 10, "in_chans": 1})
    words = (
        "post-train --model timm:local-dir:nets/small --weights pretrained --data digits --batch_size 100 --epochs 1"
    )
    assert main([*words.split(), "--train_size", "100", "--out", "runs/one"]) == 0
    monkeypatch.chdir(other)
    assert main(["evaluate", str(home / "runs" / "one")]) == 0
    words = "post-train --weights ../home/runs/one --epochs 1 --batch_size 100 --out again"
    assert main(words.split()) == 0
    assert main(["report", "../home/runs/one", "--batches", "1", "--out", "page.html"]) == 0
    assert main(["evaluate", "again", "--model", f"timm:local-dir:{home}/nets/small"]) == 0
    assert pof.load_run("../home/runs/one").card.model == f"timm:local-dir:{home}/nets/small"


def test_a_run_is_of_the_data_of_the_folder_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From other folders what has the same relative name there is another file."""
    digits = load_digits()
    for name, order in (("home", np.arange(64)), ("other", np.random.default_rng(0).permutation(64))):
        (tmp_path / name).mkdir()
        x, y = digits.images.reshape(-1, 64)[:, order].reshape(-1, 8, 8).astype("uint8"), digits.target
        np.savez(tmp_path / name / "own.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:800], y_test=y[400:800])
    few = ["--batch_size", "50", "--device", "cpu", "--precision", "fp32"]
    monkeypatch.chdir(tmp_path / "home")
    base = ["train", "--model", "small-cnn", "--data", "own.npz", "--epochs", "3", *few]
    assert main([*base, "--out", "../runs/base"]) == 0
    assert main([*base, "--out", "../other/base"]) == 0  # beside the other file
    expected = json.loads((tmp_path / "runs" / "base" / "result.json").read_text())["test_after"]
    monkeypatch.chdir(tmp_path / "other")
    for run in ("../runs/base", "base"):
        capsys.readouterr()
        assert main(["evaluate", run, "--device", "cpu", "--json", "-"]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["metrics"]["error"] == expected["error"]
        assert main(["evaluate", run, "--data", "own.npz", "--device", "cpu", "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["error"] > expected["error"] + 0.2
    assert main(["train", "--config", "base/config.yaml", "--out", "again"]) == 0
    assert json.loads((tmp_path / "other" / "again" / "result.json").read_text())["test_after"] == expected
    capsys.readouterr()
    # Its samples would be held out anew.
    words = ["post-train", "--weights", "base", "--data", "../home/own.npz", "--split_seed", "5", "--out", "leak", *few]
    assert main(words) == 2
    assert "was trained with split_seed 0" in capsys.readouterr().err
    state = tmp_path / "runs" / "base"
    assert main(["train", "--resume", "--out", str(state)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("shape", [(12, 12), (12, 12, 3)])
@pytest.mark.parametrize("folder", [False, True])
def test_networks_of_arrays_are_used_again_on_the_arrays_as_they_are(
    tmp_path: Path, capsys: Any, shape: tuple[int, ...], folder: bool
) -> None:
    """They were read like image files: as RGB, and augmented."""
    generator, arrays = np.random.default_rng(0), {}
    for part, n in {"train": 60, "test": 30}.items():
        arrays |= {f"x_{part}": generator.integers(0, 255, (n, *shape)).astype("uint8"), f"y_{part}": np.arange(n) % 3}
    place = tmp_path / ("arrays" if folder else "arrays.npz")
    if folder:
        place.mkdir()
        for name, values in arrays.items():
            np.save(place / f"{name}.npy", values)
    else:
        np.savez(place, **arrays)
    base, again = str(tmp_path / "base"), tmp_path / "again"
    few = ["--batch_size", "20", "--epochs", "1", "--device", "cpu", "--precision", "fp32"]
    assert main(["train", "--model", "small-cnn", "--data", str(place), *few, "--out", base]) == 0
    expected = json.loads((tmp_path / "base" / "result.json").read_text())["test_after"]
    weights = ["--weights", f"{base}/model.safetensors", "--data", str(place)]
    for given in ([base], ["--weights", base, "--data", str(place)], weights):
        assert main(["evaluate", *given, "--device", "cpu", "--json", "-"]) == 0, capsys.readouterr().err
        told = capsys.readouterr().out
        found = json.loads(told[told.index("{\n") :])["metrics"]
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert main(["post-train", "--weights", base, "--method", "finetune", *few, "--out", str(again)]) == 0
    assert json.loads((again / "result.json").read_text())["test_before"] == pytest.approx(expected, rel=1e-6)
    data = load(DataOptions(str(place)), ModelOptions("small-cnn", weights=base))
    assert isinstance(data, ImageData) and data.augmentation is None


def test_inputs_in_tensors_go_to_the_model_itself(base: Path) -> None:
    run = pof.load_run(base / "run")
    for wrong in (torch.zeros(2, 3, 32, 32), [torch.zeros(3, 32, 32)], "image.png"):
        with pytest.raises(ValueError, match=r"a list of paths of images: for inputs in tensors call run\.model"):
            run.predict(wrong)
