"""Every result can be drawn: on its own or given axes, labelled, as vector graphics, without pyplot."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

import pof.flatness as flatness
from tests.flatness.nets import data, network

LOSS = nn.CrossEntropyLoss()
TEST = data((9, 9), seed=3)
TRAIN = data((9, 9, 9))

RESULTS: dict[str, Callable[[nn.Module], Any]] = {
    "eigenvalues": lambda m: flatness.top_eigenvalues(m, LOSS, TRAIN, 3),
    "trace": lambda m: flatness.hessian_trace(m, LOSS, TRAIN, 5),
    "density": lambda m: flatness.spectral_density(m, LOSS, TRAIN, 2, steps=5),
    "sharpness": lambda m: flatness.m_sharpness(m, LOSS, TRAIN, 9),
    "radius": lambda m: flatness.radius_distribution(m, TRAIN, test_loader=TEST),
    "landscape": lambda m: flatness.landscape(m, TRAIN, test_loader=TEST),
    "increment": lambda m: flatness.loss_increment(m, TRAIN, TEST),
    "plane": lambda m: flatness.loss_plane(m, LOSS, TRAIN, points=3),
    "features": lambda m: flatness.feature_statistics(m, TRAIN),
    "components": lambda m: flatness.feature_components(m, TRAIN),
    "calibration": lambda m: flatness.calibration(m, TRAIN),
}
LABELLED = sorted(set(RESULTS) - {"plane", "components"})
SERIES = sorted(set(LABELLED) - {"radius", "landscape"})


def drawn(ax: Axes) -> int:
    return len(ax.lines) + len(ax.collections) + len(ax.patches)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_draws_labelled_axes_as_vector_graphics(name: str) -> None:
    result = RESULTS[name](network())
    given = Figure().subplots()
    assert result.plot(given) is given
    for ax in (given, result.plot()):
        assert drawn(ax) > 0
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        file = io.BytesIO()
        ax.figure.savefig(file, format="svg")
        assert b"<image" not in file.getvalue()
    with pytest.raises(AttributeError, match="cannot assign"):
        result.samples = 3


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_in_the_legend(name: str) -> None:
    ax = RESULTS[name](network()).plot(label="before")
    legend = ax.get_legend()
    assert legend is not None
    assert any("before" in text.get_text() for text in legend.get_texts())


@pytest.mark.parametrize("name", SERIES)
def test_two_networks_differ_in_more_than_colour(name: str) -> None:
    result = RESULTS[name](network())
    first, second = (Figure().subplots() for _ in range(2))
    result.plot(first, series=0)
    result.plot(second, series=1)
    looks = [
        {(str(a.get_linestyle()), getattr(a, "get_marker", lambda: "")()) for a in [*ax.lines, *ax.patches]}
        for ax in (first, second)
    ]
    assert looks[0] != looks[1]


def test_separable_and_flat_results_can_be_drawn() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double()
    torch.nn.init.zeros_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    batch = (torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1]))
    assert drawn(flatness.landscape(model, [batch]).plot()) > 0
    assert "100% separable" in str(flatness.radius_distribution(model, [batch]).plot().get_legend().get_texts()[0])
    assert drawn(flatness.loss_plane(model, LOSS, [batch], points=3).plot()) > 0


def test_importing_needs_torch_alone() -> None:
    heavy = "{'scipy', 'matplotlib', 'torchmetrics', 'sklearn', 'torchvision', 'timm'}"
    code = f"import sys, pof.flatness; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in flatness.__all__:
        assert hasattr(flatness, name)
