"""Files of a run that were edited by hand or damaged: one line names the file, what is wrong, and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from pof.app.cli import main
from pof.app.experiment.executor import unusable
from pof.app.experiment.plan import Stage
from pof.app.options import DataOptions, ModelOptions, TrainOptions, plain
from pof.app.report.subjects import read_run, with_incoming
from pof.app.run_files import RunError, read_environment, read_result, read_rows
from pof.app.run_folder import Run
from pof.weights import save_model
from tests.cases import folder_instead, pipe_instead

OPTIONS = {"model": ModelOptions("small-cnn"), "data": DataOptions("digits"), "training": TrainOptions("finetune")}
CONFIG: dict[str, Any] = {**plain({name: vars(value) for name, value in OPTIONS.items()}), "processes": 1}
METRICS = {"error": 0.1, "nll": float("nan"), "ece": 0.01, "n": 10, "num_classes": 10}
RESULT: dict[str, Any] = {
    **{"best_epoch": 1, "epochs": 1, "steps": 2, "stopped": None, "message": "one epoch", "seconds": 1.5},
    **{"test_before": None, "test_after": METRICS, "validation_before": None, "validation_after": {"error": 0.1}},
    **{"validation_last": None, "train_last": {"loss": 0.1, "radius": None}},
}
ROWS = [
    {"event": "epoch", "step": 0, "epoch": 0, "best": True, "val_error": 0.5},
    {"event": "step", "step": 1, "epoch": 1, "lr": 0.1, "loss": 2.0},
    {"event": "end", "step": 1, "epoch": 1, "stopped": None, "message": "done", "best_epoch": 1},
]


def written(folder: Path) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "environment.json").write_text(json.dumps({"commit": None, "python": "3"}))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    save_model(nn.Linear(1, 1), folder / "model.safetensors")
    return folder


def bytes_instead(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def second_line(line: str) -> Callable[[Path], None]:
    return bytes_instead(f"{json.dumps(ROWS[0])}\n{line}\n".encode())


def edited(values: Any, *keys: str, to: Any = None, drop: bool = False) -> bytes:
    """The JSON (YAML too) of values, one of them changed or taken out."""
    tree = json.loads(json.dumps(values))
    part = tree
    for key in keys[:-1]:
        part = part[key]
    if drop:
        del part[keys[-1]]
    else:
        part[keys[-1]] = to
    return json.dumps(tree).encode()


ANYWHERE: dict[str, Callable[[Path], None]] = {
    "binary": bytes_instead(b"\x00\xff\xfe\x80" * 9),
    "folder": folder_instead,
    "pipe": pipe_instead,
    "utf-16": bytes_instead(json.dumps(RESULT).encode("utf-16")),
    "deep": bytes_instead(b"[" * 100_000 + b"}\n"),
}
JSON = {
    "empty": b"",
    "cut": json.dumps(RESULT).encode()[:-7],
    "null": b"null",
    "list": b"[1, 2]",
    "number": b"3",
    "nan": b"NaN",
    "long integer": b'{"commit": ' + b"9" * 5000 + b"}",
}
CASES: list[tuple[str, str, Callable[[Path], None]]] = [
    *(
        (file, name, damage)
        for file in ("config.yaml", "environment.json", "result.json", "metrics.jsonl")
        for name, damage in ANYWHERE.items()
    ),
    *(
        (file, name, bytes_instead(content))
        for file in ("environment.json", "result.json")
        for name, content in JSON.items()
    ),
    *(("result.json", f"it lacks {key}", bytes_instead(edited(RESULT, key, drop=True))) for key in RESULT),
    *(
        ("result.json", found, bytes_instead(edited(RESULT, *keys, to=value)))
        for keys, value, found in [
            (("best_epoch",), -1, "best_epoch is -1"),
            (("best_epoch",), 1.5, "best_epoch is 1.5"),
            (("best_epoch",), 2, "best_epoch is 2, of 1 epochs"),
            (("epochs",), True, "epochs is True"),
            (("steps",), 10**300, "steps is 1000"),
            (("stopped",), 3, "stopped is 3"),
            (("message",), None, "message is None"),
            (("seconds",), "long", "seconds is 'long'"),
            (("test_after",), None, "test_after is None, and holds no values"),
            (("test_after",), [0.1], "test_after is [0.1], and holds no values"),
            (("test_before",), {}, "it lacks test_before.error"),
            (("test_after", "error"), "0.1", "test_after.error is '0.1'"),
            (("test_after", "error"), float("nan"), "test_after.error is nan"),
            (("test_after", "error"), 1.5, "test_after.error is 1.5"),
            (("test_after", "n"), None, "test_after.n is None"),
            (("test_after", "top5"), 0.1, "test_after has more than error"),
            (("validation_after",), [1], "validation_after is [1]"),
            (("validation_last",), {"error": {}}, "validation_last is {'error': {}}"),
            (("train_last",), "none", "train_last is 'none'"),
        ]
    ),
    ("environment.json", "commit is 3", bytes_instead(b'{"commit": 3}')),
    ("environment.json", "it lacks commit", bytes_instead(b"{}")),
    *(
        ("config.yaml", found, bytes_instead(content))
        for content, found in [
            (b"", "no settings in it"),
            (b"- 1", "no settings in it"),
            (b"a: [", "while parsing"),
            (edited(CONFIG, "model", to=None), "model holds no settings"),
            (edited(CONFIG, "data", to="digits"), "data holds no settings"),
            (edited(CONFIG, "training", to=[1]), "training holds no settings"),
            (edited(CONFIG, "model", "model", to=[1]), "model: "),
            (edited(CONFIG, "data", "data", to=None), "data: "),
            (edited(CONFIG, "data", "mean", to={"a": 1}), "data: "),
            (edited(CONFIG, "training", "batch_size", to="many"), "training: "),
            (edited(CONFIG, "training", "pof", to=3), "training: "),
            (edited(CONFIG, "training", "schedule", to={"kind": "no"}), "training: "),
        ]
    ),
    *(
        (
            "metrics.jsonl",
            f"line 2 is no row of a run's log{found}",
            second_line(line),
        )
        for line, found in [
            ("{}", ": it lacks event"),
            ('{"event": "step", "epoch": 1}', ": it lacks step"),
            ('{"event": 3, "step": 1, "epoch": 1}', ": event is 3"),
            ('{"event": "step", "step": "1", "epoch": 1}', ": step is '1'"),
            ('{"event": "step", "step": 1, "epoch": null}', ": epoch is None"),
            ('{"event": "step", "step": -1, "epoch": 1}', ": step is -1"),
            ('{"event": "epoch", "step": 1, "epoch": 1, "val_error": "low"}', ": val_error is 'low'"),
            ('{"event": "epoch", "step": 1, "epoch": 1, "val_error": [0.1]}', ": val_error is [0.1]"),
            ('{"event": "epoch", "step": 1, "epoch": 1, "val_error": null}', ": val_error is None"),
            ('[{"event": "step"}', ""),
            ("{0.1}", ""),
        ]
    ),
]


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    record = read_run(written(tmp_path))
    assert record.rows == ROWS and record.result["test_after"]["n"] == 10 and record.model.model == "small-cnn"
    for name in ("config.yaml", "environment.json", "result.json", "metrics.jsonl"):  # what Windows editors put first
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert read_run(tmp_path).config == record.config


@pytest.mark.parametrize(("file", "found", "damage"), CASES, ids=[f"{file} {name}" for file, name, _ in CASES])
def test_damage_is_named(file: str, found: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(written(tmp_path) / file)
    with pytest.raises(RunError) as caught:
        read_run(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / file} is damaged (") and "\n" not in said and len(said) < 700
    assert said.endswith("): put back a copy of it, or run again into another folder")
    assert found in said or found in {*ANYWHERE, *JSON}


@pytest.mark.parametrize("command", ["report", "flatness"])
def test_the_commands_say_it_in_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (written(tmp_path) / "result.json").write_bytes(edited(RESULT, "test_after", to=[0.1]))
    assert main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"pof: error: {tmp_path}/result.json is damaged (test_after is [0.1]") and said.count("\n") == 1
    )


@pytest.mark.parametrize(
    "damage",
    [
        bytes_instead(b""),
        bytes_instead("".join(json.dumps(row) + "\n" for row in ROWS[:-1]).encode()),
        Path.unlink,
        lambda path: (path.unlink(), path.symlink_to(path.name)),
    ],
    ids=["empty", "cut", "gone", "a link to itself"],
)
def test_a_report_needs_the_whole_log(damage: Callable[[Path], object], tmp_path: Path) -> None:
    damage(written(tmp_path) / "metrics.jsonl")
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged \(it does not go on to the end of"):
        with_incoming([read_run(tmp_path)])


def test_a_report_says_what_a_log_with_a_gap_lacks(tmp_path: Path) -> None:
    ended = [*ROWS[:2], {"event": "epoch", "step": 2, "epoch": 1, "best": True, "val_error": 0.1}, ROWS[2]]
    for rows, notes in ((ended, []), (ended[2:], ["metrics.jsonl lacks 1 of 2 epochs, so its curves have a gap"])):
        (written(tmp_path) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, found = with_incoming([read_run(tmp_path)])
        assert found == [f"{tmp_path.name}: {note}" for note in notes]


def test_an_experiment_and_a_resume_read_them_so_too(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    (written(folder) / "result.json").write_text("{}")
    stage = Stage("stage", ModelOptions("small-cnn"), DataOptions("digits"), TrainOptions("finetune"), None)
    with pytest.raises(RunError, match=r"result.json is damaged \(it lacks best_epoch"):
        unusable(tmp_path, stage)
    (folder / "config.yaml").write_bytes(edited(CONFIG, "training", to=[1]))
    with pytest.raises(RunError, match=r"config.yaml is damaged \(training holds no settings"):
        Run(folder, CONFIG, resume=True)
    for read, name in ((read_result, "result.json"), (read_environment, "environment.json")):
        (folder / name).unlink()
        with pytest.raises(RunError, match=rf"has no {name}: has that run ended"):
            read(folder)
    (folder / "metrics.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"event": "st')  # a kill
    assert read_rows(folder) == ROWS[:1]


@pytest.mark.parametrize(
    "command", [["report"], ["flatness"], ["evaluate"], ["export", "--format", "hf", "--out", "o"]]
)
def test_what_is_no_run_names_the_runs_and_pages_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("exp/runs/sam-1", "exp/runs/pof-2", "exp/table", "empty", "demo/base"):
        (tmp_path / name).mkdir(parents=True)
        mark = "config.yaml" if Path(name).parts[-1] in {"sam-1", "pof-2", "base"} else "summary.json"
        if name != "empty":
            (tmp_path / name / mark).write_text("")
    lacking = "config.yaml" if command[0] in {"report", "flatness"} else "model.safetensors"
    page = "; the page of an experiment in it is exp/table/report.html"
    for folder, said in {
        "exp": f"{page}; in it are the runs exp/runs/pof-2, exp/runs/sam-1\n",
        "exp/table": f"{page}\n",
        "demo": "; in it is the run demo/base\n",
        "empty": "\n",
    }.items():
        assert main([command[0], folder, *command[1:]]) == 2
        assert capsys.readouterr().err == f"pof: error: {folder} is not a run: it has no {lacking}{said}"
    assert main([command[0], "nowhere", *command[1:]]) == 2
    assert "no such f" in capsys.readouterr().err
