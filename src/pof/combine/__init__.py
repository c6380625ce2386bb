"""Networks put together after training: interpolation, soups, and the temperature of the result."""

from pof.combine.interpolation import interpolate
from pof.combine.soups import GreedySoup, greedy_soup, soup
from pof.combine.temperature import scaled_nll

__all__ = ["GreedySoup", "greedy_soup", "interpolate", "scaled_nll", "soup"]
