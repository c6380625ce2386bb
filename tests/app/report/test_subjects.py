from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pof.app.options import DataOptions, ModelOptions
from pof.app.report import check_same_data, read_run, subject_of_file
from pof.app.report.subjects import short_names, with_incoming
from pof.app.run_files import RunError


def copied(runs: Path, name: str, to: Path) -> Path:
    return Path(shutil.copytree(runs / name, to / name))


def with_config(folder: Path, section: str, **values: object) -> Path:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section] |= values
    path.write_text(yaml.safe_dump(config))
    return folder


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run"):
        read_run(tmp_path)


@pytest.mark.parametrize("missing", ["result.json", "model.safetensors"])
def test_a_run_that_has_not_ended_is_refused(runs: Path, tmp_path: Path, missing: str) -> None:
    folder = copied(runs, "pof", tmp_path)
    (folder / missing).unlink()
    with pytest.raises(RunError, match=f"no {missing}: has that run ended"):
        read_run(folder)


def test_the_network_before_comes_once_and_has_the_numbers_of_the_files(runs: Path) -> None:
    subjects, notes = with_incoming([read_run(runs / "pof"), read_run(runs / "sam")])
    assert [s.name for s in subjects] == ["before", "pof", "sam"]
    assert [s.before for s in subjects] == [None, "before", "before"]
    assert not notes
    result = json.loads((runs / "pof" / "result.json").read_text())
    assert vars(subjects[0].test) == result["test_before"]
    assert vars(subjects[1].test) == result["test_after"]
    rows = [json.loads(line) for line in (runs / "pof" / "metrics.jsonl").read_text().splitlines()]
    errors = {row["epoch"]: row["val_error"] for row in rows if row["event"] == "epoch"}
    assert subjects[0].validation_error == errors[0]
    assert subjects[1].validation_error == errors[result["best_epoch"]]


def test_a_listed_run_is_the_network_before_of_the_others(runs: Path) -> None:
    subjects, _ = with_incoming([read_run(runs / name) for name in ("train", "pof", "sam")])
    assert [s.name for s in subjects] == ["train", "pof", "sam"]
    assert [s.before for s in subjects] == [None, "train", "train"]


def test_two_networks_before_are_told_apart(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, "train", tmp_path)
    folder = with_config(copied(runs, "sam", tmp_path), "model", weights=str(other))
    subjects, _ = with_incoming([read_run(runs / "pof"), read_run(folder)])
    assert [s.name for s in subjects] == ["before pof", "before sam", "pof", "sam"]


def test_incoming_weights_that_are_gone_are_noted(runs: Path, tmp_path: Path) -> None:
    folder = with_config(copied(runs, "pof", tmp_path), "model", weights="gone")
    subjects, notes = with_incoming([read_run(folder)])
    assert [(s.name, s.before) for s in subjects] == [("pof", None)]
    assert len(notes) == 1
    assert "gone" in notes[0]


def test_other_weights_in_the_place_of_the_incoming_ones_are_not_taken_for_them(runs: Path, tmp_path: Path) -> None:
    other = copied(runs, "train", tmp_path)
    (other / "model.safetensors").write_bytes(b"trained again")
    folder = with_config(copied(runs, "pof", tmp_path), "model", weights=str(other))
    subjects, notes = with_incoming([read_run(folder)])
    assert [(s.name, s.before) for s in subjects] == [("pof", None)]
    assert "are not there any more as they were" in notes[0]


def test_incoming_weights_are_found_from_another_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(runs, "train", tmp_path / "work" / "runs")
    folder = with_config(copied(runs, "pof", tmp_path / "work" / "runs"), "model", weights="runs/train")
    monkeypatch.chdir(runs)
    subjects, _ = with_incoming([read_run(folder)])
    assert [s.name for s in subjects] == ["before", "pof"]


def test_a_configuration_of_another_version_is_refused(runs: Path, tmp_path: Path) -> None:
    folder = with_config(copied(runs, "pof", tmp_path), "data", novelty=1)
    with pytest.raises(RunError, match=r"another version of pof: it has data\.novelty"):
        with_incoming([read_run(folder)])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/x", "a/y"], ["x", "y"]),
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x"], ["x"]),
    ],
)
def test_names_are_short(folders: list[str], names: list[str]) -> None:
    assert short_names([Path(folder) for folder in folders]) == names


def test_a_run_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        short_names([Path("a"), Path("b/../a")])


@pytest.mark.parametrize("changed", [{"data": "svhn"}, {"validation": 0.2}, {"split_seed": 1}, {"data_root": "x"}])
def test_networks_of_different_data_are_refused(changed: dict[str, object]) -> None:
    data = DataOptions(data="images")
    model = ModelOptions(model="small-cnn")
    one = subject_of_file("a.pt", "a", model, data)
    other = subject_of_file("b.pt", "b", model, replace(data, **changed))
    with pytest.raises(ValueError, match=f"a and b are of different data.*{next(iter(changed))[:4]}"):
        check_same_data([one, one, other])
    check_same_data([one, replace(one, data=replace(data, mean=(0.5,), augment="none"))])
