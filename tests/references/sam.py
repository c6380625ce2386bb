"""SAM, ASAM, SAM-ON, LE-SAM and MSAM as the papers write them: one flat list of floats, one loop per equation.

``gradient_at`` maps a list of weights to the list of the loss's derivatives.  Slow, and obviously right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Vector = list[float]
Gradient = Callable[[Vector], Vector]


@dataclass
class SGD:
    """v <- mu v + g + decay w; w <- w - lr v."""

    lr: float
    mu: float
    decay: float
    v: Vector = field(default_factory=list)

    def update(self, w: Vector, g: Vector) -> Vector:
        v = self.v or [0.0] * len(w)
        self.v = [self.mu * v_i + g_i + self.decay * w_i for v_i, g_i, w_i in zip(v, g, w, strict=True)]
        return [w_i - self.lr * v_i for w_i, v_i in zip(w, self.v, strict=True)]

    @property
    def momentum(self) -> Vector:
        return self.v


@dataclass
class Adam:
    """Kingma and Ba, Algorithm 1."""

    lr: float
    beta1: float
    beta2: float
    m: Vector = field(default_factory=list)
    s: Vector = field(default_factory=list)
    t: int = 0

    def update(self, w: Vector, g: Vector) -> Vector:
        m, s = self.m or [0.0] * len(w), self.s or [0.0] * len(w)
        self.t += 1
        self.m = [self.beta1 * m_i + (1 - self.beta1) * g_i for m_i, g_i in zip(m, g, strict=True)]
        self.s = [self.beta2 * s_i + (1 - self.beta2) * g_i**2 for s_i, g_i in zip(s, g, strict=True)]
        new = []
        for w_i, m_i, s_i in zip(w, self.m, self.s, strict=True):
            m_hat = m_i / (1 - self.beta1**self.t)
            s_hat = s_i / (1 - self.beta2**self.t)
            new.append(w_i - self.lr * m_hat / (math.sqrt(s_hat) + 1e-8))
        return new

    @property
    def momentum(self) -> Vector:
        return self.m


def norm(vector: Vector) -> float:
    return math.sqrt(math.fsum(x * x for x in vector))


def sam_step(w: Vector, base: SGD | Adam, gradient_at: Gradient, rho: float) -> Vector:
    """eps = rho g / ||g||."""
    g = gradient_at(w)
    eps = [rho * g_i / norm(g) for g_i in g]
    return base.update(w, gradient_at([w_i + e_i for w_i, e_i in zip(w, eps, strict=True)]))


def le_sam_step(w: Vector, base: SGD | Adam, gradient_at: Gradient, sigma: float, rho_max: float) -> Vector:
    """rho_t = min(sigma / ||g||, rho_max); eps = rho_t g / ||g||."""
    g = gradient_at(w)
    rho = min(sigma / norm(g), rho_max)
    eps = [rho * g_i / norm(g) for g_i in g]
    return base.update(w, gradient_at([w_i + e_i for w_i, e_i in zip(w, eps, strict=True)]))


def asam_step(
    w: Vector, base: SGD | Adam, gradient_at: Gradient, rho: float, eta: float, weights: list[bool]
) -> Vector:
    """eps = rho T^2 g / ||T g||, T = |w| + eta for weights and 1 for all else."""
    g = gradient_at(w)
    scale = [abs(w_i) + eta if is_weight else 1.0 for w_i, is_weight in zip(w, weights, strict=True)]
    length = norm([t_i * g_i for t_i, g_i in zip(scale, g, strict=True)])
    eps = [rho * t_i**2 * g_i / length for t_i, g_i in zip(scale, g, strict=True)]
    return base.update(w, gradient_at([w_i + e_i for w_i, e_i in zip(w, eps, strict=True)]))


def sam_on_step(w: Vector, base: SGD | Adam, gradient_at: Gradient, rho: float, chosen: list[bool]) -> Vector:
    """SAM's eps among the chosen coordinates, 0 elsewhere."""
    g = [g_i if c_i else 0.0 for g_i, c_i in zip(gradient_at(w), chosen, strict=True)]
    eps = [rho * g_i / norm(g) for g_i in g]
    return base.update(w, gradient_at([w_i + e_i for w_i, e_i in zip(w, eps, strict=True)]))


@dataclass
class MSAM:
    """The paper's algorithm: the weights that live between iterations are the perturbed ones, w~."""

    base: SGD | Adam
    rho: float
    eps: Vector = field(default_factory=list)

    def iterate(self, w_tilde: Vector, gradient_at: Gradient) -> Vector:
        eps = self.eps or [0.0] * len(w_tilde)
        g = gradient_at(w_tilde)
        w = [x - e for x, e in zip(w_tilde, eps, strict=True)]  # remove the last perturbation
        w = self.base.update(w, g)
        v = self.base.momentum
        self.eps = [-self.rho * v_i / norm(v) for v_i in v]  # perturb for the next iteration
        return [x + e for x, e in zip(w, self.eps, strict=True)]

    def unperturbed(self, w_tilde: Vector) -> Vector:
        return [x - e for x, e in zip(w_tilde, self.eps, strict=True)]
