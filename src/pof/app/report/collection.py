"""The figures of each network of a report: numbers first, arrays for the pictures on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn import functional as F

from pof import flatness
from pof.app.options import DataOptions
from pof.app.report.samples import Bounds, Samples, samples_of
from pof.app.report.subjects import Subject
from pof.app.run_files import RunError
from pof.app.splits import load
from pof.app.splits import split as split_data
from pof.data import Data
from pof.head.split import split
from pof.training.evaluation import Metrics, evaluate

EIGENVALUES = 5
PLANE_REACH, PLANE_POINTS = 0.5, 11
# Between the test error that a run wrote down and the one measured again: other hardware stays below it.
ERROR_TOLERANCE = 0.005

Start = Callable[[str], flatness.Progress | None]
"""``start(name)``: called when a network's turn comes; gives the hook that shows its progress."""


@dataclass(frozen=True)
class Pictures:
    """What is only drawn."""

    classes: tuple[str, ...]
    """Names of the classes, in order."""
    density: flatness.SpectralDensity
    plane: flatness.LossPlane | None
    """None where nobody asked for it: it takes longer than any other figure."""
    landscape: flatness.Landscape | None
    """None where the head is not linear."""
    components: flatness.PrincipalComponents | None
    """Of test features; None where the head is not linear."""


@dataclass(frozen=True)
class RunFigures:
    """The figures of one network."""

    subject: Subject
    test: Metrics
    """From result.json where that is known."""
    calibration: flatness.Calibration
    """On test samples."""
    eigenvalues: flatness.Eigenvalues
    """Of the head's Hessian, training samples."""
    trace: flatness.Trace
    """Of the head's Hessian, training samples."""
    sharpness: flatness.Sharpness
    """SAM's, over all parameters, training samples."""
    radii: flatness.RadiusDistribution | None
    """None where the head is not linear."""
    gamma: flatness.SuggestedGamma | None
    """None without validation batches that have a radius."""
    features: flatness.FeatureStatistics | None
    """Of test samples; None where the head is not linear."""
    pictures: Pictures | None = None

    @property
    def top_eigenvalue(self) -> float:
        """Largest eigenvalue of the head's Hessian."""
        return float(self.eigenvalues.values[0])


def collect(
    subjects: Sequence[Subject],
    bounds: Bounds,
    *,
    pictures: bool = False,
    plane: bool = False,
    start: Start = lambda name: None,
) -> list[RunFigures]:
    """Measure networks, one after the other; ``plane`` measures the plane of the loss too, if pictures are wanted."""
    loaded = _load(subjects)
    parts = _on_one_part(subjects, loaded)
    samples = [samples_of(data, part, bounds) for data, part in zip(loaded, parts, strict=True)]
    networks = [s.network(data).to(bounds.device) for data, s in zip(loaded, subjects, strict=True)]
    rows = zip(subjects, networks, samples, strict=True)
    found = [measure(subject, network, part, start(subject.name)) for subject, network, part in rows]
    if not pictures:
        return found
    reach = common_reach(found)
    return [
        replace(
            figures,
            pictures=measure_pictures(
                figures.subject, network, part, reach, start(figures.subject.name), data.classes, plane
            ),
        )
        for figures, network, part, data in zip(found, networks, samples, loaded, strict=True)
    ]


def measure(subject: Subject, network: nn.Module, samples: Samples, progress: flatness.Progress | None) -> RunFigures:
    """Measure the numbers of a network."""
    head, most = subject.model.head, samples.batches
    linear = split(network, head).linear
    calibrated = flatness.calibration(
        network, samples.calibration, validation_loader=samples.validation, head=head, progress=progress
    )
    test = subject.test or evaluate(network, samples.calibration, head=head)
    _check_same(subject, test, calibrated)
    radii = (
        flatness.radius_distribution(
            network, samples.drawn_train, test_loader=samples.drawn_test, batches=most, head=head, progress=progress
        )
        if linear
        else None
    )
    return RunFigures(
        subject=subject,
        test=test,
        calibration=calibrated,
        eigenvalues=flatness.top_eigenvalues(
            network, F.cross_entropy, samples.train, EIGENVALUES, head=head, progress=progress
        ),
        trace=flatness.hessian_trace(network, F.cross_entropy, samples.train, head=head, progress=progress),
        sharpness=flatness.sam_sharpness(network, F.cross_entropy, samples.train, head=head, progress=progress),
        radii=radii,
        gamma=None if radii is None else _gamma(network, samples, head, radii),
        features=flatness.feature_statistics(network, samples.test, head=head, progress=progress) if linear else None,
    )


def measure_pictures(
    subject: Subject,
    network: nn.Module,
    samples: Samples,
    reach: float | None,
    progress: flatness.Progress | None,
    classes: tuple[str, ...],
    plane: bool,
) -> Pictures:
    """Measure what is only drawn."""
    head, linear = subject.model.head, split(network, subject.model.head).linear
    return Pictures(
        classes=classes,
        density=flatness.spectral_density(network, F.cross_entropy, samples.train, head=head, progress=progress),
        plane=flatness.loss_plane(
            network,
            F.cross_entropy,
            samples.train,
            reach=PLANE_REACH,
            points=PLANE_POINTS,
            head=head,
            batches=samples.plane_batches,
            progress=progress,
        )
        if plane
        else None,
        landscape=flatness.landscape(
            network, samples.train, test_loader=samples.test, head=head, reach=reach, progress=progress
        )
        if linear
        else None,
        components=flatness.feature_components(network, samples.test, head=head, progress=progress) if linear else None,
    )


def common_reach(figures: Sequence[RunFigures]) -> float | None:
    """Choose how far the landscapes go, so that they can be compared."""
    radii = [r for f in figures if f.radii is not None for r in (f.radii.train, f.radii.test) if r is not None]
    medians = [r.median for r in radii if r.median > 0]
    return 2.0 * max(medians) if medians else None


def _on_one_part(subjects: Sequence[Subject], loaded: Sequence[Data]) -> list[DataOptions]:
    """The data of each, with the smallest training part among them, so that all are measured on the same samples."""
    sizes = [len(split_data(data, s.data).train) for data, s in zip(loaded, subjects, strict=True)]
    least = subjects[sizes.index(min(sizes))].data
    return [replace(s.data, train_size=least.train_size, fraction=least.fraction) for s in subjects]


def _load(subjects: Sequence[Subject]) -> list[Data]:
    # Each data set once, prepared as the network takes it.
    kept: list[tuple[tuple[DataOptions, str, Mapping[str, Any]], Data]] = []
    found = []
    for subject in subjects:
        asked = (subject.data, subject.model.model, subject.model.model_args)
        if not any(known == asked for known, _ in kept):
            kept.append((asked, load(subject.data, subject.model)))
        found.append(next(data for known, data in kept if known == asked))
    return found


def _gamma(
    network: nn.Module, samples: Samples, head: str | None, radii: flatness.RadiusDistribution
) -> flatness.SuggestedGamma | None:
    if samples.drawn_validation is None:
        return None
    held = flatness.radius_distribution(network, samples.drawn_validation, batches=samples.batches, head=head)
    try:
        return flatness.suggested_gamma(replace(radii, test=held.train))
    except ValueError:  # too few batches with a radius: that is the finding
        return None


def _check_same(subject: Subject, test: Metrics, measured: flatness.Calibration) -> None:
    full = measured.share > 0
    error = 1.0 - float((measured.accuracy[full] * measured.share[full]).sum())
    if test.n == measured.samples and abs(error - test.error) > ERROR_TOLERANCE:
        raise RunError(
            f"{subject.name}: its test error is {error:.4f}, but its run wrote down {test.error:.4f}: the weights or"
            " the data have changed since"
        )
