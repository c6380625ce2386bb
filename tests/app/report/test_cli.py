from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import pof
from pof.app.cli import main, parse

FEW = ["--batches", "2", "--device", "cpu"]


def test_flatness_prints_and_writes_the_figures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    assert main(["flatness", "--runs", str(runs / "train"), str(runs / "pof"), "--out", str(out), *FEW]) == 0
    values = json.loads((out / "flatness.json").read_text())
    assert [n["name"] for n in values["networks"]] == ["train", "pof"]
    assert values["batch_size"] == 32
    shown = capsys.readouterr().out
    for label in ("Error", "NLL", "ECE", "Largest eigenvalue", "Trace", "SAM sharpness", "Ratio", "Suggested", "Norm"):
        assert label in shown
    result = json.loads((runs / "pof" / "result.json").read_text())["test_after"]
    assert values["networks"][1]["figures"]["error"] == result["error"]
    assert f"{100 * result['error']:.2f} %" in shown


def test_flatness_replaces_its_own_file_alone(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    other.write_text('{"mine": 1, "batches": 2}')
    command = ["flatness", "--runs", str(runs / "train"), *FEW, "--out"]
    assert main([*command, str(own)]) == main([*command, str(own)]) == 0
    assert main([*command, str(other)]) == 2
    assert "is there, and not of this command" in capsys.readouterr().err and "mine" in other.read_text()


def test_flatness_of_a_checkpoint_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(runs / "pof" / "model.safetensors")
    model = ["--model", "small-cnn", "--data", "digits", "--train_size", "200"]
    # What the network may have been trained on is not validation data, unless the user says so.
    for validation, known in (([], False), (["--validation", "0.1"], True)):
        assert main(["flatness", "--runs", file, *model, *validation, "--batch_size", "32", *FEW]) == 0
        rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "Suggested" in line]
        assert [value.strip() != "–" for _, value in rows] == [known]
    assert main(["flatness", "--runs", file, *FEW]) == 2  # the header of its weights says which model it is
    assert "give --data" in capsys.readouterr().err
    foreign = runs / "foreign.pt"
    torch.save(pof.load_run(runs / "pof").model.state_dict(), foreign)
    assert main(["flatness", "--runs", str(foreign), *FEW]) == 2
    assert "give --model and --data" in capsys.readouterr().err


def test_report_is_in_the_last_runs_folder(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(runs / "sam", tmp_path / "sam")
    assert main(["report", "--runs", str(runs / "pof"), str(folder), *FEW]) == 0
    assert (folder / "report.html").exists()
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("report", "nowhere", "no such folder: "),
        ("flatness", "nowhere", "no such folder: "),
        ("report", "unfinished", "has that run ended"),
        ("report", "moved", "no such folder"),
        ("report", "other", "unknown data set"),
    ],
)
def test_bad_input_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, message: str
) -> None:
    folder = tmp_path / name
    if name != "nowhere":
        shutil.copytree(runs / "pof", folder)
    if name == "unfinished":
        (folder / "result.json").unlink()
    if name in {"moved", "other"}:
        config = folder / "config.yaml"
        new = "data: cifar10\n  data_root: nowhere" if name == "moved" else "data: no-such-data\n  data_root: null"
        config.write_text(config.read_text().replace("data: digits\n  data_root: null", new))
    assert main([command, "--runs", str(folder), *FEW]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["flatness", "report"])
def test_nothing_of_a_run_or_of_others_is_replaced(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = shutil.copytree(runs / "pof", tmp_path / "pof")
    mine = tmp_path / f"mine.{'html' if command == 'report' else 'json'}"
    mine.write_text("mine")
    link = mine.with_stem("link")
    link.symlink_to(mine)
    refused = [mine, link, *([folder / "result.json"] if command == "flatness" else [])]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in refused:
        assert main([command, "--runs", str(folder), "--out", str(out), *FEW]) == 2
        error = capsys.readouterr().err
        assert "give another name" in error and error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["flatness", "report"])
@pytest.mark.parametrize("key", ["model", "data"])
def test_code_that_a_folder_names_does_not_run_without_consent(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    key: str,
) -> None:
    folder = shutil.copytree(runs / "pof", tmp_path / "pof")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[key][key] = "payload:net"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "payload.py").write_text("import pathlib\n\npathlib.Path('executed').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    assert main([command, "--runs", str(folder), *FEW]) == 2
    assert "names the factory 'payload:net', whose code would run: give --trust_factories" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists() and "payload" not in sys.modules
    assert main([command, "--runs", str(folder), "--trust_factories", *FEW]) == 2
    said = capsys.readouterr().err
    if (key, command) == ("model", "flatness"):  # another one than the header of the weights names
        assert "--model payload:net: the network in" in said
    else:
        assert "the module 'payload' has no 'net'" in said
        assert (tmp_path / "executed").exists()


def test_runs_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "give at least one run: --runs FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["flatness", "report"])
@pytest.mark.parametrize(
    "given", [["a", "b"], ["--runs", "a", "b"], ["a", "--runs", "b"], ["a", "b", "--out", "o"], ["--out=o", "a", "b"]]
)
def test_runs_are_named_with_and_without_their_flag(command: str, given: list[str]) -> None:
    options = parse([command, *given]).options[0]
    assert options.runs == ["a", "b"]


def test_a_search_is_reported_beside_its_own_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "better"
    search = ["improve", "--weights", str(runs / "train"), "--candidates", "sgd", "--lr", "0.1", "--budget", "2"]
    assert main([*search, "--out", str(folder), "--device", "cpu", "--precision", "fp32"]) == 0
    page, chosen = (folder / "report.html").read_bytes(), json.loads((folder / "result.json").read_text())["chosen"]
    assert main(["report", str(folder), *FEW]) == 0
    assert "of the same 797 test samples" in capsys.readouterr().out
    assert (folder / "report.html").read_bytes() == page
    shown = (folder / "networks.html").read_text()
    tests = json.loads((folder / "test.json").read_text())
    for figures in tests.values():
        assert f'<data value="{figures["error"]}">{100 * figures["error"]:.2f} %</data>' in shown
    assert f"better <small>improve, {chosen}</small>" in shown and "Training loss" not in shown
    assert "a mini-batch of 32 samples" in shown  # that of the network's own run
    assert main(["flatness", str(runs / "train"), str(folder), "--out", str(folder), *FEW]) == 0
    names = [one["name"] for one in json.loads((folder / "flatness.json").read_text())["networks"]]
    assert names == ["train", "better"]
    assert main([*search, "--out", str(folder), "--device", "cpu", "--overwrite"]) == 0
    assert not (folder / "networks.html").exists() and not (folder / "flatness.json").exists()
    (folder / "test.json").unlink()
    assert main(["report", str(folder), *FEW]) == 2
    assert "has no test.json: has that run ended?" in capsys.readouterr().err
