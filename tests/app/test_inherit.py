"""Where the data of an earlier run are, and whether two options name the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pof.app.inherit import located, same_data
from pof.app.options import DataOptions


def test_a_path_of_a_run_is_looked_for_from_the_folders_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = tmp_path / "work" / "runs" / "a", tmp_path / "work" / "images"
    for folder in (run, images, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert located("images", run) == str(images)
    assert located("hf:images", run) == f"hf:{images}"
    assert located("../elsewhere", run) == "../elsewhere"  # there as it is
    assert [located(text, run) for text in (None, "digits", "module:factory", "gone")] == [
        *(None, "digits", "module:factory", "gone")
    ]


def test_the_same_name_below_another_data_root_is_other_data(tmp_path: Path) -> None:
    here = DataOptions("cifar10", data_root=str(tmp_path))
    assert same_data(here, DataOptions("cifar10", data_root=os.path.relpath(tmp_path)))
    assert not same_data(here, DataOptions("cifar10"))
    assert not same_data(here, DataOptions("cifar10", data_root=str(tmp_path / "other")))
    assert not same_data(here, DataOptions("cifar100", data_root=str(tmp_path)))
