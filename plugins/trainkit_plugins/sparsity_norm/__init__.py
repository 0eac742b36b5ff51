"""Sparsity normalization: inputs with missing entries, scaled so that how many are missing does
not show.
"""

from .attach import attach
from .bias import SparsityBias, confidence, mean_logit, mean_prediction, pearson, sparsity_bias
from .layers import (
    InvertedDropout,
    MaskAsInput,
    MeanImputation,
    MissingInput,
    SparsityNorm,
    ZeroImputation,
)
from .normalization import normalize, observed
from .statistics import Statistics, statistics_of

__all__ = [
    "InvertedDropout",
    "MaskAsInput",
    "MeanImputation",
    "MissingInput",
    "SparsityBias",
    "SparsityNorm",
    "Statistics",
    "ZeroImputation",
    "attach",
    "confidence",
    "mean_logit",
    "mean_prediction",
    "normalize",
    "observed",
    "pearson",
    "sparsity_bias",
    "statistics_of",
]
