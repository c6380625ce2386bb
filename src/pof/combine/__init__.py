"""Networks put together after training: interpolation, soups, batch-norm statistics anew, and the temperature."""

from pof.combine.interpolation import interpolate
from pof.combine.soups import GreedySoup, greedy_soup, soup
from pof.combine.statistics import estimate_statistics
from pof.combine.temperature import scaled_nll

__all__ = ["GreedySoup", "estimate_statistics", "greedy_soup", "interpolate", "scaled_nll", "soup"]
