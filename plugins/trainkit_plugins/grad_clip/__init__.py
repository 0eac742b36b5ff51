"""Gradient clipping, and the local smoothness that tells whether clipping can help."""

from ..common.preserve import preserve
from .clipping import (
    Clipped,
    clip_by_global_norm,
    clip_by_value,
    clip_tensors_by_global_norm,
    clip_tensors_with,
    global_norm,
)
from .fit import Estimate, Fit, Threshold, Thresholds, fit_l0_l1, suggest_threshold
from .smoothness import (
    Smoothness,
    across_ranks,
    gradient_of,
    interior_grid,
    local_smoothness,
    snapshot,
)

__all__ = [
    "Clipped",
    "Estimate",
    "Fit",
    "Smoothness",
    "Threshold",
    "Thresholds",
    "across_ranks",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_tensors_by_global_norm",
    "clip_tensors_with",
    "fit_l0_l1",
    "global_norm",
    "gradient_of",
    "interior_grid",
    "local_smoothness",
    "preserve",
    "snapshot",
    "suggest_threshold",
]
