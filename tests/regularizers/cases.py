"""Every regulariser with some strength, for the tests of what they have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pof.regularizers import BSS, DELTA, FNP, L2SP, AdaRand, BiTuning, CoTuning, RandReg, Regularizer
from tests.regularizers import problem

Make = Callable[[nn.Module, float], Regularizer]


def _moments(dimensions: int) -> dict[str, object]:
    mean, std = problem.statistics()
    return {"mean": mean, "std": std} if dimensions == 2 else {"mean": mean[0], "std": std[0]}


MAKERS: dict[str, Make] = {
    "fnp": lambda model, s: FNP(strength=s),
    "randreg-uniform": lambda model, s: RandReg("uniform", strength=s),
    "randreg-normal": lambda model, s: RandReg("normal", strength=s),
    "randreg-features": lambda model, s: RandReg("features", strength=s, **_moments(1)),
    "randreg-class": lambda model, s: RandReg("class", strength=s, **_moments(2)),
    "adarand": lambda model, s: AdaRand(*problem.statistics(), strength=s),
    "bss": lambda model, s: BSS(strength=s),
    "l2sp": lambda model, s: L2SP(model, "head", strength=s, head_strength=s),
    "delta": lambda model, s: DELTA(model, ["stem", "conv"], strength=s),
    "bi-tuning": lambda model, s: BiTuning(model, "head", strength=s, keys=3, dimension=4, temperature=0.2),
    "co-tuning": lambda model, s: CoTuning(problem.source_head(), problem.relationship(), strength=s),
}
TRAINED = ("bi-tuning", "co-tuning")
"""Those with parameters of their own."""
ON_FEATURES = [name for name in MAKERS if name not in {"l2sp", "delta", "bi-tuning"}]
