"""What a network says of data: where they are, how they are prepared, and what is held out of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pof._support.preprocessing import Preprocessing
from pof.app.cards import as_trained, card_in, check_fits
from pof.app.inherit import check_split, given_in, inherited, same_data
from pof.app.known import held_out
from pof.app.options import DataOptions, ModelOptions
from pof.app.places import START, located
from pof.app.run_files import RunError
from pof.app.splits import load
from pof.models.card import NetworkCard
from pof.weights import save_model
from tests.app import test_tasks as tasks


def test_a_path_of_a_run_is_looked_for_from_the_folders_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = tmp_path / "work" / "runs" / "a", tmp_path / "work" / "images"
    for folder in (run, images, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert located("images", {}, run) == str(images)
    assert located("hf:images", {}, run) == f"hf:{images}"
    for own in ("a", "runs", "runs/a"):  # the run itself, and what it is in
        assert located(own, {}, run) == own
    (tmp_path / "elsewhere" / "images").mkdir()  # of the same name, and another
    assert located("images", {START: "../.."}, run) == str(images)
    assert located("images", {START: "../../../elsewhere"}, run) == "images"  # what is meant is here
    assert located("images", {START: "../../gone"}, run) == "images"
    assert located("images", {}, run) == "images"  # of an older version
    assert located(".", {START: "../.."}, run) == str(tmp_path / "work")
    assert located("../elsewhere", {}, run) == "../elsewhere"
    assert [located(text, {}, run) for text in (None, "", "digits", "module:factory", "gone")] == [
        *(None, "", "digits", "module:factory", "gone")
    ]


def test_data_are_told_apart_by_their_place_however_it_is_written(tmp_path: Path) -> None:
    here = DataOptions("birds", data_root=str(tmp_path))
    others = (("birds", os.path.relpath(tmp_path)), (str(tmp_path / "birds"), None), ("folder", f"{tmp_path}/birds"))
    for data, root in (*others, ("hf:birds", str(tmp_path))):
        assert same_data(here, DataOptions(data, data_root=root))
    assert not same_data(here, DataOptions("birds"))
    assert not same_data(here, DataOptions("birds", data_root=str(tmp_path / "other")))
    assert not same_data(here, DataOptions("flowers", data_root=str(tmp_path)))
    # The files of a built-in data set are the same everywhere.
    assert same_data(DataOptions("cifar10", data_root=str(tmp_path)), DataOptions("cifar10"))
    assert not same_data(DataOptions("cifar10"), DataOptions("cifar100"))


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_what_was_held_out_stays_so_however_run_and_data_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Else the network has seen the samples that choose."""
    run_of(tmp_path, {"data": "birds", "data_root": str(tmp_path / "root"), "validation": 0.3, "split_seed": 5})
    model = ModelOptions("small-cnn", weights=str(tmp_path / file))
    monkeypatch.chdir(tmp_path)
    given = DataOptions("root/birds")
    _, data = inherited(model, given, {"weights", "model", "data"})
    assert (data.data, data.data_root, data.validation, data.split_seed) == ("root/birds", None, 0.3, 5)
    with pytest.raises(ValueError, match=r"--validation 0.1: .* was trained with validation 0.3"):
        check_split(model, given)


@pytest.mark.parametrize("text", ["model: vit\n", "- 1\n", "{"])
def test_weights_beside_a_configuration_of_others_keep_their_card(tmp_path: Path, text: str) -> None:
    card = NetworkCard("hf:nets/small", tuple("ab"), (1, 8, 8))
    save_model(torch.nn.Linear(2, 2), tmp_path / "model.safetensors", metadata=card.metadata())
    (tmp_path / "nets" / "small").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "model.safetensors").rename(weights := tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "config.yaml").write_text(text)
    found = card_in(weights)
    assert found is not None and found.model == f"hf:{tmp_path}/nets/small"


def test_data_below_a_data_root_are_looked_for_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of their name beside the runs is another one."""
    for folder in ("work/runs/a", "work/birds", "root/birds"):
        (tmp_path / folder).mkdir(parents=True)
    model = run_of(tmp_path / "work/runs/a", {"data": "birds", "data_root": str(tmp_path / "root")})
    monkeypatch.chdir(tmp_path)
    assert inherited(model, DataOptions(""), {"weights"})[1].data == "birds"


def test_the_validation_part_of_the_data_is_held_out_where_it_has_one() -> None:
    model, data = ModelOptions(f"{tasks.HERE}:net"), DataOptions(f"{tasks.HERE}:one_logit")
    ((inputs, labels),) = held_out(model, data, {"model", "data"}, batch_size=16)
    wanted = tasks.one_logit()[1].tensors
    assert torch.equal(inputs, wanted[0]) and torch.equal(labels, wanted[1])


def test_without_samples_held_out_there_is_the_remedy() -> None:
    with pytest.raises(ValueError, match="no validation samples: give --validation"):
        held_out(ModelOptions("small-cnn"), DataOptions("digits", validation=0), {"model", "data"}, batch_size=16)


def test_data_are_prepared_as_the_network_says_unless_the_user_says_something_else() -> None:
    mean, std, other = (0.5, 0.4, 0.3), (0.3, 0.2, 0.2), (0.1, 0.1, 0.1)
    card = NetworkCard("small-cnn", ("a", "b"), (3, 8, 8), preprocessing=Preprocessing(8, mean, std, "bicubic", 0.9))
    own: dict[str, Any] = {"image_size": 8, "interpolation": "bicubic", "crop": 0.9, "mean": mean, "std": std}
    assert as_trained(DataOptions("images"), card) == DataOptions("images", **own)
    said: dict[str, Any] = {"image_size": 16, "mean": other}
    assert as_trained(DataOptions("images", **said), card) == DataOptions("images", **own | said)
    assert as_trained(DataOptions("cifar10"), card) == DataOptions("cifar10", mean=mean, std=std)  # of one size
    assert as_trained(DataOptions("module:factory"), card) == DataOptions("module:factory")
    assert as_trained(DataOptions("images"), None) == DataOptions("images")


def test_images_in_memory_are_normalised_as_the_network_was_trained(tmp_path: Path) -> None:
    card = NetworkCard("small-cnn", tuple("0123456789"), (1, 8, 8), preprocessing=Preprocessing(8, (0.3,), (0.2,)))
    save_model(card.build(), tmp_path / "w.safetensors", metadata=card.metadata())
    loaded = load(DataOptions("digits"), ModelOptions("small-cnn", weights=str(tmp_path / "w.safetensors")))
    assert (loaded.mean, loaded.std) == ((0.3,), (0.2,))


def run_of(folder: Path, data: dict[str, Any]) -> ModelOptions:
    """A run of an older version, whose weights have no card."""
    save_model(torch.nn.Linear(2, 2), folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"model": "small-cnn"}, "data": data}))
    return ModelOptions("", weights=str(folder))


def test_code_that_a_run_names_for_its_data_runs_by_consent_only(tmp_path: Path) -> None:
    model = run_of(tmp_path, {"data": "module:factory"})
    with pytest.raises(RunError, match=r"factory 'module:factory', whose code would run: give --data module:factory"):
        inherited(model, DataOptions(""), {"weights"})
    found = inherited(model, DataOptions("module:factory"), {"weights", "data"})
    assert (found[0].model, found[1].data) == ("small-cnn", "module:factory")


def test_one_of_the_two_sizes_takes_the_place_of_the_other(tmp_path: Path) -> None:
    model = run_of(tmp_path, {"data": "digits", "fraction": 0.5, "split_seed": 3})
    _, data = inherited(model, DataOptions("", train_size=8), {"weights", "train_size"})
    assert (data.data, data.train_size, data.fraction, data.split_seed) == ("digits", 8, None, 3)
    assert inherited(model, DataOptions(""), {"weights"})[1].fraction == 0.5


def test_given_is_what_is_neither_usual_nor_empty() -> None:
    assert given_in(ModelOptions("", weights="w"), DataOptions("", validation=0.3)) == {"weights", "validation"}
    assert given_in(ModelOptions("small-cnn"), DataOptions("digits")) == {"model", "data"}


def test_a_network_is_not_built_with_other_arguments_than_it_was_trained_with() -> None:
    card = NetworkCard("small-cnn", tuple("0123456789"), (1, 8, 8), {"drop_rate": 0.25})
    loaded = load(DataOptions("digits"))
    check_fits(card, ModelOptions("small-cnn", weights="w", model_args={"drop_rate": 0.25}), loaded)
    with pytest.raises(ValueError, match=r"--model_args \{'drop_rate': 0.5\}: the network in w was built with"):
        check_fits(card, ModelOptions("small-cnn", weights="w", model_args={"drop_rate": 0.5}), loaded)


def test_inputs_that_come_as_they_are_need_no_preprocessing_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be said here (of Transformers) is in the way of image files only."""

    def asked(*_: object) -> None:
        raise ValueError("does not just resize")

    monkeypatch.setattr("pof.app.splits.preprocessing_of", asked)
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).integers(0, 255, (20, 8, 8), "uint8"), y=np.arange(20) % 2)
    model = ModelOptions("hf:folder", weights="pretrained")
    for data in (f"{tasks.HERE}:one_logit", str(tmp_path / "a.npz"), "digits"):
        assert len(load(DataOptions(data), model).train_labels)
    with pytest.raises(ValueError, match="does not just resize"):
        load(DataOptions(str(tmp_path / "a.npz"), image_size=8), model)
