"""What the figures of a report are of: the run's own head, its own start, and the same samples for all networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pof import flatness
from pof.app.cli import main
from pof.app.report import Bounds, collect, read_run
from pof.app.report.subjects import with_incoming
from tests.app.report.conftest import train
from tests.app.report.two_outputs import TwoHeads

CPU = torch.device("cpu")
OURS = "tests.app.report.two_outputs"


def measured(network: torch.nn.Module, data: Any, head: str | None) -> dict[str, float]:
    common: Any = {"head": head}
    return {
        "calibration": flatness.calibration(network, data, **common).nll,
        "sam": flatness.sam_sharpness(network, F.cross_entropy, data, **common).loss,
        "m": flatness.m_sharpness(network, F.cross_entropy, data, 4, **common).loss,
        "adaptive": flatness.adaptive_sharpness(network, F.cross_entropy, data, **common).loss,
        "plane": float(flatness.loss_plane(network, F.cross_entropy, data, points=3, **common).loss[1, 1]),
    }


def test_every_measurement_reads_the_head_that_it_is_told() -> None:
    torch.manual_seed(0)
    network, inputs, labels = TwoHeads(5), torch.randn(16, 64), torch.arange(16) % 5
    for name, logits in zip(("main", "aux"), network(inputs), strict=True):
        expected = F.cross_entropy(logits, labels).item()
        assert measured(network, [(inputs, labels)], name) == pytest.approx(dict.fromkeys(
            ("calibration", "sam", "m", "adaptive", "plane"), expected
        ), rel=1e-5)  # fmt: skip


@pytest.mark.filterwarnings("ignore:other outputs of the network")
def test_a_report_is_of_the_head_that_the_run_was_trained_with(tmp_path: Path) -> None:
    options = ["--model", f"{OURS}:two_heads", "--head", "aux", "--epochs", "3", "--lr", "0.1"]
    folder = train("train", tmp_path / "aux", *options)
    subjects, _ = with_incoming([read_run(folder, trust_factories=True)])
    (found,) = collect(subjects[-1:], Bounds(1, 32, CPU))
    result = json.loads((folder / "result.json").read_text())
    # The first 500 of 797 test images: no head that was not trained comes near.
    assert 1 - float(found.calibration.correct.double().mean()) == pytest.approx(
        result["test_after"]["error"], abs=0.05
    )
    assert found.sharpness.loss == pytest.approx(found.test.nll, abs=0.5)


def test_runs_of_two_published_networks_have_each_its_own_start(tmp_path: Path) -> None:
    records = []
    for name in ("small", "large"):
        options = ["--model", f"{OURS}:{name}", "--weights", "pretrained", "--epochs", "1"]
        records.append(read_run(train("train", tmp_path / name, *options), trust_factories=True))
    subjects, _ = with_incoming(records)
    assert [subject.name for subject in subjects] == ["before small", "before large", "small", "large"]
    assert [subject.before for subject in subjects[2:]] == ["before small", "before large"]
    for before, record in zip(subjects, records, strict=False):
        assert vars(before.test) == record.result["test_before"]


def test_networks_of_parts_of_different_size_are_measured_on_the_same_samples(runs: Path, tmp_path: Path) -> None:
    before = str(runs / "train")
    # A rate at which nothing moves but a little the running statistics: the same network, on fewer samples.
    options = ["--weights", before, "--method", "finetune", "--epochs", "1", "--lr", "1e-12", "--train_size", "40"]
    same = train("post-train", tmp_path / "same", *options)
    subjects, notes = with_incoming([read_run(runs / "train"), read_run(same)])
    first, second = collect(subjects, Bounds(3, 32, CPU))
    assert first.eigenvalues.samples == second.eigenvalues.samples == 40
    assert second.sharpness.value == pytest.approx(first.sharpness.value, rel=0.05)
    assert second.top_eigenvalue == pytest.approx(first.top_eigenvalue, rel=0.05)
    assert [note for note in notes if "smallest of these parts" in note]


def test_flatness_says_so_too(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", str(runs / "train"), "--method", "finetune", "--epochs", "1", "--train_size", "40"]
    small = train("post-train", tmp_path / "small", *options)
    assert main(["flatness", str(runs / "train"), str(small), "--batches", "1"]) == 0
    assert "smallest of these parts" in capsys.readouterr().out


def test_one_test_sample_per_class_is_enough_for_a_report(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 8, 8), dtype="uint8")
    arrays = {"train_images": images, "train_labels": np.arange(80) % 20, "test_images": images[:20]}
    np.savez(tmp_path / "few.npz", **arrays, test_labels=np.arange(20))
    data = ["--data", str(tmp_path / "few.npz"), "--validation", "0", "--model", "small-cnn", "--batch_size", "20"]
    assert main(["train", *data, "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert main(["flatness", str(tmp_path / "run"), "--batches", "2"]) == 0


def test_entropies_that_do_not_exist_are_nan() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    alone = flatness.feature_statistics(network, [(torch.randn(1, 4), torch.tensor([1]))])
    assert np.isnan(alone.entropy) and np.isnan(alone.mutual_information)
    apart = flatness.feature_statistics(network, [(torch.randn(3, 4), torch.arange(3))])
    assert np.isfinite(apart.entropy) and np.isnan(apart.mutual_information)


def test_radii_of_mini_batches_of_two_sizes_have_no_ratio() -> None:
    torch.manual_seed(0)
    network, inputs, labels = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.randn(24, 4), torch.arange(24) % 3
    small, large = [(inputs[:8], labels[:8])] * 2, [(inputs, labels)] * 2
    apart = flatness.radius_distribution(network, small, test_loader=large)
    assert apart.test is not None and apart.test.median > 0 and np.isnan(apart.ratio)
    with pytest.raises(ValueError, match="8 samples and those of test_loader 24"):
        flatness.suggested_gamma(apart)
    assert flatness.radius_distribution(network, small, test_loader=small).ratio == 1.0
