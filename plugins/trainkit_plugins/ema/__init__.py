"""An exponential moving average of the weights, which is what gets validated and kept."""

from .exchange import Values, exchange
from .statistics import average_statistics, batch_norms

__all__ = ["Values", "average_statistics", "batch_norms", "exchange"]
