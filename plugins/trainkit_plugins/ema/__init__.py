"""An exponential moving average of the weights, which is what gets validated and kept."""

from .exchange import Values, exchange
from .statistics import batch_norms, recompute_statistics

__all__ = ["Values", "batch_norms", "exchange", "recompute_statistics"]
