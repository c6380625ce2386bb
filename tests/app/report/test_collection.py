from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pof
from pof.app.options import DataOptions, ModelOptions
from pof.app.report import Bounds, RunFigures, Subject, collect, read_run, subject_of_file, subject_of_run
from pof.app.report.collection import common_reach, measure_pictures
from pof.app.report.figures import figures_of
from pof.app.report.samples import Samples, samples_of
from pof.app.run_files import RunError
from pof.app.splits import load
from pof.flatness import head_hessian, radius_distribution

CPU = torch.device("cpu")
BOUNDS = Bounds(3, 32, CPU)
DATA = DataOptions(data="digits", train_size=200)


class SoftHead(nn.Module):
    """A network whose head is not one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@pytest.fixture(scope="module")
def subject(runs: Path) -> Subject:
    return subject_of_run(read_run(runs / "pof"), "pof")


@pytest.fixture(scope="module")
def figures(subject: Subject) -> RunFigures:
    return collect([subject], BOUNDS)[0]


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_of(load(DATA), DATA, BOUNDS)


def test_test_figures_are_those_of_the_run(figures: RunFigures, subject: Subject) -> None:
    assert figures.test == subject.test
    # The same softmax in double precision instead of single.
    assert figures.calibration.nll == pytest.approx(figures.test.nll, rel=1e-5)
    assert figures.calibration.samples == figures.test.n


def test_eigenvalue_is_that_of_the_dense_hessian(figures: RunFigures, subject: Subject, samples: Samples) -> None:
    network = pof.split(subject.network(load(DATA)).eval())
    with torch.no_grad():
        features = torch.cat([network.features(images) for images, _ in samples.train])
    assert network.bias is not None
    dense = head_hessian(features.double(), network.weight.detach().double(), network.bias.detach().double())
    # 1e-4 is the tolerance of Lanczos' method in float32.
    assert float(figures.eigenvalues.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=2e-4)
    assert figures.eigenvalues.samples == len(features) == 96


def test_radii_are_of_whole_batches_of_the_given_number(figures: RunFigures) -> None:
    assert figures.radii is not None
    assert figures.radii.test is not None
    for radii in (figures.radii.train, figures.radii.test):
        assert (len(radii.radius), radii.batch_size) == (3, 32)


def test_gamma_is_the_ratio_of_validation_to_training(figures: RunFigures, subject: Subject, samples: Samples) -> None:
    network = subject.network(load(DATA))
    found = radius_distribution(network, samples.drawn_train, test_loader=samples.drawn_validation, batches=3)
    assert figures.gamma is not None
    assert figures.gamma.value == found.ratio


def test_networks_are_measured_on_the_same_samples(subject: Subject, figures: RunFigures) -> None:
    again = collect([replace(subject, name="one"), replace(subject, name="two")], BOUNDS)
    for other in again:
        assert float(other.sharpness.value) == figures.sharpness.value
        assert other.radii is not None and figures.radii is not None
        assert torch.equal(other.radii.train.radius, figures.radii.train.radius)


def test_a_checkpoint_is_evaluated(subject: Subject, runs: Path, figures: RunFigures) -> None:
    file = runs / "pof" / "model.safetensors"
    (found,) = collect([subject_of_file(file, "file", ModelOptions("small-cnn"), DATA)], BOUNDS)
    assert found.test.error == figures.test.error
    assert found.subject.validation_error is None


def test_weights_that_are_not_the_runs_are_noticed(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "pof", tmp_path / "pof")
    network = pof.models.build_model("small-cnn", num_classes=10, in_channels=1)
    pof.save_model(network, folder / "model.safetensors")
    with pytest.raises(RunError, match="the weights or the data have changed"):
        collect([subject_of_run(read_run(folder), "pof")], BOUNDS)


def test_a_test_error_that_is_a_point_off_is_noticed(subject: Subject) -> None:
    assert subject.test is not None
    other = replace(subject, test=replace(subject.test, error=subject.test.error + 0.01))
    with pytest.raises(RunError, match="the weights or the data have changed"):
        collect([other], BOUNDS)


def test_a_network_without_a_linear_head_has_the_other_figures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pof.save_model(SoftHead(), tmp_path / "soft.safetensors")
    model = ModelOptions(f"{__name__}:SoftHead", head="head")
    (found,) = collect(
        [subject_of_file(tmp_path / "soft.safetensors", "soft", model, DATA)], BOUNDS, pictures=True, plane=True
    )
    assert (found.radii, found.gamma, found.features) == (None, None, None)
    assert found.trace.value != 0.0
    assert [figure.key for figure in figures_of([found])] == ["curvature", "plane", "calibration"]


def test_reach_is_common_to_all(figures: RunFigures, subject: Subject, samples: Samples) -> None:
    reach = common_reach([figures])
    assert figures.radii is not None and figures.radii.test is not None
    assert reach == 2 * max(figures.radii.train.median, figures.radii.test.median)
    network = subject.network(load(DATA))
    pictures = measure_pictures(subject, network, samples, reach, None, ("0",), plane=False)
    assert pictures.landscape is not None
    assert pictures.plane is None  # nobody asked for it
    assert float(pictures.landscape.offsets[-1]) == pytest.approx(reach)


def test_progress_tells_the_network_and_the_stage(subject: Subject) -> None:
    seen: set[tuple[str, str]] = set()

    def start(name: str):  # type: ignore[no-untyped-def]
        return lambda stage, done, total: seen.add((name, stage))

    collect([subject], Bounds(1, 32, CPU), start=start)
    assert {("pof", "calibration"), ("pof", "trace"), ("pof", "sharpness")} <= seen


def test_samples_are_drawn_at_random_and_bounded(samples: Samples) -> None:
    labels, all_labels = torch.cat([y for _, y in samples.test]), load(DATA).test_labels
    assert len(labels) == 96
    assert not torch.equal(labels, all_labels[:96])
    held = samples.drawn_validation
    assert held is not None
    # 100 validation samples: the fourth batch would be of a second round.
    assert [len(y) for _, y in held] == [32, 32, 32]


def test_a_small_set_is_gone_through_again_in_another_order() -> None:
    few = samples_of(load(DATA), DATA, Bounds(5, 64, CPU)).drawn_validation
    assert few is not None
    batches = [y for _, y in few]
    assert [len(y) for y in batches] == [64] * 5
    assert not torch.equal(batches[0], batches[1])


def test_too_small_a_validation_split_gives_no_gamma(subject: Subject) -> None:
    samples = samples_of(load(DATA), DATA, Bounds(2, 128, CPU))
    assert samples.drawn_validation is None
    assert collect([subject], Bounds(2, 128, CPU))[0].gamma is None


@pytest.mark.parametrize("bounds", [(0, 32), (2, 0)])
def test_empty_bounds_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be a whole number >= 1"):
        Bounds(*bounds, CPU)
