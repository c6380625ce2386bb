"""What is said of a command line that cannot be read: flags as they are typed, types in words, similar names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from pof.app.cli import main, parse
from pof.app.options import TrainOptions
from pof.weights import save_model

CASES = {
    "train --lr fast": "--lr: give a number or auto; got fast",
    "train --epochs two": "--epochs: give a whole number; got two",
    "train --compile perhaps": "--compile: give true or false; got perhaps",
    "train --augment mirror": "--augment: give one of default, cutout, randaugment, none; got mirror",
    "post-train --sam.rho big": "--sam.rho: give a number, auto, budget or null; got big",
    "train --batchsize 32": "unrecognized arguments: --batchsize 32; similar: --batch_size",
    "train --pof.gama 1": "unrecognized arguments: --pof.gama 1; similar: --pof.gamma",
    "evaluate run --spilt=train": "unrecognized arguments: --spilt=train; similar: --split",
    "train --mean 0.5 0.5 0.5": "unrecognized arguments: 0.5 0.5 (of several values in one option, write commas",
    "train --qqqq 1": "unrecognized arguments: --qqqq 1",
    "train --config options.yaml": "unknown option 'train_siz'; similar: train_size",
    "train --config none.yaml": "--config: File does not exist",
}


@pytest.mark.parametrize("words", CASES)
def test_the_option_is_named_with_the_remedy(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_text("data: {data: digits, train_siz: 150}\ntraining: {epochs: 1}\n")
    with pytest.raises(ValueError) as found:
        parse(words.split())
    assert str(found.value).startswith(CASES[words])
    assert words != "train --qqqq 1" or str(found.value) == CASES[words]


def test_a_file_in_sections_needs_no_method(tmp_path: Path) -> None:
    """It is the command's then, as it is of a file without sections."""
    file = tmp_path / "options.yaml"
    file.write_text("data: {data: digits}\ntraining: {epochs: 3}\n")
    for more, method in (([], "finetune"), (["--method", "sam"], "sam")):
        parsed = parse(["train", "--config", str(file), "--out", "new", *more])
        (training,) = (options for options in parsed.options if isinstance(options, TrainOptions))
        assert (training.method, training.epochs) == (method, 3)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(softened(10), tmp_path / "net.safetensors")
    words = ["--model", "tests.app.test_wording:softened", "--weights", str(tmp_path / "net.safetensors")]
    assert main(["evaluate", *words, "--data", "digits", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("pof: warning: ") and said.err.count("\n") == 1
    assert json.loads(said.out)["metrics"]["n"] == 797


def softened(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(dim=1))
