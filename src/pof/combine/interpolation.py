"""The straight line between two networks (WiSE-FT: Wortsman et al., CVPR 2022, arXiv 2109.01903)."""

from __future__ import annotations

from torch import nn

from pof.combine.average import average


def interpolate(before: nn.Module, after: nn.Module, share: float) -> nn.Module:
    """Compute the network (1 - share) * before + share * after; both stay as they are.

    Every parameter is averaged, in at least float32, and is rounded to its own dtype once; one that is the same in
    both (a frozen head) stays bitwise identical.  Parametrised modules are averaged in their own parameters: for
    weight norm, direction and length.  Everything else is that of ``before``: buffers, extra state, ``requires_grad``
    and modes.  Batch-norm statistics belong to the weights that they were taken with, so that networks with
    batch norms need them estimated anew (``pof.combine.estimate_statistics``) unless the share is 0 or 1.

    Args:
        before: the incoming network, any module.
        after: a network of the same architecture, trained on from ``before``.
        share: of ``after``, in [0, 1]; 0 gives a copy of ``before`` and 1 one of ``after``, both bitwise
            identical and with their own buffers.  Outside of [0, 1] the line leaves the two networks: refused.

    Returns:
        A new module without gradients, on the device of the network that its buffers are from.

    Raises:
        ValueError: if the share is outside of [0, 1], a parameter is missing in one network or differs in shape, or
            has no shape yet.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], 0 for the network before and 1 for that after; got {share}")
    return average([before, after], [1 - share, share])
