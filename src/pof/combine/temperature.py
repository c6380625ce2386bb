"""Temperature scaling after training (Guo et al., ICML 2017, arXiv 1706.04599).

Networks that are compared by their NLL are compared after each one's own temperature: the unscaled figure says as
much about over-confidence, which one number repairs, as about the network.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from pof._support.precision import widest


def scaled_nll(logits: Tensor, labels: Tensor, temperature: float | None) -> float:
    """Compute the mean negative log-likelihood of softmax(logits / temperature), in float64.

    Args:
        logits: (N, C).
        labels: (N,) class indices.
        temperature: T > 0 from :func:`pof.flatness.fit_temperature`, on the same or other samples; None, its answer
            where no finite positive T is best, leaves the logits as they are.

    Returns:
        The NLL in nats per sample.

    Raises:
        ValueError: if the temperature is not a positive finite number.
    """
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(f"a temperature is a positive finite number; got {temperature}")
    z = widest(logits.detach())
    return float(F.cross_entropy(z if temperature is None else z / temperature, labels))
