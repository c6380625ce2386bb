"""Other tasks through the command line: every method that can, against a loop by hand; what cannot says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pof
from pof.app.cli import main
from pof.app.methods import METHODS
from pof.data import eval_loader, load_data, train_loader
from tests.cases import mlp

HERE = __name__


def sets(targets: Any) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """For training, validation and test."""
    found = []
    for seed, size in enumerate((24, 16, 16)):
        x = torch.randn(size, 5, generator=torch.Generator().manual_seed(seed))
        found.append(TensorDataset(x, targets(x)))
    return found[0], found[1], found[2]


def one_logit() -> Any:
    return sets(lambda x: (x[:, 0] > 0).long())


def one_float() -> Any:
    return sets(lambda x: (x[:, 0] > 0).float())


def several() -> Any:
    return sets(lambda x: (x[:, :3] > 0).float())


def number() -> Any:
    return sets(lambda x: x[:, 0].sin())


def ranks() -> Any:
    return sets(lambda x: (x[:, 0] * 2).round().clamp(-1, 2).long() + 1)


def damaged() -> Any:
    return sets(lambda x: x[:, 0] / 0)


def net(num_classes: int) -> nn.Module:
    torch.manual_seed(3)
    return mlp(num_classes, norm=True).float()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).abs()


# Task -> data, loss, outputs, the same by hand
TASKS: dict[str, tuple[str, str, int, Any]] = {
    "one logit": ("one_logit", "bce", 1, lambda z, t: F.binary_cross_entropy_with_logits(z[:, 0], t.float())),
    "one logit, floats": ("one_float", "bce", 1, lambda z, t: F.binary_cross_entropy_with_logits(z[:, 0], t)),
    "several": ("several", "bce", 3, F.binary_cross_entropy_with_logits),
    "number": ("number", "mse", 1, lambda z, t: F.mse_loss(z[:, 0], t)),
    "ranks": (
        "ranks",
        "ordinal",
        3,
        lambda z, t: sum(F.binary_cross_entropy_with_logits(z[:, k], (t > k).float()) for k in range(3)),
    ),
    "own": ("number", f"{HERE}:absolute", 1, lambda z, t: (z[:, 0] - t).abs().mean()),
    "torch's": ("several", "torch.nn:L1Loss", 3, lambda z, t: (z - t).abs().mean()),
}


def command(task: str, out: Path, *more: str, name: str = "train") -> list[str]:
    data, loss = TASKS[task][:2]
    run = [name, "--model", f"{HERE}:net", "--data", f"{HERE}:{data}", "--loss", loss, "--out", str(out)]
    run += ["--epochs", "2", "--batch_size", "8", "--lr", "0.1", "--weight_decay", "0", "--schedule.kind", "constant"]
    return [*run, "--workers", "0", "--device", "cpu", "--precision", "fp32", *more]


def by_hand(task: str, epochs: int) -> tuple[nn.Module, Any]:
    data, _, outputs, loss = TASKS[task]
    model, loaded = net(outputs), load_data(f"{HERE}:{data}")
    batches: Any = train_loader(loaded, batch_size=8, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        for inputs, targets in batches.iterate(epoch):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    return model, loaded


@pytest.mark.parametrize("task", TASKS)
def test_a_run_and_its_figures_equal_a_loop(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(command(task, out, "--method", "finetune", "--metric", "loss")) == 0
    assert "test set" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["best_epoch"] > 0
    model, loaded = by_hand(task, result["best_epoch"])
    model.eval()
    loss = TASKS[task][3]
    delivered = net(TASKS[task][2])
    pof.load_weights(delivered, out / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, delivered.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)
    for split, figures in (("validation", result["validation_after"]), ("test", result["test_after"])):
        ((inputs, targets),) = eval_loader(loaded, split, batch_size=500)
        assert figures["n"] == 16
        assert figures["loss"] == pytest.approx(float(loss(model(inputs), targets).detach()), rel=1e-5)


OF_FIT: dict[str, tuple[list[str], Any]] = {
    "sam": (["--sam.rho", "0.3"], lambda model, loss: pof.SharpnessAware(model, kind="sam", rho=0.3, loss=loss)),
    "head-ascent": (["--ascent.level", "0.4"], lambda model, loss: pof.HeadAscent(model, level=0.4, loss=loss)),
    "pof": (["--pof.gamma", "0.7"], lambda model, loss: pof.PoF(model, gamma=0.7, seed=5, loss=loss)),
}
"""Method -> options on the command line, the same in Python."""


@pytest.mark.parametrize("method", OF_FIT)
@pytest.mark.parametrize("task", ["several", "number"])
def test_the_command_line_delivers_what_fit_does(task: str, method: str, tmp_path: Path) -> None:
    options, made = OF_FIT[method]
    data, loss, outputs, _ = TASKS[task]
    run = ["--method", method, *options, "--seed", "5", "--metric", "loss"]
    assert main(command(task, tmp_path / "run", *run)) == 0
    direct, loaded = net(outputs), load_data(f"{HERE}:{data}")
    trained = made(direct, loss)
    fitted = pof.fit(
        trained,
        train_loader(loaded, batch_size=8, seed=5),
        epochs=2,
        optimizer=trained.build_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        schedule=pof.Schedule("constant"),
        val_loader=eval_loader(loaded, "validation", batch_size=500),
        device="cpu",
        metric="loss",
    )
    assert fitted.best_epoch == json.loads((tmp_path / "run" / "result.json").read_text())["best_epoch"] > 0
    delivered = net(outputs)
    pof.load_weights(delivered, tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(delivered.state_dict(), direct.state_dict(), rtol=0, atol=0)


OF_CLASSES = {
    "adarand": "FNP, RandReg with another prior, L2SP, BSS and DELTA need none",
    "bi-tuning": "FNP, RandReg with another prior, L2SP, BSS and DELTA need none",
    "co-tuning": "co-tuning needs the head that the network was pre-trained with",
    "lp-ft": "lp-ft trains its head by the cross-entropy",
}
"""Methods of classifiers, and what they say."""


@pytest.mark.parametrize("method", [name for name in METHODS if name != "delta"])  # compares convolutions
@pytest.mark.parametrize("task", ["several", "number"])
def test_every_method_that_can(task: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, _, outputs, by_hand = TASKS[task]
    start = net(outputs).eval()
    pof.save_model(start, tmp_path / "start.safetensors")
    more = ["--method", method, "--weights", str(tmp_path / "start.safetensors")]
    code = main(command(task, tmp_path / "run", *more, name="post-train"))
    said = capsys.readouterr()
    if method in OF_CLASSES:
        assert code == 2
        assert OF_CLASSES[method] in said.err
        return
    assert code == 0, said.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    first = {"several": "error", "number": "rmse"}[task]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [row[f"val_{first}"] for row in rows if row["event"] == "epoch"]
    ranks = [(row[f"val_{first}"], row["val_loss"]) for row in rows if row["event"] == "epoch"]
    assert result["best_epoch"] == min(range(3), key=lambda epoch: ranks[epoch])
    delivered = net(outputs).eval()
    pof.load_weights(delivered, tmp_path / "run" / "model.safetensors")
    ((inputs, targets),) = eval_loader(load_data(f"{HERE}:{data}"), "test", batch_size=500)
    assert result["test_after"]["loss"] == pytest.approx(float(by_hand(delivered(inputs), targets).detach()), rel=1e-5)
    assert result["test_before"]["loss"] == pytest.approx(float(by_hand(start(inputs), targets).detach()), rel=1e-5)
    assert len(values) == 3


def test_evaluate_takes_the_loss_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(command("number", out, "--method", "finetune")) == 0
    capsys.readouterr()
    evaluated = ["evaluate", "--model", f"{HERE}:net", "--weights", str(out), "--data", f"{HERE}:number"]
    assert main([*evaluated, "--workers", "0", "--device", "cpu"]) == 0
    said, after = capsys.readouterr().out, json.loads((out / "result.json").read_text())["test_after"]
    assert f"{after['rmse']:.6g}" in said
    assert f"{after['r2']:.6g}" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "hinge"], "loss must be one of cross-entropy, bce, mse, ordinal, or a function"),
        (["--loss", "cross-entropy"], "has a number as target, no class: give --loss mse"),
        (["--loss", "ordinal"], "floating-point targets; ordinal needs class indices"),
        (["--metric", "error"], "metric must be one of rmse, mae, r2, loss for this loss"),
        (
            ["--data", f"{HERE}:ranks", "--loss", "bce"],
            "one of 4 classes per sample, for which the loss is cross-entropy",
        ),
        (["--data", f"{HERE}:damaged"], "the target of sample 0 is NaN or infinite"),
        (["--label_smoothing", "0.1"], "label_smoothing and class_weights belong to the cross-entropy"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("number", tmp_path / "run", "--method", "finetune", *arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_experiments_and_reports_say_that_they_are_of_classifiers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("number", tmp_path / "run", "--method", "finetune")) == 0
    assert main(["report", "--runs", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 2
    assert "trained with the loss 'mse'; reports and flatness are of classifiers" in capsys.readouterr().err


def test_data_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--data", f"{HERE}:several"]) == 0
    assert "floating-point targets" in capsys.readouterr().out
    assert main(["data", "--data", f"{HERE}:several", "--read_all"]) == 0
    assert "every sample was read" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["one logit", "several", "number", "ranks", "own"])
def test_a_dry_run_is_of_the_loss(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(task, tmp_path / "run", "--method", "finetune", "--dry_run")) == 0, capsys.readouterr().err
    said = " ".join(capsys.readouterr().out.split())
    outputs = TASKS[task][2]
    assert f"network {HERE}:net, {sum(p.numel() for p in net(outputs).parameters())} parameters" in said
    assert "samples 24 for training, 16 for validation, 16 for the test" in said
    assert not (tmp_path / "run").exists()


def test_another_loss_than_that_of_the_run_is_said_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--weights", str(tmp_path / "ranks"), "--method", "finetune"]
    assert main(command("ranks", tmp_path / "ranks", "--method", "finetune")) == 0
    capsys.readouterr()
    usual = command("ranks", tmp_path / "post", *again, "--loss", "cross-entropy", name="post-train")
    assert main(usual) == 2
    said = capsys.readouterr()
    assert "the loss cross-entropy needs 4 outputs for these data, and the network in" in said.err
    assert "has 3: give the --loss that it was trained with" in said.err
    assert "was trained with the loss ordinal, and is post-trained with cross-entropy" in " ".join(said.out.split())
    assert not (tmp_path / "post").exists()
    assert main(command("ranks", tmp_path / "post", *again, name="post-train")) == 0
    assert "post-trained with" not in capsys.readouterr().out
    file, alone = tmp_path / "ranks" / "model.safetensors", tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    given = ["--model", f"{HERE}:net", "--data", f"{HERE}:ranks", "--workers", "0"]
    assert main(["evaluate", "--weights", str(file), *given]) == 0  # in its run's folder, which knows the loss
    assert main(["evaluate", "--weights", str(alone), *given]) == 2
    assert "has 3: give the --loss that it was trained with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (
            "several",
            ["--sampler", "balanced"],
            "count the one class of each sample, and the targets are floating-point",
        ),
        ("several", ["--class_weights", "balanced"], "count the one class of each sample, and the targets are"),
        ("ranks", ["--mixup", "0.2"], "mixup makes probabilities of labels, which are for the cross-entropy, and the"),
        ("ranks", ["--loss", "cross-entropy", "--cutmix", "1"], r"are for images (K, H, W), and its inputs are (5,)"),
    ],
)
def test_what_is_for_classes_of_images_is_refused_before_anything_is_written(
    task: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(task, tmp_path / "run", "--method", "finetune", *arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
