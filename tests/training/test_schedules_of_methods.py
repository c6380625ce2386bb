"""The schedule that a method is made for: constant for SWA, a rate that rises again for ``rewarm``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import pof
from pof.app.cli import main
from pof.app.experiment.recipe import RecipeError, parse_recipe
from pof.app.method_options import AverageOptions
from pof.app.options import TrainOptions, schedule_of
from pof.training.schedules import Schedule
from tests.app.experiment.test_recipe import METHODS, changed
from tests.cases import batches, mlp


def rates(method: pof.Method, **options: Any) -> list[float]:
    """Learning rates of two epochs of three steps."""
    rows: list[Any] = []
    pof.fit(method, batches(3), epochs=2, log=rows.append, device="cpu", **options)
    return [row["lr"] / 1e-3 for row in rows if row["event"] == "step"]


COSINE = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]


@pytest.mark.parametrize(("average", "wanted"), [(None, COSINE), ("ema", COSINE), ("lawa", COSINE), ("swa", [1.0] * 6)])
def test_fit_trains_swa_at_a_constant_rate_and_the_others_along_a_cosine(average: Any, wanted: list[float]) -> None:
    method: pof.Method = pof.Finetune(mlp())
    assert rates(method if average is None else pof.Averaged(method, average)) == pytest.approx(wanted)


def test_swa_takes_no_cosine_and_any_other_schedule() -> None:
    with pytest.raises(ValueError, match=r"swa with a cosine schedule: the rate ends at 0, .* leave the schedule out"):
        rates(pof.Averaged(pof.Finetune(mlp()), "swa"), schedule=Schedule("cosine"))
    step = rates(pof.Averaged(pof.Finetune(mlp()), "swa"), schedule=Schedule("step", milestones=(0.5,)))
    assert step == pytest.approx([1.0] * 3 + [0.1] * 3)
    assert rates(pof.Averaged(pof.Finetune(mlp()), "swa"), schedule=Schedule(warmup_steps=1))[:2] == [0.5, 1.0]


@pytest.mark.parametrize("changes", [{"method": "swa"}, {"method": "pof", "average": {"kind": "swa"}}])
def test_a_recipe_and_the_command_refuse_the_cosine_before_anything_runs(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = METHODS | {"new": {**changes, "schedule": {"kind": "cosine"}}}
    with pytest.raises(RecipeError, match=r"methods\.new: swa with a cosine schedule"):
        parse_recipe(changed(methods=methods))
    words = ["--method", changes["method"], "--average.kind", changes.get("average", {"kind": "none"})["kind"]]
    run = ["train", "--model", "small-cnn", "--data", "digits", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*run, *words, "--schedule.kind", "cosine", "--device", "cpu"]) == 2
    assert "swa with a cosine schedule" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_presets_set_their_schedules_and_a_run_folder_holds_them(tmp_path: Path) -> None:
    assert schedule_of(TrainOptions("swa")) == Schedule("constant")
    assert schedule_of(TrainOptions("pof", average=AverageOptions("swa"))) == Schedule("constant")
    assert schedule_of(TrainOptions("ema")) == schedule_of(TrainOptions("sam")) == Schedule("cosine")
    assert schedule_of(TrainOptions("rewarm")) == Schedule("cosine", warmup=0.3)
    assert schedule_of(TrainOptions("rewarm", schedule=Schedule("constant"))) == Schedule("constant")
    assert schedule_of(TrainOptions("rewarm", schedule=Schedule(warmup_steps=5))) == Schedule("cosine", warmup_steps=5)
    out = tmp_path / "run"
    digits = ["--model", "small-cnn", "--data", "digits", "--train_size", "100", "--batch_size", "10", "--epochs", "2"]
    assert main(["train", *digits, "--method", "rewarm", "--lr", "0.01", "--device", "cpu", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [row["lr"] for row in rows if row["event"] == "step"]
    peak = found.index(max(found))
    assert found[:peak] == sorted(found[:peak]) and found[peak:] == sorted(found[peak:], reverse=True)
    assert peak == pytest.approx(0.3 * len(found), abs=1) and found[0] < 0.002 and found[-1] < 0.001
    assert "warmup: 0.3" in (out / "config.yaml").read_text()
    assert [row["train_radius"] for row in rows if "train_radius" in row] == pytest.approx([0.05] * 2)


def test_bad_shares_are_named() -> None:
    for options in ({"warmup": 1.0}, {"warmup": -0.1}, {"warmup": 0.1, "warmup_steps": 2}):
        with pytest.raises(ValueError, match=r"warmup is a share of the run in \[0, 1\), instead of warmup_steps"):
            Schedule(**options)  # type: ignore[arg-type]
