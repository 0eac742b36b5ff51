"""RAdam, the controls of its paper, and the quantities behind the rectification. Imports torch
only.
"""

from .measure import adaptive_rate_quantiles, gradient_histogram, sample_coordinates, steps_taken
from .optimizers import Adam2k, AdamEps, AdamWarmup, RAdam
from .rectification import (
    RHO_THRESHOLD,
    adaptive_variance,
    adaptive_variance_first_order,
    first_rectified_step,
    rectification,
    rho,
    rho_inf,
    steps_until,
)

__all__ = [
    "RHO_THRESHOLD",
    "Adam2k",
    "AdamEps",
    "AdamWarmup",
    "RAdam",
    "adaptive_rate_quantiles",
    "adaptive_variance",
    "adaptive_variance_first_order",
    "first_rectified_step",
    "gradient_histogram",
    "rectification",
    "rho",
    "rho_inf",
    "sample_coordinates",
    "steps_taken",
    "steps_until",
]
