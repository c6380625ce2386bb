"""Where the data of an earlier run are, whether two options name the same, and what is held out of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pof.app.inherit import located, same_data
from pof.app.known import held_out
from pof.app.options import DataOptions, ModelOptions
from tests.app import test_tasks as tasks


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


def test_the_validation_part_of_the_data_is_held_out_where_it_has_one() -> None:
    model, data = ModelOptions(f"{tasks.HERE}:net"), DataOptions(f"{tasks.HERE}:one_logit")
    ((inputs, labels),) = held_out(model, data, {"model", "data"}, batch_size=16)
    wanted = tasks.one_logit()[1].tensors
    assert torch.equal(inputs, wanted[0]) and torch.equal(labels, wanted[1])


def test_without_samples_held_out_there_is_the_remedy() -> None:
    with pytest.raises(ValueError, match="no validation samples: give --validation"):
        held_out(ModelOptions("small-cnn"), DataOptions("digits", validation=0), {"model", "data"}, batch_size=16)
