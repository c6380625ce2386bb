from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pof._support.random import seeded
from pof.combine import scaled_nll
from pof.flatness import fit_temperature


def samples(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too large by ``scale``, and labels drawn from what they should say."""
    generator = seeded(0)
    z = 2 * torch.randn(500, 3, generator=generator, dtype=torch.float64)
    return scale * z, torch.multinomial(z.softmax(1), 1, generator=generator).flatten()


def test_two_classes_in_closed_form():
    """Three of four samples right at a margin of m: the best T makes their confidence 3/4, T = m / log 3."""
    z, labels = torch.tensor([[5.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    temperature = fit_temperature(z, labels)
    assert temperature == pytest.approx(5 / math.log(3), rel=1e-6)
    assert scaled_nll(z, labels, temperature) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))


def test_the_fit_undoes_a_scale_and_no_other_temperature_is_better():
    nlls = []
    for scale in (1.0, 3.0):
        z, labels = samples(scale)
        temperature = fit_temperature(z, labels)
        nlls.append(scaled_nll(z, labels, temperature))
        grid = [scaled_nll(z, labels, temperature * factor) for factor in (0.5, 0.99, 1.01, 2.0)]
        assert min(grid) > nlls[-1]
    # The same network: after its own temperature the scale says nothing.
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-9)


def test_without_a_temperature_the_logits_stay_as_they_are():
    z, labels = samples(1.0)
    assert scaled_nll(z.float(), labels, None) == float(F.cross_entropy(z.float().double(), labels))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(ValueError, match=f"positive finite number; got {temperature}"):
        scaled_nll(*samples(1.0), temperature)
