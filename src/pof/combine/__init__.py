"""Networks put together after training: for now their batch-norm statistics, estimated anew."""

from pof.combine.statistics import estimate_statistics

__all__ = ["estimate_statistics"]
