from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pof.app.report import Bounds, RunFigures, as_json, collect, read_run, side_by_side
from pof.app.report.quantities import Shown
from pof.app.report.subjects import with_incoming

BOUNDS = Bounds(2, 32, torch.device("cpu"))


@pytest.fixture(scope="module")
def networks(runs: Path) -> list[RunFigures]:
    return collect(with_incoming([read_run(runs / "pof")])[0], BOUNDS)


def cells(networks: list[RunFigures]) -> dict[str, list[Shown]]:
    return {row.key: found for group in side_by_side(networks) for row, found in group.rows}


def changed(network: RunFigures, **test: float) -> RunFigures:
    return replace(network, test=replace(network.test, **test))


def test_numbers_and_differences_are_written_with_the_same_digits(networks: list[RunFigures]) -> None:
    before, after = networks
    found = cells([changed(before, error=0.02134, nll=0.12345), changed(after, error=0.0200, nll=0.12345)])
    assert [c.text for c in found["error"]] == ["2.13 %", "2.00 %"]
    assert [c.difference for c in found["error"]] == ["", "−0.13 pp"]
    assert [c.difference for c in found["nll"]] == ["", "0.0000"]
    assert found["error"][1].value == 0.02
    assert " ± " in found["trace"][0].text


def test_a_difference_is_that_of_the_unrounded_figures(networks: list[RunFigures]) -> None:
    """To two digits these errors are 5.00 and 4.00 %, and 1.01 points apart."""
    before, after = networks
    found = cells([changed(before, error=0.050049, nll=0.20004), changed(after, error=0.039951, nll=0.10006)])
    assert [c.text for c in found["error"]] == ["5.00 %", "4.00 %"]
    assert found["error"][1].difference == "−1.01 pp"
    assert (found["nll"][1].text, found["nll"][1].difference) == ("0.1001", "−0.1000")


def test_significant_zeros_are_kept(networks: list[RunFigures]) -> None:
    values = [replace(n, sharpness=replace(n.sharpness, value=v)) for n, v in zip(networks, (0.17, 123.4), strict=True)]
    found = cells(values)["sharpness"]
    assert [c.text for c in found] == ["0.170", "123"]
    assert found[1].difference == "+123"
    values = [replace(n, sharpness=replace(n.sharpness, value=v)) for n, v in zip(networks, (9.98, 10.1), strict=True)]
    assert cells(values)["sharpness"][1].difference == "+0.12"


def test_very_small_numbers_have_differences_too(networks: list[RunFigures]) -> None:
    values = [replace(n, sharpness=replace(n.sharpness, value=v)) for n, v in zip(networks, (2e-7, 1e-7), strict=True)]
    assert cells(values)["sharpness"][1].difference == "−1.00e-07"


def test_what_is_not_known_is_a_dash(networks: list[RunFigures]) -> None:
    before, after = networks
    found = cells([replace(before, gamma=None), after])
    assert (found["gamma"][0].value, found["gamma"][0].text, found["gamma"][1].difference) == (None, "–", "")


def test_json_holds_every_row_and_nothing_that_is_not_finite(networks: list[RunFigures]) -> None:
    before, after = networks
    values = as_json([changed(before, nll=float("nan")), replace(after, radii=None)], BOUNDS)
    read = json.loads(json.dumps(values, allow_nan=False))
    assert read["networks"][0]["figures"]["nll"] is None
    assert read["networks"][1]["figures"]["radius_train"] is None
    assert read["networks"][1]["figures"]["error"] == after.test.error
    assert set(cells(networks)) == set(read["networks"][0]["figures"])
    assert read["networks"][1]["weights"].endswith("model.safetensors")
