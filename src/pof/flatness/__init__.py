"""Flatness and features of any network: eigenvalues, sharpness, radii, landscapes, features, calibration.

Knows no training method: every function takes a module, data, and where it matters a loss.  Results are frozen
dataclasses with ``.plot(ax)``.  Nothing that is measured leaves a trace in the network.
Importing this needs torch alone; scipy (eigenvalues) and matplotlib (figures) are imported on use.

All measurements share these arguments:

- ``model``: any module, where features or the head alone are measured one with a linear head; evaluated in eval mode
  and unchanged afterwards.
- ``loss``: ``loss(outputs, targets)``, the mean over a mini-batch.
- ``loader``: mini-batches ``(inputs, targets)``, or dicts with ``labels``; read once.
- ``batches``: at most so many mini-batches of each loader; None for all.
- ``head``: the head's qualified name; None finds it.
- ``label_smoothing`` and ``class_weights`` (C,): of the cross-entropy.
- ``seed``: of the order a shuffling loader gives, and of what else a measurement draws.
- ``progress``: called as ``progress(stage, done, total)`` after each unit of work.
"""

from pof.flatness._measure import Estimate, Loss, Progress
from pof.flatness.eigenvalues import Eigenvalues, head_eigenvalues, top_eigenvalues
from pof.flatness.features import (
    FeatureStatistics,
    PrincipalComponents,
    conditional_entropy,
    feature_components,
    feature_statistics,
    head_margins,
    meannn_entropy,
    principal_components,
)
from pof.flatness.hessian import head_hessian
from pof.flatness.landscapes import Landscape, LossCurve, LossIncrement, landscape, loss_increment
from pof.flatness.plane import LossPlane, loss_plane
from pof.flatness.radius import Radii, RadiusDistribution, SuggestedGamma, radius_distribution, suggested_gamma
from pof.flatness.reliability import Calibration, calibration, calibration_of, fit_temperature
from pof.flatness.sharpness import Sharpness, adaptive_sharpness, m_sharpness, sam_sharpness
from pof.flatness.spectrum import SpectralDensity, Trace, hessian_trace, spectral_density

__all__ = [
    "Calibration",
    "Eigenvalues",
    "Estimate",
    "FeatureStatistics",
    "Landscape",
    "Loss",
    "LossCurve",
    "LossIncrement",
    "LossPlane",
    "PrincipalComponents",
    "Progress",
    "Radii",
    "RadiusDistribution",
    "Sharpness",
    "SpectralDensity",
    "SuggestedGamma",
    "Trace",
    "adaptive_sharpness",
    "calibration",
    "calibration_of",
    "conditional_entropy",
    "feature_components",
    "feature_statistics",
    "fit_temperature",
    "head_eigenvalues",
    "head_hessian",
    "head_margins",
    "hessian_trace",
    "landscape",
    "loss_increment",
    "loss_plane",
    "m_sharpness",
    "meannn_entropy",
    "principal_components",
    "radius_distribution",
    "sam_sharpness",
    "spectral_density",
    "suggested_gamma",
    "top_eigenvalues",
]
